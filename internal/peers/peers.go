// Package peers runs the program of the module peers for tests: third-party libraries for the same standards, in a separate
// process, so that they are in no user's module graph. It sends a library its input and returns its output. Only tests
// import it.
package peers

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// patience is how long a test waits for one answer.
const patience = 30 * time.Second

// Peers is the program as it runs, once in each test binary. It is safe for concurrent use.
type Peers struct {
	mu      sync.Mutex // guards all below
	in      io.Writer
	last    int64
	waiting map[int64]chan answer // by the id of the request
	clients map[string]*Client    // by client identifier
	ended   error                 // why the program is no longer there
}

// request and answer are as in peers/main.go.
type request struct {
	ID      int64             `json:"id"`
	Op      string            `json:"op"`
	Lib     string            `json:"lib,omitempty"`
	Alg     string            `json:"alg,omitempty"`
	Key     []byte            `json:"key,omitempty"`
	JWK     json.RawMessage   `json:"jwk,omitempty"`
	Raw     string            `json:"raw,omitempty"`
	Data    []byte            `json:"data,omitempty"`
	Header  map[string]string `json:"header,omitempty"`
	Claims  map[string]any    `json:"claims,omitempty"`
	Issuer  string            `json:"iss,omitempty"`
	Aud     string            `json:"aud,omitempty"`
	Now     int64             `json:"now,omitempty"`
	Name    string            `json:"name,omitempty"`
	Seed    []byte            `json:"seed,omitempty"`
	Level   int               `json:"level,omitempty"`
	N       int64             `json:"n,omitempty"`
	Width   int               `json:"width,omitempty"`
	Client  string            `json:"client,omitempty"`
	Connect *Connect          `json:"connect,omitempty"`
	Topic   string            `json:"topic,omitempty"`
	QoS     byte              `json:"qos,omitempty"`
}

type answer struct {
	ID       int64  `json:"id"`
	Error    string `json:"error"`
	Data     []byte `json:"data"`
	Text     string `json:"text"`
	N        int64  `json:"n"`
	Hash     uint32 `json:"hash"`
	Event    string `json:"event"`
	Client   string `json:"client"`
	Topic    string `json:"topic"`
	QoS      byte   `json:"qos"`
	Retained bool   `json:"retained"`
}

// start runs the program. nil without an error: it is not built.
var start = sync.OnceValues(func() (*Peers, error) {
	path, err := find()
	if err != nil || path == "" {
		return nil, err
	}
	c := exec.Command(path) // it ends with its input, which ends with this process
	var said bytes.Buffer   // what it says where it fails
	c.Stderr = &said
	in, err := c.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	p := &Peers{in: in, waiting: map[int64]chan answer{}, clients: map[string]*Client{}}
	go func() {
		err := p.read(out)
		_ = c.Wait() // the error of the reading says more
		p.mu.Lock()
		defer p.mu.Unlock()
		p.ended = fmt.Errorf("%w\n%s", err, said.String())
		for _, got := range p.waiting {
			close(got)
		}
	}()
	return p, nil
})

// find returns the path of the program that make builds; empty if it was not built.
func find() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			break
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("no go.work above the test")
		}
		dir = up
	}
	path := filepath.Join(dir, "bin", "outside", "peers")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if os.Getenv("WATCHWORD_OUTSIDE") == "required" {
		return "", errors.New(path + " is missing")
	}
	return "", nil
}

// Find returns the program, which it starts if need be. Where it is not built the test is skipped, but under make test.
func Find(t testing.TB) *Peers {
	t.Helper()
	p := Maybe(t)
	if p == nil {
		t.Skip("bin/outside/peers is not built; make test builds it")
	}
	return p
}

// Maybe is Find for a test that has something to say without the program: then it returns nil.
func Maybe(t testing.TB) *Peers {
	t.Helper()
	p, err := start()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// read hands on what the program writes until it ends, and returns why.
func (p *Peers) read(out io.Reader) error {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var a answer
		if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
			return err
		}
		p.mu.Lock()
		got, client := p.waiting[a.ID], p.clients[a.Client]
		delete(p.waiting, a.ID)
		p.mu.Unlock()
		switch {
		case a.Event == "message":
			client.Messages <- Message{a.Topic, string(a.Data), a.QoS, a.Retained}
		case a.Event == "lost":
			select {
			case client.Lost <- errors.New(a.Error):
			default: // an unused process is available
			}
		case got != nil:
			got <- a
		}
	}
	return errors.New("the program peers has ended")
}

// ask sends one request and returns the answer, or the library's error.
func (p *Peers) ask(t testing.TB, r request) (answer, error) {
	t.Helper()
	got := make(chan answer, 1)
	p.mu.Lock()
	p.last++
	r.ID = p.last
	p.waiting[r.ID] = got
	b, err := json.Marshal(r)
	if err == nil {
		err = p.ended
	}
	if err == nil {
		_, err = p.in.Write(append(b, '\n'))
	}
	p.mu.Unlock()
	if err != nil {
		t.Fatalf("%s: %v", r.Op, err)
	}
	select {
	case a, ok := <-got:
		if !ok {
			t.Fatalf("%s: the program peers has ended", r.Op)
		}
		if a.Error != "" {
			return a, errors.New(a.Error)
		}
		return a, nil
	case <-time.After(patience):
		t.Fatalf("%s: no answer for %s", r.Op, patience)
		return answer{}, nil
	}
}
