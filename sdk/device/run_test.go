package device

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/token"
)

func done(context.Context, *Command) (any, error) { return nil, nil }

// Each request of a task stalls, or is refused, permanently: commands are received and executed nevertheless.
func TestTasksDoNotDelayCommands(t *testing.T) {
	refuse := func(w http.ResponseWriter, _ *http.Request) {
		problem(w, http.StatusInternalServerError, watchword.Internal, "")
	}
	for _, tc := range []struct {
		name     string
		overMQTT bool
		stall    bool
	}{{"refused, over MQTT", true, false}, {"stalled, over MQTT", true, true}, {"refused, over HTTPS", false, false}, {"stalled, over HTTPS", false, true}} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newFakeServer(t)
			bad := refuse
			if tc.stall {
				bad = s.stall
			}
			for _, route := range []string{"PUT /v1/self/functions", "GET /v1/self/config", "GET /v1/trust", "POST /v1/self/keys", "POST /v1/time"} {
				s.handle(route, bad)
			}
			d := s.device(tc.overMQTT, Options{})
			d.Handle("f", done)
			d.OnConfig(func(context.Context, Config) error { return nil })
			n, err := makeNextKeys(RekeyOptions{Sign: "P-256"})
			if err != nil {
				t.Fatal(err)
			}
			d.keyChange.set(n)
			jwe := s.order(d, 1, "f")
			s.run(d)
			if tc.overMQTT {
				s.connected("a connection").hand(1, jwe)
			}
			if seq, st := s.receipt("the command"); seq != 1 || st != watchword.StatusDone {
				t.Errorf("%d is %s", seq, st)
			}
		})
	}
}

// HTTPS would refuse a suspended device with the same code as MQTT: the device sends no HTTPS request, and is connected
// over MQTT within a pause of the end of the suspension.
func TestASuspendedDeviceComesBackOverMQTT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newBubbleServer(t)
		s.beginWith(func(c *fakeConn) bool {
			a := &packet.Connack{Code: packet.NotAuthorized}
			a.Properties.SetText(packet.ReasonString, string(watchword.SubjectSuspended)+": a test says so")
			c.send(a)
			_, _ = c.read() // until the device has read it and disconnects
			return false
		})
		s.run(s.device(true, Options{}))
		time.Sleep(10 * time.Minute)
		s.beginWith(nil)
		begun := time.Now()
		s.connected("a connection")
		if duration := time.Since(begun); duration > backoffMax {
			t.Errorf("it is back after %s", duration)
		}
		for len(s.asked) > 0 {
			if route := <-s.asked; route == "GET /v1/self/commands" {
				t.Fatal("it asked for commands over HTTPS")
			}
		}
	})
}

// A command expires while a function runs: the connection stays open, with the following commands.
func TestACommandThatExpiresWhileItWaitsCostsNoConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newBubbleServer(t)
		d := s.device(true, Options{})
		d.Handle("f", done)
		d.Handle("slow", func(context.Context, *Command) (any, error) {
			time.Sleep(10 * time.Minute)
			return nil, nil
		})
		s.run(d)
		c := s.connected("a connection")
		c.hand(1, s.order(d, 1, "slow"))
		c.hand(2, s.orderFor(d, 2, "f", time.Minute))
		c.hand(3, s.order(d, 3, "f"))
		time.Sleep(11 * time.Minute)
		for _, want := range []int64{1, 3} {
			if seq, st := s.receipt("a command"); seq != want || st != watchword.StatusDone {
				t.Errorf("%d is %s", seq, st)
			}
			if id := testwait.For(t, "PUBACK", c.acked); int64(id) != want {
				t.Errorf("%d is acknowledged", id)
			}
		}
		if id := testwait.For(t, "PUBACK of the command that expired", c.rejected); id != 2 {
			t.Errorf("%d is rejected", id)
		}
		select {
		case <-c.ended:
			t.Error("the connection ended")
		default:
		}
	})
}

// The token endpoint stalls permanently: MQTT needs no token, so commands arrive over it without delay.
func TestNoConnectionWaitsForAToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newBubbleServer(t)
		s.handle("POST /oauth/token", s.stall)
		d := s.device(true, Options{})
		d.Handle("f", done)
		begun := time.Now()
		s.run(d)
		for id := range uint16(3) {
			c := s.connected("a connection")
			c.hand(id+1, s.order(d, int64(id)+1, "f"))
			if seq, st := s.receipt("the command"); seq != int64(id)+1 || st != watchword.StatusDone {
				t.Errorf("%d is %s", seq, st)
			}
			if duration := time.Since(begun); duration > initialTaskWait+backoffMin {
				t.Errorf("connection %d took %s", id+1, duration)
			}
			synctest.Wait() // the receipt is acknowledged: without that it would be tried over HTTPS
			_ = c.nc.Close()
			begun = time.Now()
		}
	})
}

func TestADeviceWithoutTimeAnswerConnects(t *testing.T) {
	t.Parallel()
	s := newFakeServer(t)
	s.handle("POST /v1/time", s.stall)
	s.run(s.device(true, Options{NoClock: true}))
	s.connected("a connection")
}

// signed returns a configuration of a version.
func (s *fakeServer) config(version int64) []byte {
	s.t.Helper()
	raw, err := token.SignConfig(s.command, token.Config{Issuer: s.https.URL, Device: "lamp-1", Version: version, Document: json.RawMessage(`{}`), Issued: time.Now()})
	if err != nil {
		s.t.Fatal(err)
	}
	return []byte(raw)
}

func (c *fakeConn) configure(version int64) {
	c.send(&packet.Publish{Topic: "devices/lamp-1/config", Payload: c.s.config(version)})
}

func TestAHandlerOfConfigurationsNeverHoldsUpCommands(t *testing.T) {
	t.Parallel()
	s := newFakeServer(t)
	d := s.device(true, Options{})
	d.Handle("f", done)
	var running, limit atomic.Int64
	told, hung, release := make(chan int64, 10), make(chan error, 1), make(chan struct{})
	d.OnConfig(func(ctx context.Context, c Config) error {
		limit.Store(max(limit.Load(), running.Add(1)))
		defer running.Add(-1)
		told <- c.Version
		switch c.Version {
		case 1:
			return errors.New("cannot be applied")
		case 2:
			panic("nor this")
		case 3:
			<-release
		case 5:
			<-ctx.Done()
			hung <- context.Cause(ctx)
		}
		return nil
	})
	end, ended := s.run(d)
	c := s.connected("a connection")
	obeyed := func(when string, seq int64) {
		t.Helper()
		c.hand(uint16(seq), s.order(d, seq, "f"))
		if n, st := s.receipt("a command " + when); n != seq || st != watchword.StatusDone {
			t.Errorf("%s: %d is %s", when, n, st)
		}
	}
	heard := func(want int64) {
		t.Helper()
		for {
			if v := testwait.For(t, "the next version", told); v == want {
				return
			} else if v > want {
				t.Fatalf("version %d, and not %d", v, want)
			}
		}
	}
	c.configure(1)
	heard(1)
	heard(1) // again
	obeyed("after an error", 1)
	c.configure(2)
	heard(2)
	obeyed("after a panic", 2)
	c.configure(3)
	heard(3)
	c.configure(4)
	c.configure(5) // the newest of those that came meanwhile
	obeyed("while the handler runs", 3)
	close(release)
	heard(5)
	c.configure(1)
	obeyed("after a version that is lower", 4)
	if limit.Load() != 1 {
		t.Errorf("%d handlers at once", limit.Load())
	}
	end()
	if cause := testwait.For(t, "the end of the handler", hung); !errors.Is(cause, ErrStopping) {
		t.Errorf("its context ended for %v", cause)
	}
	if err := testwait.For(t, "the end of Run", ended); err != nil {
		t.Error(err)
	}
}

// lines is a log that tests read.
type lines struct {
	mu  sync.Mutex
	all strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

func TestValidFunctionsAreAnnouncedThoughOthersAreNot(t *testing.T) {
	for _, tc := range []struct {
		name     string
		refuse   map[string]string // function to the field of the refusal
		want     []string          // announced in the end; nil for nothing
		reported []string
	}{
		{"all are good", nil, []string{"a.schema", "b", "c"}, nil},
		{"the server names one", map[string]string{"b": "functions.b"}, []string{"a.schema", "c"}, []string{"b"}},
		{"the server names two", map[string]string{"a.schema": "functions.a.schema", "c": "functions.c"}, []string{"b"}, []string{"a.schema", "c"}},
		{"the server names none", map[string]string{"c": "body"}, []string{"a.schema", "b"}, []string{"c"}},
		{"all are refused", map[string]string{"a.schema": "functions.a.schema", "b": "functions.b", "c": "functions.c"}, nil, []string{"a.schema", "b", "c"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newFakeServer(t)
			taken := make(chan []string, 10)
			s.handle("PUT /v1/self/functions", func(w http.ResponseWriter, r *http.Request) {
				var in struct{ Functions []struct{ Name string } }
				if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
					t.Error(err)
				}
				names := []string{}
				for _, f := range in.Functions {
					if field, no := tc.refuse[f.Name]; no {
						problem(w, http.StatusBadRequest, watchword.BadRequest, field)
						return
					}
					names = append(names, f.Name)
				}
				taken <- names
				w.WriteHeader(http.StatusNoContent)
			})
			log := &lines{}
			d := s.device(true, Options{Log: slog.New(slog.NewTextHandler(log, nil))})
			d.HandleFunction(Function{"a.schema", []byte(`{"type":"object"}`)}, done)
			d.HandleFunction(Function{"b", nil}, done)
			d.HandleFunction(Function{"c", []byte(`{"type":"object","properties":{}}`)}, done)
			if err := newRun(d).announce(t.Context()); err != nil {
				t.Fatal(err)
			}
			close(taken)
			if got := <-taken; !slices.Equal(got, tc.want) {
				t.Errorf("announced %q", got)
			}
			for _, name := range tc.reported {
				if !strings.Contains(log.String(), "function="+name+" ") {
					t.Errorf("nothing said of %s:\n%s", name, log)
				}
			}
			if n := strings.Count(log.String(), "level=ERROR"); n != len(tc.reported) {
				t.Errorf("%d reports:\n%s", n, log)
			}
		})
	}
}

func TestASchemaThatIsNoJSONIsLeftOutByName(t *testing.T) {
	s := newFakeServer(t)
	d := s.device(false, Options{})
	err := d.Announce(t.Context(), Function{"a", []byte(`{}`)}, Function{"b", []byte(`{`)})
	if e, ok := errors.AsType[*watchword.Error](err); !ok || e.Code != watchword.BadRequest || e.Field != "functions.b" {
		t.Errorf("got %v", err)
	}
}

// While a function runs and a command waits, the device refreshes its session, loses its connection and reconnects. Each
// command is executed once, and acknowledged when it was begun.
func TestADeviceListensWhileAFunctionRuns(t *testing.T) {
	s := newFakeServer(t)
	d := s.device(true, Options{})
	var acts atomic.Int64
	begun, release := make(chan struct{}), make(chan struct{})
	d.Handle("slow", func(context.Context, *Command) (any, error) {
		acts.Add(1)
		close(begun)
		<-release
		return nil, nil
	})
	d.Handle("f", func(context.Context, *Command) (any, error) { acts.Add(1); return nil, nil })
	s.run(d)
	one, two := s.order(d, 1, "slow"), s.order(d, 2, "f")
	c := s.connected("a connection")
	c.hand(1, one)
	testwait.For(t, "the function", begun)
	if id := testwait.For(t, "the acknowledgement of the command that runs", c.acked); id != 1 {
		t.Errorf("acknowledged %d", id)
	}
	c.hand(2, two)
	refreshed(t, c)
	if _, seq := d.Position(); seq != 1 {
		t.Errorf("it is at %d", seq)
	}
	_ = c.nc.Close()
	again := s.connected("another connection")
	testwait.For(t, "the end of the first", c.ended)
	if len(c.acked) != 0 {
		t.Errorf("%d was acknowledged and not begun", <-c.acked)
	}
	var hello hello
	if err := json.Unmarshal(testwait.For(t, "a greeting", again.received).Payload, &hello); err != nil || hello.Seq != 1 {
		t.Errorf("it says that it is at %d, %v", hello.Seq, err)
	}
	again.hand(1, one) // as a server does that did not receive it
	again.hand(2, two)
	refreshed(t, again)
	close(release)
	for want := range int64(2) {
		seq, st := s.receipt("a command")
		for seq == want && st == watchword.StatusDone { // of the one that came twice: it is sent for each time
			seq, st = s.receipt("a command")
		}
		if seq != want+1 || st != watchword.StatusDone {
			t.Errorf("%d is %s", seq, st)
		}
	}
	for want := range uint16(2) {
		if id := testwait.For(t, "an acknowledgement", again.acked); id != want+1 {
			t.Errorf("acknowledged %d", id)
		}
	}
	if acts.Load() != 2 {
		t.Errorf("acted %d times", acts.Load())
	}
}

// refreshed requests a refresh from a device, and waits for it.
func refreshed(t *testing.T, c *fakeConn) {
	t.Helper()
	c.send(&packet.Publish{Topic: authTopic, Payload: []byte(`{"type":"refresh"}`)})
	for {
		if p := testwait.For(t, "a refresh", c.received); p.Topic == authTopic {
			return
		}
	}
}

func TestADevicePollsWhileAFunctionRuns(t *testing.T) {
	s := newFakeServer(t)
	d := s.device(false, Options{})
	begun, release := make(chan struct{}), make(chan struct{})
	var acts atomic.Int64
	d.Handle("slow", func(context.Context, *Command) (any, error) {
		acts.Add(1)
		close(begun)
		<-release
		return nil, nil
	})
	d.Handle("f", func(context.Context, *Command) (any, error) { acts.Add(1); return nil, nil })
	s.order(d, 1, "slow")
	s.run(d)
	testwait.For(t, "the function", begun)
	polled := func() {
		t.Helper()
		for {
			if testwait.For(t, "a poll", s.asked) == "GET /v1/self/commands" {
				return
			}
		}
	}
	for len(s.asked) > 0 {
		<-s.asked
	}
	polled() // with what was begun as acknowledged
	s.order(d, 2, "f")
	polled()
	if _, seq := d.Position(); seq != 1 {
		t.Errorf("it is at %d", seq)
	}
	close(release)
	for last := int64(0); last < 2; {
		seq, st := s.receipt("a command") // that of the first may come twice, as the command did
		if seq < last || seq > last+1 || st != watchword.StatusDone {
			t.Errorf("%d is %s", seq, st)
		}
		last = seq
	}
	if acts.Load() != 2 {
		t.Errorf("acted %d times", acts.Load())
	}
}

func TestWhereRunEndsAFunctionIsCutOff(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want watchword.ReceiptStatus
	}{
		"and says so":            {errors.New("signal: killed"), watchword.StatusInterrupted},
		"with a code of its own": {Fail("killed", nil), watchword.StatusInterrupted},
		"that will not":          {Refuse("no", nil), watchword.StatusRefused},
		"and is done":            {nil, watchword.StatusDone},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newFakeServer(t)
			d := s.device(true, Options{})
			begun, why := make(chan struct{}), make(chan error, 1)
			d.Handle("slow", func(ctx context.Context, _ *Command) (any, error) {
				close(begun)
				<-ctx.Done()
				why <- context.Cause(ctx)
				return nil, tc.err
			})
			end, ended := s.run(d)
			s.connected("a connection").hand(1, s.order(d, 1, "slow"))
			testwait.For(t, "the function", begun)
			end()
			if err := testwait.For(t, "the end of Run", ended); err != nil {
				t.Error(err)
			}
			if cause := <-why; !errors.Is(cause, ErrStopping) {
				t.Errorf("its context ended for %v", cause)
			}
			if a := d.journal.find(position{1, 1}); a == nil || a.Receipt == "" || readReceipt(t, a.Receipt).Status != tc.want {
				t.Errorf("the receipt on the disk is %+v, want %s", a, tc.want)
			}
			select {
			case raw := <-s.receipts:
				if st := readReceipt(t, raw).Status; st != tc.want {
					t.Errorf("the server has %s, want %s", st, tc.want)
				}
			default:
				t.Error("Run ended, and the receipt was not handed in")
			}
		})
	}
}

// A server that does not answer does not prevent the end of Run; the next start sends the receipt.
func TestAReceiptThatCannotBeHandedInAtTheEndIsHandedInLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newBubbleServer(t)
		d := s.device(true, Options{})
		begun := make(chan struct{})
		d.Handle("slow", func(ctx context.Context, _ *Command) (any, error) {
			close(begun)
			<-ctx.Done()
			return nil, ctx.Err()
		})
		s.handle("POST /v1/self/receipts", s.stall)
		end, ended := s.run(d)
		s.connected("a connection").hand(1, s.order(d, 1, "slow"))
		testwait.For(t, "the function", begun)
		at := time.Now()
		end()
		if err := testwait.For(t, "the end of Run", ended); err != nil {
			t.Error(err)
		}
		if duration := time.Since(at); duration < finalReceiptTimeout || duration > finalReceiptTimeout+time.Second {
			t.Errorf("Run ended after %s, want %s", duration, finalReceiptTimeout)
		}
		s.handle("POST /v1/self/receipts", func(_ http.ResponseWriter, r *http.Request) {
			var in struct{ Receipt string }
			if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
				t.Error(err)
			}
			s.receipts <- in.Receipt
		})
		end, ended = s.run(d)
		if _, st := s.receipt("the command"); st != watchword.StatusInterrupted {
			t.Errorf("the server has %s, want interrupted", st)
		}
		end()
		testwait.For(t, "the end of Run", ended)
	})
}

func TestARefusedReceiptDoesNotBlockOthers(t *testing.T) {
	for _, code := range []watchword.Code{watchword.Internal, watchword.ReceiptInvalid, watchword.Denied} {
		t.Run(string(code), func(t *testing.T) {
			t.Parallel()
			s := newFakeServer(t)
			refused := make(chan string, 10)
			s.handle("POST /v1/self/receipts", func(w http.ResponseWriter, r *http.Request) {
				var in struct{ Receipt string }
				b, err := io.ReadAll(r.Body)
				if err != nil || json.Unmarshal(b, &in) != nil {
					t.Error(err)
				}
				if readReceipt(t, in.Receipt).Seq == 1 {
					refused <- in.Receipt
					problem(w, 422, code, "")
					return
				}
				s.receipts <- in.Receipt
			})
			d := s.device(false, Options{})
			d.Handle("f", done)
			s.order(d, 1, "f")
			s.order(d, 2, "f")
			end, ended := s.run(d)
			testwait.For(t, "the first receipt", refused)
			if seq, _ := s.receipt("the second command"); seq != 2 {
				t.Errorf("the receipt is of %d", seq)
			}
			end()
			testwait.For(t, "the end of Run", ended)
			if a := d.journal.find(position{1, 1}); a == nil || a.Sent {
				t.Errorf("a refused receipt is marked as sent: %+v", a)
			}
			if len(refused) != 0 {
				t.Error("it was sent again at once")
			}
		})
	}
}

// A command waits where neither the journal nor the counters can be written, and is done once they can.
func TestACommandWaitsForTheJournal(t *testing.T) {
	s := newFakeServer(t)
	d := s.device(false, Options{})
	d.Handle("f", done)
	full := &faultDisk{Disk: durable.OS{}}
	full.fail.Store(true)
	d.journal.disk, d.journal.f, d.journal.counters.disk = full, nil, full
	s.order(d, 1, "f")
	end, ended := s.run(d)
	for bounded := testwait.Within(); full.failed.Load() < 3; time.Sleep(time.Millisecond) {
		bounded.Check(t, "three tries to write the journal")
	}
	if _, seq := d.Position(); seq != 0 {
		t.Errorf("number %d was begun", seq)
	}
	full.fail.Store(false)
	if seq, st := s.receipt("the command"); seq != 1 || st != watchword.StatusDone {
		t.Errorf("%d is %s", seq, st)
	}
	end()
	if err := testwait.For(t, "the end of Run", ended); err != nil {
		t.Error(err)
	}
}

// A receipt that the server refuses for its content, or for its key, is replaced once and said
// again; those behind it go on.
func TestARefusedReceiptIsReplaced(t *testing.T) {
	for name, tc := range map[string]struct {
		result string
		by     func(t *testing.T, d *Device) *jose.Signer
		st     watchword.ReceiptStatus
		want   string
	}{
		"of a build that did not check":   {`{"a":1,"a":2}`, nil, watchword.StatusFailed, `"result_invalid"`},
		"by a key that counts no more":    {`{"lux":7}`, func(t *testing.T, _ *Device) *jose.Signer { return testSigner(t) }, watchword.StatusDone, `{"lux":7}`},
		"of such a build, by such a key":  {`"\ud800"`, func(t *testing.T, _ *Device) *jose.Signer { return testSigner(t) }, watchword.StatusFailed, `"result_invalid"`},
		"that is nested, and has no jti":  {`[[[[[[[[1]]]]]]]]`, nil, watchword.StatusFailed, `"result_invalid"`},
		"that is good, and refused again": {`1`, nil, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newFakeServer(t)
			d := s.device(false, Options{})
			signer := d.signer.Load()
			if tc.by != nil {
				signer = tc.by(t, d)
			}
			hash := strings.Repeat("h", 43)
			bad, err := signer.Sign(token.TypReceipt, fmt.Appendf(nil, `{"iss":"lamp-1","aud":%q,"jti":"j","iat":1,"epoch":1,"seq":1,"cid":"cmd_1","ch":%q,"st":"done","result":%s}`, s.https.URL, hash, tc.result))
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range []journalRecord{
				{"begin", execution{position: position{1, 1}, ID: "cmd_1", Hash: hash}}, {"end", execution{position: position{1, 1}, ID: "cmd_1", Hash: hash, Receipt: bad}},
			} {
				if err := d.journal.write(r, true); err != nil {
					t.Fatal(err)
				}
			}
			refused := make(chan string, 100)
			s.handle("POST /v1/self/receipts", func(w http.ResponseWriter, r *http.Request) {
				var in struct{ Receipt string }
				if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
					t.Error(err)
				}
				got, _, err := token.VerifyReceipt(in.Receipt, token.NewKeySet(d.signer.Load().Public()), "lamp-1", s.https.URL)
				if err != nil || tc.st == "" && got.Seq == 1 {
					refused <- in.Receipt
					problem(w, http.StatusUnprocessableEntity, watchword.ReceiptInvalid, "")
					return
				}
				s.receipts <- in.Receipt
			})
			d.Handle("f", done)
			s.order(d, 2, "f")
			end, ended := s.run(d)
			if raw := testwait.For(t, "the refused one", refused); raw != bad {
				t.Errorf("another was refused: %s", raw)
			}
			first, second := int64(1), int64(2)
			if tc.st == "" {
				first = 2
			}
			seen := map[int64]bool{}
			for len(seen) < int(second-first)+1 {
				raw := testwait.For(t, "a receipt", s.receipts)
				r, _, err := token.VerifyReceipt(raw, token.NewKeySet(d.signer.Load().Public()), "lamp-1", s.https.URL)
				if err != nil {
					t.Fatal(err)
				}
				if seen[r.Seq] = true; r.Seq == 1 && (r.Status != tc.st || !strings.Contains(string(r.Result), tc.want) || r.Command != "cmd_1" || r.Hash != hash) {
					t.Errorf("in its place: %+v %s", r, r.Result)
				}
			}
			end()
			if err := testwait.For(t, "the end of Run", ended); err != nil {
				t.Error(err)
			}
			if n := len(refused); n != 0 {
				t.Errorf("refused %d more times", n)
			}
		})
	}
}

// Receipts that the server refuses permanently hold up no commands, however many they are.
func TestRefusedReceiptsHoldUpNoCommands(t *testing.T) {
	s := newFakeServer(t)
	d := s.device(false, Options{})
	d.journal.disk, d.counters.disk = lazyDisk{}, lazyDisk{}
	const many = maxUnansweredReceipts + 5
	for seq := range int64(many) {
		p, id := position{1, seq + 1}, watchword.CommandID(fmt.Sprint("cmd_", seq+1))
		for _, r := range []journalRecord{{"begin", execution{position: p, ID: id, Hash: "h"}}, {"end", execution{position: p, ID: id, Hash: "h", Receipt: fmt.Sprint("rrr", seq)}}} {
			if err := d.journal.write(r, true); err != nil {
				t.Fatal(err)
			}
		}
	}
	last := make(chan struct{}, 1)
	s.handle("POST /v1/self/receipts", func(w http.ResponseWriter, r *http.Request) {
		var in struct{ Receipt string }
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		if !strings.HasPrefix(in.Receipt, "rrr") { // of no journal here
			last <- struct{}{}
			return
		}
		problem(w, http.StatusConflict, watchword.Conflict, "")
	})
	d.Handle("f", done)
	s.order(d, many+1, "f")
	end, ended := s.run(d)
	testwait.For(t, "the receipt of the command behind them", last)
	end()
	if err := testwait.For(t, "the end of Run", ended); err != nil {
		t.Error(err)
	}
}

// With as many receipts as may wait for the server's answer no further command is begun, until
// one is taken.
func TestUnansweredReceiptsHoldUpCommands(t *testing.T) {
	s := newFakeServer(t)
	d := s.device(false, Options{})
	d.journal.disk, d.counters.disk = lazyDisk{}, lazyDisk{}
	for seq := range int64(maxUnansweredReceipts) {
		p, id := position{1, seq + 1}, watchword.CommandID(fmt.Sprint("cmd_", seq+1))
		for _, r := range []journalRecord{{"begin", execution{position: p, ID: id, Hash: "h"}}, {"end", execution{position: p, ID: id, Hash: "h", Receipt: fmt.Sprint("rrr", seq)}}} {
			if err := d.journal.write(r, true); err != nil {
				t.Fatal(err)
			}
		}
	}
	tried := make(chan struct{}, maxUnansweredReceipts)
	var answers atomic.Bool
	s.handle("POST /v1/self/receipts", func(w http.ResponseWriter, _ *http.Request) {
		if !answers.Load() {
			tried <- struct{}{}
			problem(w, http.StatusServiceUnavailable, watchword.Unavailable, "")
		}
	})
	acted := make(chan struct{}, 1)
	d.Handle("f", func(context.Context, *Command) (any, error) {
		acted <- struct{}{}
		return nil, nil
	})
	s.order(d, maxUnansweredReceipts+1, "f")
	end, ended := s.run(d)
	for range 3 { // half a second and more is between two
		testwait.For(t, "a receipt", tried)
	}
	if len(acted) != 0 {
		t.Error("a command was begun with as many receipts waiting as may wait")
	}
	answers.Store(true)
	testwait.For(t, "the command, once a receipt was taken", acted)
	end()
	if err := testwait.For(t, "the end of Run", ended); err != nil {
		t.Error(err)
	}
}
