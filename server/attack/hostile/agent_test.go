package hostile_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword/server/attack/hostile"
	"github.com/watchword-iot/watchword/server/attack/hostile/devices"
)

// agentCases is the cases that the agent meets as a program, over TCP and in real time: one of each
// kind, since the code behind it is that of the device in this process.
var agentCases = []string{
	"a foreign server that says the device is revoked",
	"a foreign server that is busy for an hour",
	"a foreign server with 3 MB of headers",
	"a foreign server that passes everything on",
	"connections that are closed at once",
	"no commands, at once",
	"20,000 commands that are none",
	"functions are refused",
	"receipts that are not taken",
	"every token is refused as token_expired",
	"GOAWAY at once",
	"every HTTP/2 stream is reset",
	"DISCONNECT over MQTT",
	"PUBLISH of 256 MB",
	"64 commands of 100 kB",
	"AUTH without end",
	"SUBACK that denies all",
	"commands that are forged",
	"every command 20 times",
	"every command of before, in each connection",
}

// agentLimits are for real time. A device that has failed for two seconds waits for four at most; the
// rest is for a busy machine and measures nothing.
var agentLimits = hostile.Limits{Duration: 4 * time.Second, MaxPause: 60 * time.Second, Deadline: 60 * time.Second, PerSecond: 40, PerMinute: 240}

// agentMemory is what the agent may hold at most, in bytes: a Go program of 30 MB, and room for what
// one answer and one packet may have.
const agentMemory = 160 << 20

var agentBinary = sync.OnceValues(func() (string, error) {
	path := filepath.Join(temporary, "watchword")
	out, err := exec.Command("go", "build", "-o", path, "../../../cmd/watchword").CombinedOutput()
	if err != nil {
		return string(out), err
	}
	return path, nil
})

func TestAgentPassesCasesOfEachKind(t *testing.T) {
	bin, err := agentBinary()
	if err != nil {
		t.Fatalf("%v: %s", err, bin)
	}
	cases := map[string]hostile.Case{}
	for _, c := range hostile.Cases() {
		cases[c.Name] = c
	}
	type seen struct {
		said string
		err  error
	}
	var mu sync.Mutex
	saw := map[string]seen{}
	var met sync.WaitGroup
	turn := make(chan struct{}, 10) // they wait most of the time: parallel tests would be as few as there are cores
	for _, name := range agentCases {
		c, ok := cases[name]
		if !ok {
			t.Errorf("there is no case %q", name)
			continue
		}
		dir := t.TempDir()
		met.Add(1)
		turn <- struct{}{}
		go func() {
			defer met.Done()
			defer func() { <-turn }()
			said, err := runAgentCase(t.Context(), bin, dir, c)
			mu.Lock()
			defer mu.Unlock()
			saw[name] = seen{said, err}
		}()
	}
	met.Wait()
	for name, s := range saw {
		t.Run(name, func(t *testing.T) {
			t.Log(s.said)
			if s.err != nil {
				t.Error(s.err)
			}
		})
	}
}

// runAgentCase lets an agent meet one case.
func runAgentCase(ctx context.Context, bin, dir string, c hostile.Case) (said string, err error) {
	https, err1 := net.Listen("tcp", "127.0.0.1:0")
	mqtts, err2 := net.Listen("tcp", "127.0.0.1:0")
	if err := errors.Join(err1, err2); err != nil {
		return "", err
	}
	s, err := hostile.New(https, mqtts)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	a := devices.NewAgent(bin, dir)
	if err := errors.Join(a.Enroll(ctx, s.Link()), a.Start()); err != nil {
		return "", err
	}
	c.Bytes = 0 // what the kernel holds for the agent counts too
	out, err := c.Run(ctx, s, a, agentLimits)
	if serr := a.Stop(); serr != nil {
		err = errors.Join(err, fmt.Errorf("at its end: %w", serr))
	}
	m := a.Memory()
	if m > agentMemory {
		err = errors.Join(err, fmt.Errorf("it held %d MB", m>>20))
	}
	said = fmt.Sprintf("%+v, %d MB", out, m>>20)
	if err != nil {
		said += "\n" + a.Output()
	}
	return said, err
}
