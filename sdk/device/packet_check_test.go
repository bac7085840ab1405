package device

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

func publishes(n int) (b []byte) {
	for id := range uint16(n) {
		b = packet.Append(b, &packet.Publish{QoS: 1, ID: id + 1, Topic: "t"}, packet.V5)
	}
	return b
}

// What a server may not send ends the connection with a reason, before it is held in memory.
func TestServerPacketsAreChecked(t *testing.T) {
	const bound = 10_000
	long := func(first byte, n int) []byte { // a header alone
		return append([]byte{first}, byte(n)|0x80, byte(n>>7)|0x80, byte(n>>14)|0x80, byte(n>>21))
	}
	whole := func(first byte, body ...byte) []byte { return append([]byte{first, byte(len(body))}, body...) }
	ones := bytes.Repeat([]byte{0xff}, 5)
	for _, tc := range []struct {
		name string
		sent []byte
		auth bool // it may send AUTH
		want byte // of DISCONNECT; 0 if the connection continues
	}{
		{"the largest packet", append([]byte{0x30, 0x8d, 0x4e}, append([]byte{0, 1, 't', 0}, make([]byte, bound-7)...)...), false, 0},
		{"a byte more", append([]byte{0x30, 0x8e, 0x4e}, 0), false, 0x95},
		{"256 MB", long(0x30, 268_435_455), false, 0x95},
		{"256 MB of PUBACK", long(0x40, 268_435_455), false, 0x95},
		{"a length without end", append([]byte{0x30}, ones...), false, 0x81},
		{"PUBLISH with flags of QoS 3", whole(0x36, 0, 1, 't', 0, 1, 0), false, 0x9b},
		{"PUBLISH with QoS 2", whole(0x34, 0, 1, 't', 0, 1, 0), false, 0x9b},
		{"PUBLISH without a body", whole(0x30), false, 0x81},
		{"PUBLISH with an empty topic", whole(0x30, 0, 0, 0), false, 0x81},
		{"PUBLISH with a topic that is cut off", whole(0x30, 0, 9, 't'), false, 0x81},
		{"PUBLISH with a long topic", append([]byte{0x30, 0x84, 0x04, 2, 1}, append(bytes.Repeat([]byte{'t'}, 513), 0)...), false, 0x81},
		{"PUBLISH with identifier 0", whole(0x32, 0, 1, 't', 0, 0, 0), false, 0x81},
		{"PUBLISH with half an identifier", whole(0x32, 0, 1, 't', 1), false, 0x81},
		{"PUBLISH without properties", whole(0x30, 0, 1, 't'), false, 0x81},
		{"properties of five bytes' length", whole(0x30, append([]byte{0, 1, 't'}, ones...)...), false, 0x81},
		{"properties that are longer than the packet", whole(0x30, 0, 1, 't', 9), false, 0x81},
		{"properties that are too long", append([]byte{0x30, 0x86, 0x20, 0, 1, 't', 0x81, 0x20}, make([]byte, 4097)...), false, 0x81},
		{"properties of CONNACK", whole(0x20, append([]byte{0, 0}, ones...)...), false, 0x81},
		{"properties of SUBACK", whole(0x90, append([]byte{0, 1}, ones...)...), false, 0x81},
		{"properties of PUBACK", whole(0x40, append([]byte{0, 1, 0}, ones...)...), false, 0x81},
		{"properties of DISCONNECT", whole(0xe0, append([]byte{0}, ones...)...), false, 0x81},
		{"properties of AUTH", whole(0xf0, append([]byte{0}, ones...)...), true, 0x81},
		{"as many messages as were agreed", publishes(receiveMaximum), false, 0},
		{"one message more", publishes(receiveMaximum + 1), false, 0x93},
		{"an identifier twice", slices.Concat(publishes(1), publishes(1)), false, 0x82},
		{"AUTH that was not requested", whole(0xf0, 0x18, 0), false, 0x82},
		{"AUTH twice", slices.Concat(whole(0xf0, 0x18, 0), whole(0xf0, 0, 0)), true, 0},
		{"AUTH three times", bytes.Repeat(whole(0xf0, 0x18, 0), 3), true, 0x82},
		{"PUBREC", whole(0x50, 0, 1), false, 0x82},
		{"PUBREL", whole(0x60, 0, 1), false, 0x82},
		{"PUBREL with its flags", whole(0x62, 0, 1), false, 0x81},
		{"PUBCOMP", whole(0x70, 0, 1), false, 0x82},
		{"CONNECT", whole(0x10, 0), false, 0x82},
		{"SUBSCRIBE", whole(0x80, 0), false, 0x82},
		{"UNSUBACK", whole(0xb0, 0, 1, 0, 0), false, 0x82},
		{"PINGREQ", whole(0xc0), false, 0x82},
		{"packet type 0", whole(0x00), false, 0x82},
		{"flags of PINGRESP", whole(0xd1), false, 0x81},
	} {
		t.Run(tc.name, func(t *testing.T) {
			here, there := net.Pipe()
			defer there.Close()
			var why error
			c := newCheckedConn(here, bound, func(err error, leave func()) { why = err; leave() })
			if tc.auth {
				c.auths.Store(authPackets)
			}
			said := make(chan []byte, 1)
			go func() {
				b, _ := io.ReadAll(there) // what was read until the end
				said <- b
			}()
			go func() { _, _ = there.Write(append(tc.sent, 0xd0, 0)) }() // and a marker; the device may be gone
			var err error
			for err == nil {
				var p *packets.ControlPacket
				if p, err = packets.ReadPacket(c); err == nil && p.Type == packets.PINGRESP {
					break
				}
			}
			if tc.want == 0 {
				if err != nil || why != nil {
					t.Fatalf("it is refused: %v", err)
				}
				_ = c.Close()
				return
			}
			v, ok := errors.AsType[*protocolViolation](why)
			if !ok || v.reason != tc.want || !errors.Is(err, v) {
				t.Errorf("got %v, %v", err, why)
			}
			if _, ok := why.(*mqttUnavailable); !ok {
				t.Error("it does not go on over HTTPS")
			}
			if got := testwait.For(t, "the end of the connection", said); !bytes.Equal(got, []byte{0xe0, 2, tc.want, 0}) {
				t.Errorf("it says % x", got)
			}
			if cap(c.body) > bound {
				t.Errorf("it holds %d bytes", cap(c.body))
			}
		})
	}
}

// Whatever is sent: what is handed on is a packet within the bound, and the MQTT client reads it or refuses it.
func FuzzCheckedConn(f *testing.F) {
	f.Add(publishes(3))
	f.Add([]byte{0x20, 3, 0, 0, 0, 0x90, 4, 0, 1, 0, 1, 0x40, 2, 0, 1, 0xd0, 0, 0xe0, 0})
	f.Add([]byte{0x30, 9, 0, 1, 't', 0xff, 0xff, 0xff, 0xff, 0x0f, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		here, there := net.Pipe()
		defer there.Close()
		go func() {
			_, _ = there.Write(b)
			_ = there.Close()
		}()
		const bound = 200
		c := newCheckedConn(here, bound, func(_ error, leave func()) { leave() })
		c.auths.Store(authPackets)
		for open := 0; ; {
			p, err := packets.ReadPacket(c)
			if err != nil {
				return
			}
			if len(c.body) > bound {
				t.Errorf("a packet of %d bytes", len(c.body))
			}
			if q, ok := p.Content.(*packets.Publish); ok && q.QoS > 0 {
				if open++; open > receiveMaximum {
					t.Errorf("%d messages", open)
				}
			}
		}
	})
}

// Lengths whose sum is beyond what 32 bits hold make no negative size; go test on 386 and arm runs it too.
func TestRandomPacketsAreReadOrRefused(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		b := make([]byte, random.IntN(40)+1)
		for i := range b {
			b[i] = byte(random.Uint32())
			if random.IntN(3) == 0 {
				b[i] = 0xff
			}
		}
		b[0] = byte(random.IntN(16)) << 4
		if len(b) > 1 {
			b[1] = byte(len(b) - 2)
		}
		here, there := net.Pipe()
		go func() {
			_, _ = there.Write(b)
			_ = there.Close()
		}()
		c := newCheckedConn(here, 1000, func(_ error, leave func()) { leave() })
		c.auths.Store(authPackets)
		for {
			if _, err := packets.ReadPacket(c); err != nil {
				break
			}
		}
		_ = there.Close()
	}
}

func TestConnectStatesTheDevicesLimits(t *testing.T) {
	for name, tc := range map[string]struct {
		max    int
		config bool
		want   uint32
	}{
		"any command":                       {0, false, 36 << 10},
		"any command, and a configuration":  {0, true, 68 << 10},
		"small commands":                    {2000, false, 2000 + 4<<10},
		"small commands, a configuration":   {2000, true, 68 << 10},
		"commands that are larger than any": {1 << 20, false, 36 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newFakeServer(t)
			d := s.device(true, Options{MaxCommand: tc.max})
			if tc.config {
				d.OnConfig(func(context.Context, Config) error { return nil })
			}
			s.run(d)
			c := s.connected("a connection")
			if n, _ := c.connect.Properties.Number(packet.MaximumPacketSize); n != tc.want {
				t.Errorf("packets of %d bytes, want %d", n, tc.want)
			}
			if n, _ := c.connect.Properties.Number(packet.ReceiveMaximum); n != receiveMaximum {
				t.Errorf("Receive Maximum %d", n)
			}
			if n, ok := c.connect.Properties.Number(packet.TopicAliasMaximum); n != 0 || !ok {
				t.Errorf("Topic Alias Maximum %d", n)
			}
			for _, f := range c.filters {
				if want := f.Topic == "devices/lamp-1/commands"; (f.QoS == 1) != want {
					t.Errorf("%s with QoS %d", f.Topic, f.QoS)
				}
			}
		})
	}
}

// More commands than were agreed end the connection, while a function runs.
func TestWaitingCommandsAreBounded(t *testing.T) {
	s := newFakeServer(t)
	d := s.device(true, Options{})
	begun, release := make(chan struct{}), make(chan struct{})
	d.Handle("slow", func(context.Context, *Command) (any, error) {
		close(begun)
		<-release
		return nil, nil
	})
	defer close(release)
	s.run(d)
	c := s.connected("a connection")
	c.hand(1, s.order(d, 1, "slow"))
	testwait.For(t, "the function", begun)
	testwait.For(t, "the acknowledgement of the command that runs", c.acked)
	for id := range uint16(receiveMaximum) {
		c.hand(id+2, s.order(d, int64(id)+2, "slow"))
	}
	refreshed(t, c) // it has them all
	c.hand(100, s.order(d, 100, "slow"))
	if reason := testwait.For(t, "the end of the connection", c.left); reason != packet.ReceiveMaximumExceeded {
		t.Errorf("it leaves with %#x", byte(reason))
	}
}

// Whichever answer of an MQTT server is missing, the device continues over HTTPS, or over another connection, and leaves no
// goroutine behind.
func TestAnMQTTServerThatDoesNotAnswer(t *testing.T) {
	for _, tc := range []struct {
		name  string
		begin func(*fakeConn) bool
	}{
		{"CONNACK", func(c *fakeConn) bool { return true }},
		{"CONNACK, AUTH in its place", func(c *fakeConn) bool {
			for range 1000 {
				c.send(&packet.Auth{Reason: packet.ContinueAuthentication})
			}
			return true
		}},
		{"PUBACK", func(c *fakeConn) bool {
			c.silent = true
			c.send(&packet.Connack{})
			return true
		}},
		{"PUBACK but for other identifiers", func(c *fakeConn) bool {
			c.silent = true
			c.send(&packet.Connack{})
			for id := range uint16(1000) {
				c.send(&packet.Ack{Kind: packet.PUBACK, ID: id + 1000})
			}
			return true
		}},
		{"SUBACK", func(c *fakeConn) bool {
			c.noSuback = true
			c.send(&packet.Connack{})
			return true
		}},
		{"a whole SUBACK", func(c *fakeConn) bool {
			c.shortSuback = true
			c.send(&packet.Connack{})
			return true
		}},
		{"a whole packet", func(c *fakeConn) bool {
			c.raw([]byte{0x20, 100, 0})
			return true
		}},
		{"anything, nor is read", func(c *fakeConn) bool {
			c.send(&packet.Connack{})
			select {
			case <-c.s.t.Context().Done():
			case <-time.After(time.Hour):
			}
			return false
		}},
		{"more than refusals", func(c *fakeConn) bool {
			c.send(&packet.Connack{Code: packet.ServerBusy})
			return false
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newBubbleServer(t)
				s.beginWith(tc.begin)
				d := s.device(true, Options{})
				d.Handle("f", done)
				s.order(d, 1, "f")
				end, ended := s.run(d)
				if seq, st := s.receipt("a command over HTTPS"); seq != 1 || st != watchword.StatusDone {
					t.Errorf("%d is %s", seq, st)
				}
				time.Sleep(5 * time.Minute) // it tries again and again
				s.beginWith(nil)
				s.connected("a connection with a server that is well")
				end()
				testwait.For(t, "the end of Run", ended)
			})
		})
	}
}

func TestASilentServerIsDisconnected(t *testing.T) {
	for name, alive := range map[string]*uint32{"as agreed": nil, "with keep alive 0": new(uint32(0)), "with a long keep alive": new(uint32(65535)), "with a short keep alive": new(uint32(5))} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newBubbleServer(t)
				silent := true
				s.beginWith(func(c *fakeConn) bool {
					c.noPings = silent
					silent = false
					p := &packet.Connack{}
					if alive != nil {
						p.Properties.SetNumber(packet.ServerKeepAlive, *alive)
					}
					c.send(p)
					return true
				})
				s.run(s.device(true, Options{}))
				c := s.connected("a connection")
				begun := time.Now()
				select {
				case <-c.ended:
				case <-time.After(10 * time.Minute):
					t.Fatal("it holds on to a server that does not answer")
				}
				if duration, limit := time.Since(begun), mqttKeepAlive*time.Second+mqttTimeout+time.Second; duration > limit {
					t.Errorf("left after %s, and %s are the most", duration, limit)
				}
				c = s.connected("another connection")
				select {
				case <-c.ended:
					t.Error("a server that answers is left")
				case <-time.After(10 * time.Minute):
				}
			})
		})
	}
}

// A function runs for long over HTTPS, and a command waits: the device finds its way back to MQTT.
func TestADeviceComesBackToMQTTWhileAFunctionRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newBubbleServer(t)
		var down atomic.Bool
		down.Store(true)
		real := s.dial
		s.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if down.Load() && strings.HasSuffix(address, ":2") {
				return nil, errors.New("connection refused")
			}
			return real(ctx, network, address)
		}
		d := s.device(true, Options{})
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
		two := s.order(d, 2, "f")
		s.run(d)
		testwait.For(t, "the function", begun)
		time.Sleep(10 * time.Minute)
		down.Store(false)
		time.Sleep(30 * time.Second)
		c := s.connected("MQTT, while the function runs")
		c.hand(1, two)
		close(release)
		for want := range int64(2) {
			if seq, st := s.receipt("a command"); seq != want+1 || st != watchword.StatusDone {
				t.Errorf("%d is %s", seq, st)
			}
		}
		if acts.Load() != 2 {
			t.Errorf("acted %d times", acts.Load())
		}
	})
}

func TestAFunctionThatDoesNotReturnIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newBubbleServer(t)
		d := s.device(true, Options{})
		begun, release := make(chan struct{}), make(chan struct{})
		d.Handle("slow", func(context.Context, *Command) (any, error) {
			close(begun)
			<-release
			return nil, nil
		})
		end, ended := s.run(d)
		s.connected("a connection").hand(1, s.order(d, 1, "slow"))
		testwait.For(t, "the function", begun)
		stopped := time.Now()
		end()
		if err := testwait.For(t, "the end of Run", ended); err != nil || time.Since(stopped) != stopGrace {
			t.Errorf("after %s: %v", time.Since(stopped), err)
		}
		path := d.path(journalFile)
		if err := d.Close(); err != nil { // it does not wait either
			t.Error(err)
		}
		close(release)
		synctest.Wait()
		j, err := openSharedJournal(durable.OS{}, path, d.counters)
		if err != nil {
			t.Fatal(err)
		}
		if a := j.find(position{1, 1}); a == nil || a.Receipt != "" {
			t.Errorf("the journal says %+v", a)
		}
	})
}

func TestFailedTaskIsRetriedWithBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newBubbleServer(t)
		var tries atomic.Int64
		s.handle("PUT /v1/self/functions", func(w http.ResponseWriter, _ *http.Request) {
			tries.Add(1)
			problem(w, http.StatusInternalServerError, watchword.Internal, "")
		})
		s.run(s.device(true, Options{}))
		c := s.connected("a connection")
		var fetched atomic.Int64
		s.handle("GET /v1/trust", func(w http.ResponseWriter, _ *http.Request) {
			fetched.Add(1)
			_, _ = io.WriteString(w, s.bundle)
		})
		time.Sleep(time.Hour)
		if n := tries.Load(); n < 8 || n > 24 {
			t.Errorf("%d tries in an hour", n)
		}
		if fetched.Load() != 0 {
			t.Errorf("the trust bundle was fetched %d times", fetched.Load())
		}
		for range 100 { // in a second
			c.send(&packet.Publish{Topic: authTopic, Payload: []byte(`{"type":"trust"}`)})
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Minute)
		if n := fetched.Load(); n < 1 || n > 3 {
			t.Errorf("asked 100 times, the trust bundle was fetched %d times", n)
		}
		s.handle("PUT /v1/self/functions", nil)
		time.Sleep(2 * taskMax)
		before := tries.Load()
		time.Sleep(time.Hour)
		if tries.Load() != before {
			t.Error("it announces what was announced")
		}
	})
}

// The bytes in memory stay within the limits of CONNECT, however much the server sends.
func TestAFloodOfMessagesIsNotHeldInMemory(t *testing.T) {
	s := newFakeServer(t)
	d := s.device(true, Options{})
	s.run(d)
	c := s.connected("a connection")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	payload := make([]byte, 30<<10)
	for range 2000 { // 60 MB
		c.send(&packet.Publish{Topic: "devices/lamp-1/config", Payload: payload})
	}
	refreshed(t, c)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("%d bytes more are held", grown)
	}
}

// sendTimeout is the maximum time for a request of the application: mqttTimeout over MQTT, and then a whole exchange over
// HTTPS.
const sendTimeout = time.Minute

// Over MQTT nothing is acknowledged, over HTTPS each answer stalls: the application's calls end.
func TestWhatAnApplicationSendsHasADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newBubbleServer(t)
		d := s.device(true, Options{})
		s.run(d)
		for name, tc := range map[string]struct {
			most time.Duration
			do   func(context.Context) error
		}{
			"an event":  {sendTimeout, func(ctx context.Context) error { return d.Publish(ctx, "lux", 1) }},
			"the state": {sendTimeout, func(ctx context.Context) error { return d.ReportState(ctx, map[string]int{}) }},
			"a receipt": {sendTimeout, func(ctx context.Context) error { return d.SendReceipt(ctx, "r") }},
			"functions": {sendTimeout, func(ctx context.Context) error { return d.Announce(ctx) }},
			"a command": {sendTimeout + 40*time.Second, func(ctx context.Context) error {
				_, err := d.Call(ctx, "lamp-2", "f", nil, 40*time.Second)
				return err
			}},
		} {
			c := s.connected("a connection")
			for _, route := range []string{"POST /v1/self/events/lux", "PUT /v1/self/state", "POST /v1/self/receipts", "PUT /v1/self/functions", "POST /v1/commands"} {
				s.handle(route, s.stall)
			}
			c.quiet.Store(true)
			begun := time.Now()
			if err := tc.do(t.Context()); watchword.CodeOf(err) != watchword.Unavailable || time.Since(begun) > tc.most {
				t.Errorf("%s: after %s: %v", name, time.Since(begun), err)
			}
			_ = c.nc.Close()
		}
	})
}

// A connection that worked and is lost is made again at once, and not left for HTTPS.
func TestReconnectAfterLossDuringRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newBubbleServer(t)
		s.run(s.device(true, Options{}))
		c := s.connected("a connection")
		c.quiet.Store(true)
		refreshed(t, c)
		begun := time.Now()
		_ = c.nc.Close()
		s.connected("another connection")
		if duration := time.Since(begun); duration > 5*time.Second {
			t.Errorf("after %s", duration)
		}
	})
}

// The device disconnects from a server that acknowledges no message: an unacknowledged message stays in memory.
func TestAServerThatAcknowledgesNothingIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newBubbleServer(t)
		s.handle("POST /v1/self/events/lux", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) })
		d := s.device(true, Options{})
		s.run(d)
		c := s.connected("a connection")
		c.quiet.Store(true)
		if err := d.Publish(t.Context(), "lux", 1); err != nil { // over HTTPS, in the end
			t.Error(err)
		}
		select {
		case <-c.ended:
		case <-time.After(5 * time.Second): // before it is to refresh
			t.Error("the connection goes on")
		}
	})
}
