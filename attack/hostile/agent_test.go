package hostile_test

import (
	"net"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword/attack/hostile"
	"github.com/watchword-iot/watchword/attack/hostile/devices"
)

// atAgent is the cases that the agent meets as a program, over TCP and in real time: one of each
// kind, since the code behind it is that of the device in this process.
var atAgent = []string{
	"a stranger that says the device is revoked",
	"a stranger that is busy for an hour",
	"a stranger with 10 MB of headers",
	"a stranger that passes everything on",
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
var agentLimits = hostile.Limits{Lasts: 4 * time.Second, Pause: 60 * time.Second, Deadline: 60 * time.Second, Second: 40, Minute: 240}

// agentMemory is what the agent may hold at most, in bytes: a Go program of 30 MB, and room for what
// one answer and one packet may have.
const agentMemory = 160 << 20

var agentBinary = sync.OnceValues(func() (string, error) {
	path := filepath.Join(temporary, "watchword")
	out, err := exec.Command("go", "build", "-o", path, "../../cmd/watchword").CombinedOutput()
	if err != nil {
		return string(out), err
	}
	return path, nil
})

func TestTheAgentHoldsCasesOfEachKind(t *testing.T) {
	bin, err := agentBinary()
	if err != nil {
		t.Fatalf("%v: %s", err, bin)
	}
	cases := map[string]hostile.Case{}
	for _, c := range hostile.Cases() {
		cases[c.Name] = c
	}
	for _, name := range atAgent {
		c, ok := cases[name]
		if !ok {
			t.Errorf("there is no case %q", name)
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			listen := func() net.Listener {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				check(t, err)
				return l
			}
			s, err := hostile.New(listen(), listen())
			check(t, err)
			t.Cleanup(func() { check(t, s.Close()) })
			a := devices.NewAgent(bin, t.TempDir())
			check(t, a.Enroll(t.Context(), s.Link()))
			check(t, a.Start())
			c.Bytes = 0 // what the kernel holds for the agent counts too
			out, err := c.Run(t.Context(), s, a, agentLimits)
			if err != nil {
				t.Error(err)
			}
			if m := a.Memory(); m > agentMemory {
				t.Errorf("it held %d MB", m>>20)
			}
			if err := a.Stop(); err != nil {
				t.Errorf("at its end: %v", err)
			}
			t.Logf("%+v, %d MB", out, a.Memory()>>20)
			if t.Failed() {
				t.Log(a.Output())
			}
		})
	}
}
