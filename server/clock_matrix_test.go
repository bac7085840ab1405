//go:build unix

package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testport"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
)

// The jumps of a clock that a server and a device get over by themselves. 0 stands for 1970.
var clockJumps = []time.Duration{time.Hour, -time.Hour, 29 * day, -29 * day, 400 * day, -400 * day, 0}

const day = 24 * time.Hour

func offset(jump time.Duration) time.Duration {
	switch jump {
	case 0:
		return time.Until(time.Unix(3600, 0))
	case time.Hour: // exactly as much as a clock may be ahead: whether it is trusted would depend on the nanosecond
		return jump + time.Second
	}
	return jump
}

func jumpName(jump time.Duration) string {
	switch {
	case jump == 0:
		return "1970"
	case jump.Abs() < day:
		return fmt.Sprintf("%+dh", jump/time.Hour)
	}
	return fmt.Sprintf("%+dd", jump/day)
}

// When something is started again: never, while the clock is wrong, or once it is right.
var clockRestarts = []string{"running", "restart while wrong", "restart once right"}

// jumper is a server whose clock jumps, and its devices.
type jumper struct {
	t    *testing.T
	dir  string
	m    *machine // of the server
	o    server.Options
	c    server.Config
	info server.Info
	stop func()
}

func newJumper(t *testing.T) *jumper {
	t.Helper()
	j := &jumper{t: t, dir: filepath.Join(t.TempDir(), "data"), m: &machine{}}
	j.c = config(t, j.dir)
	j.c.Server.HTTPS, j.c.Server.MQTTS = "localhost:"+testport.Reserve(t), "localhost:"+testport.Reserve(t)
	j.o = j.m.options(io.Discard, time.Now().Add(-800*day))
	j.start()
	_, err := server.AcceptClock(t.Context(), j.c, j.o) // as a time service does within a minute
	check(t, err)
	return j
}

func (j *jumper) start() { j.t.Helper(); j.info, j.stop = runAt(j.t, j.c, j.o) }

// unit is a device that runs, over MQTT or over HTTPS alone.
type unit struct {
	j    *jumper
	t    *testing.T
	id   watchword.SubjectID
	over string
	m    machine
	log  lockedBuffer
	d    *device.Device
	stop func()
}

func (j *jumper) device(t *testing.T, id watchword.SubjectID, over string) *unit {
	t.Helper()
	u := &unit{j: j, t: t, id: id, over: over}
	cl, err := admin.Local(j.dir)
	check(t, err)
	s, err := cl.CreateDevice(t.Context(), id, nil, 0)
	check(t, err)
	u.open()
	check(t, u.d.Enroll(t.Context(), s.Enrollment.Link))
	u.run()
	return u
}

func (u *unit) open() {
	u.t.Helper()
	d, err := device.OpenWith(filepath.Join(filepath.Dir(u.j.dir), string(u.id)), device.Options{
		Log: slog.New(slog.NewTextHandler(&u.log, nil)), Now: u.m.wall, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if u.over == "https" && address == u.j.c.Server.MQTTS {
				return nil, errors.New("MQTT is blocked")
			}
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	})
	check(u.t, err)
	d.Handle("lamp.set", func(context.Context, *device.Command) (any, error) { return "ok", nil })
	u.d = d
}

func (u *unit) run() {
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- u.d.Run(ctx) }()
	u.stop = sync.OnceFunc(func() {
		cancel()
		if err := testwait.For(u.t, "the end of "+string(u.id), ran); err != nil {
			u.t.Errorf("%s: %v", u.id, err)
		}
		check(u.t, u.d.Close())
	})
	u.t.Cleanup(func() { u.stop() })
}

func (u *unit) restart() {
	u.stop()
	u.open()
	u.run()
}

// obeys waits until a command passes, within a minute.
func (u *unit) obeys(when string) {
	u.t.Helper()
	begun := time.Now()
	var last any
	for time.Since(begun) < time.Minute {
		c, err := u.j.send(u.t, u.id)
		if err == nil && c == watchword.Done {
			return
		}
		if last = c; err != nil {
			last = err
		}
	}
	u.t.Log(u.log.String())
	u.t.Errorf("%s over %s: no command passes within a minute: %v", when, u.over, last)
}

// send orders a command, as an operator whose clock is right, and waits for up to two seconds.
func (j *jumper) send(t *testing.T, id watchword.SubjectID) (watchword.CommandState, error) {
	cl, err := admin.Local(j.dir)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := cl.Send(ctx, admin.CommandOrder{Device: id, Function: "lamp.set", Args: json.RawMessage(`{}`), WaitReceipt: 2 * time.Second})
	if err != nil { // nothing was ordered: the next try follows soon
		pause := time.NewTimer(100 * time.Millisecond)
		defer pause.Stop()
		<-pause.C
	}
	return c.State, err
}

// The clock of a server jumps while devices are connected, over MQTT and over HTTPS, and becomes right again. Within a minute
// commands pass, without a hand at the devices. While the clock is not trusted the server signs no time and no trust bundle.
func TestDevicesGetOverAJumpOfTheServersClock(t *testing.T) {
	var cases sync.WaitGroup // they wait much and do little: all run at the same time
	defer cases.Wait()
	for _, jump := range clockJumps {
		for _, restart := range clockRestarts {
			together(&cases, t, jumpName(jump)+" "+restart, func(t *testing.T) {
				j := newJumper(t)
				units := []*unit{j.device(t, "lamp-m", "mqtt"), j.device(t, "lamp-h", "https")}
				for _, u := range units {
					u.obeys("before")
				}
				_, bundle, err := fetch(t, "GET", j.info.URL+"/v1/trust", "")
				check(t, err)
				j.m.set(offset(jump), false)
				if restart == clockRestarts[1] {
					j.stop()
					j.start()
				}
				st, err := server.ReadClock(t.Context(), j.c, j.o)
				check(t, err)
				if !st.Trusted {
					// A certificate of the server may be out of date by its clock; then it serves no client.
					if status, body, err := fetch(t, "POST", j.info.URL+"/v1/time", `{"nonce":"`+watchword.NewNonce()+`"}`); err == nil && (status != 503 || !strings.Contains(body, `"clock_untrusted"`)) {
						t.Errorf("a clock that is not trusted signs a time: %d %s", status, body)
					}
					if _, during, err := fetch(t, "GET", j.info.URL+"/v1/trust", ""); err == nil && during != bundle {
						t.Error("a clock that is not trusted signs a trust bundle")
					}
				}
				_, _ = j.send(t, "lamp-m") // it may pass or not
				_, _ = j.send(t, "lamp-h")
				j.m.set(0, false)
				if restart == clockRestarts[2] {
					j.stop()
					j.start()
				}
				for _, u := range units {
					u.obeys("after")
				}
			})
		}
	}
}

// The same for the clock of the device.
func TestADeviceGetsOverAJumpOfItsClock(t *testing.T) {
	j := newJumper(t)
	var cases sync.WaitGroup
	defer cases.Wait()
	for n, jump := range clockJumps {
		for k, restart := range clockRestarts {
			for _, over := range []string{"mqtt", "https"} {
				together(&cases, t, jumpName(jump)+" "+restart+" "+over, func(t *testing.T) {
					u := j.device(t, watchword.SubjectID(fmt.Sprintf("lamp-%d-%d-%s", n, k, over)), over)
					u.obeys("before")
					u.m.set(offset(jump), false)
					if restart == clockRestarts[1] {
						u.restart()
					}
					_, _ = j.send(t, u.id)
					u.m.set(0, false)
					if restart == clockRestarts[2] {
						u.restart()
					}
					u.obeys("after")
				})
			}
		}
	}
}

// together runs a subtest at the same time as others, however many processors there are.
func together(all *sync.WaitGroup, t *testing.T, name string, f func(t *testing.T)) {
	all.Go(func() { t.Run(name, f) })
}
