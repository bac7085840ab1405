package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/token"
)

// attackRound is what came of one turn.
type attackRound struct {
	took          [][]time.Duration // by act; of those that were answered
	lost, refused int
	whys          []string // a few of the reasons

	mu sync.Mutex
}

func (r *attackRound) note(act int, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.took[act] = append(r.took[act], took)
}

func (r *attackRound) why(err error) {
	if len(r.whys) < 5 {
		r.whys = append(r.whys, err.Error())
	}
}

// missed notes a message that did not arrive, or a request that was refused.
func (r *attackRound) missed(lost bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if lost {
		r.lost++
	} else {
		r.refused++
	}
	r.why(err)
}

// attackEvents is the events of one turn, as two services receive them.
type attackEvents struct {
	start time.Time
	sent  []atomic.Int64 // since start, in ns
	came  [2][]atomic.Bool
	n     [2]atomic.Int64
}

// on is called with what the i-th service receives.
func (e *attackEvents) on(i, turn int, r *attackRound) func(*message) {
	return func(m *message) {
		if len(m.Payload) != 8 || !strings.HasSuffix(m.Topic, "/events/worst") || binary.BigEndian.Uint32(m.Payload) != uint32(turn) {
			return // the attacker's
		}
		at := binary.BigEndian.Uint32(m.Payload[4:])
		if !e.came[i][at].Swap(true) {
			r.note(i, time.Since(e.start)-time.Duration(e.sent[at].Load()))
			e.n[i].Add(1)
		}
	}
}

func (w *attackBench) turn(ctx context.Context, number int, attacked bool) (*attackRound, error) {
	r := &attackRound{took: make([][]time.Duration, len(worstActs))}
	total := worstActs[0].rate * w.seconds
	events := &attackEvents{start: time.Now(), sent: make([]atomic.Int64, total), came: [2][]atomic.Bool{make([]atomic.Bool, total), make([]atomic.Bool, total)}}
	var services []*client
	defer func() { waitClosed(services...) }()
	for i, filters := range [][]string{{"devices/+/events/#"}, othersEvents()} {
		c, err := w.service(ctx, strconv.Itoa(i), filters, events.on(i, number, r))
		if err != nil {
			return nil, err
		}
		services = append(services, c)
	}
	fleet, err := w.fleet(ctx, r)
	defer waitClosed(fleet...)
	if err != nil {
		return nil, err
	}
	over := func() error { return nil }
	if attacked {
		if over, err = w.attack(ctx, number); err != nil {
			return nil, err
		}
		time.Sleep(time.Second) // it is under way
	}
	acts := []func(i int) (lost bool, err error){
		func(i int) (bool, error) {
			payload := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, uint32(number)), uint32(i))
			from := i % worstOthers
			events.sent[i].Store(int64(time.Since(events.start)))
			return true, fleet[from].send(&packet.Publish{Topic: fmt.Sprintf("devices/dev-%d/events/worst", from), QoS: 1, ID: uint16(i%60000 + 1), Payload: payload})
		},
		nil, // the second service's
		func(i int) (bool, error) {
			_, err := get(ctx, w.hc, w.p.watchword.serverFile.URL+"/v1/self", w.token(i%worstOthers))
			return false, err
		},
		func(i int) (bool, error) {
			done, err := w.p.watchword.order(ctx, watchword.SubjectID(fmt.Sprintf("dev-%d", i%worstOthers)))
			if err == nil && !done {
				err = errors.New("a command was not done")
			}
			return true, err
		},
		func(i int) (bool, error) { return false, w.renew(ctx, i%worstOthers) },
	}
	var wg sync.WaitGroup
	for act, do := range acts {
		if do == nil {
			continue
		}
		wg.Go(func() {
			rate := worstActs[act].rate
			began := time.Now()
			for i := range rate * w.seconds {
				time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(rate))))
				wg.Go(func() {
					at := time.Now()
					if lost, err := do(i); err != nil {
						r.missed(lost && act != 0, err) // what is lost of events is counted below
					} else if act != 0 {
						r.note(act, time.Since(at))
					}
				})
			}
		})
	}
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(time.Duration(w.seconds)*time.Second + 3*time.Minute): // an order takes 90 s at the most
		return nil, errors.New("three minutes after the turn some of its requests have not ended")
	}
	for i, c := range services {
		for end := time.Now().Add(20 * time.Second); events.n[i].Load() < int64(total) && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		for range total - int(events.n[i].Load()) {
			r.missed(true, fmt.Errorf("the service %d did not receive an event", i))
		}
		select {
		case <-c.end:
			r.missed(true, fmt.Errorf("the connection of the service %d ended: %+v, %w", i, c.last, c.err))
		default:
		}
	}
	return r, over()
}

// othersEvents returns filters for the events of all devices but the attacker.
func othersEvents() (out []string) {
	for i := range worstOthers {
		out = append(out, fmt.Sprintf("devices/dev-%d/events/#", i))
	}
	return out
}

// service connects a client of an operator, who may receive all events.
func (w *attackBench) service(ctx context.Context, suffix string, filters []string, on func(*message)) (*client, error) {
	srv := w.p.watchword
	password, err := srv.assertion()
	if err != nil {
		return nil, err
	}
	c, err := dial(ctx, srv.serverFile.MQTTS, srv.tls, string(srv.serverFile.Operator)+"/"+suffix, password, on)
	if err != nil {
		return nil, err
	}
	for _, f := range filters {
		if err := c.subscribe(f, 1); err != nil {
			waitClosed(c)
			return nil, err
		}
	}
	return c, nil
}

// fleet connects the other devices, which keep to their rates.
func (w *attackBench) fleet(ctx context.Context, r *attackRound) ([]*client, error) {
	fleet := make([]*client, 0, worstOthers)
	for i := range worstOthers {
		d := &w.p.watchword.devices[i]
		up := &packet.Publish{Topic: fmt.Sprintf("devices/%s/receipts", d.id), QoS: 1}
		var c *client
		ready := make(chan struct{})
		c, err := dial(ctx, w.p.watchword.serverFile.MQTTS, w.p.watchword.tls, string(d.id), w.token(i), func(m *message) {
			<-ready
			receipt, err := d.obey(string(m.Payload))
			if err != nil {
				r.missed(true, err)
				return
			}
			up.ID = 60001 + up.ID%5000 // those of events are below
			up.Payload = []byte(receipt)
			_ = c.send(up) // a lost one is missed where it was ordered
		})
		close(ready)
		if err != nil {
			return fleet, err
		}
		fleet = append(fleet, c)
		if err := c.subscribe(fmt.Sprintf("devices/%s/commands", d.id), 1); err != nil {
			return fleet, err
		}
		go func() { // without waiting for PUBACKs
			for {
				select {
				case <-c.acks:
				case <-c.end:
					return
				}
			}
		}()
	}
	return fleet, nil
}

func (w *attackBench) token(i int) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.p.watchword.devices[i].token
}

// renew gets a newer access token for the i-th device.
func (w *attackBench) renew(ctx context.Context, i int) error {
	srv := w.p.watchword
	assertion, err := token.SignAssertion(srv.devices[i].signer, srv.devices[i].id, srv.serverFile.Issuer, time.Now(), token.AssertionLifetime)
	if err != nil {
		return err
	}
	form := url.Values{
		"grant_type": {"client_credentials"}, "client_assertion": {assertion},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, srv.serverFile.URL+"/oauth/token", strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	b, err := answer(w.hc, req)
	if err != nil {
		return err
	}
	var got struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal(b, &got); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	srv.devices[i].token = got.Token
	return nil
}

// attack starts one turn of the attacker and returns once it has begun; over waits for its end.
func (w *attackBench) attack(ctx context.Context, number int) (over func() error, err error) {
	srv := w.p.watchword
	id := srv.devices[len(srv.devices)-1].id
	raw, err := json.Marshal(&attack{
		ID: id, Folder: filepath.Join(w.dir, "devices", string(id)), Issuer: srv.serverFile.Issuer, URL: srv.serverFile.URL, MQTTS: srv.serverFile.MQTTS, CA: srv.serverFile.CA,
		Turn: number, Seconds: float64(w.seconds + 2),
	})
	if err != nil {
		return nil, err
	}
	path := filepath.Join(w.dir, "attack.json")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, time.Duration(w.seconds)*time.Second+2*time.Minute, errors.New("the attacker did not end within two minutes of its turn"))
	c := exec.CommandContext(ctx, "nice", "-n", "19", self, "-attack", path)
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		cancel()
		return nil, err
	}
	if err := c.Start(); err != nil {
		cancel()
		return nil, err
	}
	lines := bufio.NewReader(out)
	over = func() error {
		defer cancel()
		rest, rerr := io.ReadAll(lines)
		if err := errors.Join(rerr, c.Wait()); err != nil {
			return errors.Join(context.Cause(ctx), err)
		}
		var done []attackResult
		if err := json.Unmarshal(bytes.TrimSpace(rest), &done); err != nil {
			return err
		}
		if w.attacker == nil {
			w.attacker = make([]attackResult, len(done))
		}
		for i, d := range done {
			sum := &w.attacker[i]
			sum.Name = d.Name
			sum.Did[0] += d.Did[0]
			if sum.Did[1] += d.Did[1]; d.Last != "" {
				sum.Last = d.Last
			}
		}
		return nil
	}
	if line, err := lines.ReadString('\n'); err != nil || line != "begins\n" {
		return nil, errors.Join(fmt.Errorf("the attacker says %q", line), err, over())
	}
	return over, nil
}
