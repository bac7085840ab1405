package attack_test

import (
	"bufio"
	"database/sql"
	"fmt"
	"io"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword/internal/logbudget"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
)

// flooder is one connection of an attacker. It counts received packets, by kind and reason, and stores none of them, so
// that the heap is the server's.
type flooder struct {
	t    testing.TB
	nc   net.Conn
	news chan struct{} // something was counted

	mu    sync.Mutex
	heard map[string]int // "PUBACK 0x97", "SUBACK 0x00" for each filter, "SUBACK", "closed"
}

// flood dials and sends CONNECT; it reads only if reads says so, beyond CONNACK.
func flood(t testing.TB, address, token, id string, reads bool, edit func(*packet.Connect)) (*flooder, packet.Reason) {
	t.Helper()
	nc, err := net.Dial("tcp", address)
	must(t, err)
	must(t, nc.(*net.TCPConn).SetReadBuffer(4096))
	t.Cleanup(func() { _ = nc.Close() })
	f := &flooder{t: t, nc: nc, news: make(chan struct{}, 1), heard: map[string]int{}}
	p := &packet.Connect{Version: packet.V5, CleanStart: true, ClientID: id, Username: "jwt", HasUser: true, HasPass: true, Password: []byte(token)}
	if edit != nil {
		edit(p)
	}
	f.send(p)
	must(t, nc.SetReadDeadline(time.Now().Add(20*time.Second)))
	r := bufio.NewReaderSize(nc, 4096)
	got, err := readPacket(r)
	must(t, err)
	ack, ok := got.(*packet.Connack)
	if !ok {
		t.Fatalf("got %T, want CONNACK", got)
	}
	must(t, nc.SetReadDeadline(time.Time{}))
	switch {
	case ack.Code != packet.Success:
		must(t, nc.Close())
	case reads:
		go f.read(r)
	}
	return f, ack.Code
}

// send writes packets at once. That the connection was closed is counted, and no failure.
func (f *flooder) send(all ...packet.Packet) bool {
	var b []byte
	for _, p := range all {
		b = packet.Append(b, p, packet.V5)
	}
	_, err := f.nc.Write(b)
	return err == nil
}

func (f *flooder) count(what ...string) {
	f.mu.Lock()
	for _, w := range what {
		f.heard[w]++
	}
	f.mu.Unlock()
	select {
	case f.news <- struct{}{}:
	default:
	}
}

func (f *flooder) read(r *bufio.Reader) {
	for {
		got, err := readPacket(r)
		if err != nil {
			f.count("closed")
			return
		}
		switch p := got.(type) {
		case *packet.Ack:
			f.count(p.Kind.String(), fmt.Sprintf("%s 0x%02x", p.Kind, byte(p.Reason)))
		case *packet.Suback:
			all := []string{"SUBACK"}
			for _, code := range p.Codes {
				all = append(all, fmt.Sprintf("SUBACK 0x%02x", byte(code)))
			}
			f.count(all...)
		case *packet.Disconnect:
			f.count(fmt.Sprintf("DISCONNECT 0x%02x", byte(p.Reason)))
		default:
			f.count(got.Type().String())
		}
	}
}

func (f *flooder) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Sprint(f.heard)
}

func (f *flooder) has(what string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.heard[what]
}

// await waits until something was received n times. It returns false if the connection ended before.
func (f *flooder) await(what string, n int) bool {
	deadline := time.After(60 * time.Second)
	for {
		if f.has(what) >= n {
			return true
		}
		if f.has("closed") > 0 {
			f.t.Errorf("closed before %d of %q came: %s", n, what, f)
			return false
		}
		select {
		case <-f.news:
		case <-deadline:
			f.t.Errorf("%d of %q came, want %d: %s", f.has(what), what, n, f)
			return false
		}
	}
}

// publish sends messages with QoS 1, at most 100 of them unanswered, and waits for all answers.
func (f *flooder) publish(count int, message func(n int) *packet.Publish) {
	was := f.has("PUBACK")
	for n := range count {
		p := message(n)
		p.QoS, p.ID = 1, uint16(n%60_000+1)
		if !f.send(p) || n%100 == 99 && !f.await("PUBACK", was+n+1) {
			return
		}
	}
	f.await("PUBACK", was+count)
}

// heapOf is what is on the heap, without what the test keeps of the server's log.
func heapOf(srv *testServer) int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	srv.log.mu.Lock()
	defer srv.log.mu.Unlock()
	return int64(m.HeapAlloc) - int64(srv.log.b.Cap())
}

// numbered has one device publish numbered messages with QoS 1 to another subscriber until it is stopped, which returns
// how many there were, after all of them have come in their order.
func numbered(t *testing.T, srv *testServer, from *device.Device) (stop func() int) {
	t.Helper()
	pub := connectPaho(t, from, "")
	own, err := srv.admin.Tokens().Renew(t.Context())
	must(t, err)
	subscriber, err := dialPaho(t, from, string(srv.admin.Subject()), own)
	must(t, err)
	topic := "devices/" + string(from.ID()) + "/events/n"
	subscriber.subscribe(t, topic)
	over, sent, received := make(chan struct{}), make(chan int, 1), make(chan int, 1)
	go func() {
		n := 0
		defer func() { sent <- n }()
		for {
			select {
			case <-over:
				return
			default:
			}
			if _, err := pub.client.Publish(t.Context(), &paho.Publish{Topic: topic, QoS: 1, Payload: strconv.AppendInt(nil, int64(n), 10)}); err != nil {
				t.Errorf("message %d of another device: %v", n, err)
				return
			}
			n++
		}
	}()
	end := make(chan int, 1)
	go func() {
		n, limit := 0, -1
		defer func() { received <- n }()
		for n != limit {
			select {
			case p := <-subscriber.got:
				if got := string(p.Payload); got != strconv.Itoa(n) {
					t.Errorf("message %q of another device came, want %d", got, n)
					return
				}
				n++
			case limit = <-end:
			case d := <-subscriber.ended:
				t.Errorf("another subscriber was closed: %#x", d.ReasonCode)
				return
			case <-time.After(60 * time.Second):
				t.Errorf("message %d of another device did not come", n)
				return
			}
		}
	}()
	return func() int {
		t.Helper()
		close(over)
		n := testwait.For(t, "the end of another device's messages", sent)
		end <- n
		if got := testwait.For(t, "another device's messages", received); got != n {
			t.Errorf("%d of %d messages of another device came", got, n)
		}
		return n
	}
}

// TestExhaustionByOneDeviceOverMQTT has a device with default rights and default limits do all that it may over its eight
// connections: what it takes stays within the sum of the bounds of docs/operations.md, in memory, rows, lines and entries;
// others lose nothing; and once it is deleted all of it is gone.
func TestExhaustionByOneDeviceOverMQTT(t *testing.T) {
	limits := server.Defaults().Limits
	srv := serve(t, func(c *server.Config) {
		c.Limits = limits
		c.Server.MQTT = "127.0.0.1:0"
	})
	srv.http = srv.client()
	bad, good := srv.enroll("bad", device.Options{}, nil), srv.enroll("good", device.Options{}, nil)
	token := srv.token(bad)
	// Its share of the kept events is full before it is measured, which is memory of the server and stays as it is.
	large := strings.Repeat("x", 30<<10)
	for range 100 {
		if a := srv.request("POST", "/v1/self/events/lux", token, large); a.status != 202 && a.status != 429 {
			t.Fatalf("an event: %d %s", a.status, a.body)
		}
	}
	stop := numbered(t, srv, good)
	rows := func(query string, args ...any) (n int64) {
		t.Helper()
		tamper(t, srv.dir, func(db *sql.DB) { must(t, db.QueryRow(query, args...).Scan(&n)) })
		return n
	}
	before, entries, begun, printed := heapOf(srv), rows(`SELECT count(*) FROM audit_entries`), time.Now(), len(srv.log.String())

	const (
		own  = "devices/bad/"
		most = 8 // connections, and sessions without one
	)
	connects, refused := 0, 0
	will := func(p *packet.Connect) { // as large as may be: CONNECT has 16 KiB
		p.Will = &packet.Will{Topic: own + "events/will", QoS: 1, Retain: true, Payload: []byte(large[:14<<10])}
		p.Will.Properties.SetNumber(packet.WillDelayInterval, 3600)
	}
	connect := func(id string, reads bool) *flooder {
		t.Helper()
		connects++
		f, code := flood(t, srv.info.MQTT, token, "bad/"+id, reads, will)
		if code != packet.Success {
			t.Fatalf("%s: CONNACK %#x", id, code)
		}
		return f
	}
	deep := func(n int) string { // a topic of as many levels and bytes as there can be
		topic := fmt.Sprintf("%sevents/%04d/%s", own, n, strings.Repeat("aaaaaaaaaaaaaaa/", 59))
		return topic + strings.Repeat("b", 1024-len(topic))
	}
	// Sessions that outlive their connection, with wills; one more is refused.
	for n := range most {
		id := fmt.Sprint("away", n)
		connects++
		f, code := flood(t, srv.info.MQTT, token, "bad/"+id, true, func(p *packet.Connect) {
			p.Properties.SetNumber(packet.SessionExpiryInterval, 3600)
			will(p)
		})
		if code != packet.Success {
			t.Fatalf("%s: CONNACK %#x", id, code)
		}
		f.send(&packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: own + "state", QoS: 1}}})
		f.await("SUBACK 0x01", 1)
		must(t, f.nc.Close()) // without DISCONNECT: the will stays
	}
	connects++
	if _, code := flood(t, srv.info.MQTT, token, "bad/one-more", true, func(p *packet.Connect) { p.Properties.SetNumber(packet.SessionExpiryInterval, 3600) }); code != packet.QuotaExceeded {
		t.Errorf("a ninth session: CONNACK %#x", code)
	}

	retains, filters, events := connect("retains", true), connect("filters", true), connect("events", true)
	states, open, credentials := connect("states", true), connect("open", true), connect("credentials", true)
	unread := connect("unread", false)
	s := &packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: own + "state"}, {Topic: "$watchword/auth"}}}
	for n := range 20 { // each message so many times
		s.Filters = append(s.Filters, packet.Filter{Topic: fmt.Sprint("$share/", n, "/", own, "state"), QoS: 1})
	}
	unread.send(s)

	var acts, floods sync.WaitGroup
	acts.Go(func() {
		retains.publish(1200, func(n int) *packet.Publish {
			return &packet.Publish{Topic: deep(n), Retain: true, Payload: []byte("x")}
		})
		retains.publish(20, func(n int) *packet.Publish {
			return &packet.Publish{Topic: fmt.Sprint(own, "events/large/", n), Retain: true, Payload: []byte(large)}
		})
		retains.publish(200, func(n int) *packet.Publish {
			return &packet.Publish{Topic: fmt.Sprint(own, "events/", n), Retain: true, Payload: []byte("x")}
		})
	})
	// Filters and reconnects first, then packets that use so much of its rate that all later ones are delayed.
	for n := range 3 {
		s := &packet.Subscribe{ID: uint16(n + 1)}
		for i := range 40 {
			s.Filters = append(s.Filters, packet.Filter{Topic: fmt.Sprintf("$share/%s%03d/%sconfig", strings.Repeat("g", 900), n*40+i, own), QoS: 1})
		}
		filters.send(s)
	}
	s = &packet.Subscribe{ID: 4}
	for n := range 10 {
		s.Filters = append(s.Filters, packet.Filter{Topic: own + strings.Repeat("+/", 60) + fmt.Sprint(n)})
	}
	filters.send(s)
	filters.await("SUBACK", 4)
	credentials.send(&packet.Publish{Topic: "$watchword/auth", QoS: 1, ID: 1, Payload: []byte(token)}, &packet.Publish{Topic: "$watchword/hello", QoS: 1, ID: 2, Payload: []byte(`{"nonce":"","epoch":1,"seq":0}`)})
	credentials.await("PUBACK", 2)
	reconnect := func(n int) { // a new identifier, a will, and then what cannot be read
		connects++
		f, code := flood(t, srv.info.MQTT, token, fmt.Sprint("bad/", strings.Repeat("i", 40), n), false, will)
		if code != packet.Success {
			refused++
			return
		}
		_, _ = f.nc.Write([]byte{0xF0, 0xFF, 0xFF, 0xFF, 0xFF}) // the server closes it
		_, _ = io.Copy(io.Discard, f.nc)
		must(t, f.nc.Close())
	}
	for n := range 3 {
		reconnect(n)
	}
	s = &packet.Subscribe{ID: 5}
	for range 1000 {
		s.Filters = append(s.Filters, packet.Filter{Topic: own + "state", QoS: 1})
	}
	filters.send(s)
	acts.Go(func() { filters.await("SUBACK", 5) })
	floods.Go(func() { // until its connection ends; not before the filters, with which it shares a rate
		filters.await("SUBACK", 5)
		for n := 0; credentials.send(&packet.Publish{Topic: "$watchword/auth", QoS: 1, ID: uint16(n%200 + 1), Payload: []byte(token)}); n++ {
			if !credentials.send(&packet.Publish{Topic: "$watchword/hello", Payload: fmt.Appendf(nil, `{"nonce":"%032d","epoch":1,"seq":0}`, n)}) {
				return
			}
		}
	})
	floods.Go(func() { // tiny events by all its aliases for topics as long as they may be, as many that it may not send, and the largest
		for n := range 64 {
			p := &packet.Publish{Topic: deep(n)}
			p.Properties.SetNumber(packet.TopicAlias, uint32(n+1))
			events.send(p)
		}
		largest := &packet.Publish{Topic: own + "events/largest", Payload: make([]byte, limits.PacketBytes-64)}
		for n := 0; ; n++ {
			p := &packet.Publish{}
			p.Properties.SetNumber(packet.TopicAlias, uint32(n%64+1))
			if !events.send(p, &packet.Publish{Topic: "devices/good/" + strings.Repeat("x/", 60)}) || n%20 == 0 && !events.send(largest) {
				return
			}
		}
	})
	acts.Go(func() {
		states.publish(2, func(n int) *packet.Publish { // they have a rate, which they share with the refreshes
			return &packet.Publish{Topic: own + "state", Payload: fmt.Appendf(nil, `{"n":%d}`, n)}
		})
		states.publish(4, func(n int) *packet.Publish { // as large as they may be
			return &packet.Publish{Topic: own + "state", Payload: fmt.Appendf(nil, `{"n":%d,"x":%q}`, n, large)}
		})
		states.publish(100, func(n int) *packet.Publish {
			return &packet.Publish{Topic: own + "receipts", Payload: []byte("a.b.c")}
		})
		states.publish(4, func(n int) *packet.Publish { // what it may not
			return &packet.Publish{Topic: "devices/good/state", Payload: []byte("{}")}
		})
	})
	acts.Go(func() { // as many as may be open, and never released; one more ends the connection
		for n := range 256 {
			open.send(&packet.Publish{Topic: own + "events/open", QoS: 2, ID: uint16(n + 1), Payload: []byte(large)})
		}
		open.await("PUBREC", 256)
		open.send(&packet.Publish{Topic: own + "events/open", QoS: 2, ID: 257})
		open.await("DISCONNECT 0x93", 1)
	})
	for n := range 60 {
		reconnect(n)
	}
	peak, done := before, make(chan struct{})
	go func() { acts.Wait(); close(done) }()
	wait := testwait.Within() // the acts take a few seconds
	for tick, over := time.NewTicker(200*time.Millisecond), false; !over; peak = max(peak, heapOf(srv)) {
		wait.Check(t, "the end of the acts")
		select {
		case <-tick.C:
		case <-done:
			over = true
		}
	}
	if refused == 0 || refused == 63 { // it has a rate, and those before it was used up pass
		t.Errorf("%d of %d CONNECTs were refused", refused, connects)
	}
	for what, n := range map[string]int{"PUBACK 0x97": retains.has("PUBACK 0x97"), "SUBACK 0x87": filters.has("SUBACK 0x87")} {
		if n == 0 {
			t.Errorf("no %s: %s; %s", what, retains, filters)
		}
	}

	grown, took := peak-before, time.Since(begun)
	const (
		connection = 256 << 10 // buffers, goroutines, the test's own end
		perMessage = 100 + 40*most
	)
	allowed := int64(limits.SubjectRetainedBytes + limits.SubjectSubscriptionBytes + limits.SubjectQueueBytes + 2*limits.SubjectWillBytes) // of wills the packet too
	allowed += most * (connection + 3*int64(limits.PacketBytes) + 2*64*1024 + 256*64)                                                      // what is read and held back, aliases, what is open
	allowed += int64(limits.QueueMessages) * perMessage                                                                                    // of messages that are queued for an offline client
	allowed += 2 << 20                                                                                                                     // kept events
	t.Logf("%d kB of memory, and %d kB more at the worst, of %d kB that it may; %s; %d of %d CONNECTs refused", before>>10, grown>>10, allowed>>10, took.Round(time.Millisecond), refused, connects)
	if grown > allowed {
		t.Errorf("the heap grew by %d kB, want %d at most", grown>>10, allowed>>10)
	}
	of := map[string]int64{
		`SELECT count(*) FROM mqtt_retained WHERE subject = 'bad'`:                                                           int64(limits.SubjectRetainedMessages),
		`SELECT coalesce(sum(length(packet)), 0) FROM mqtt_retained WHERE subject = 'bad'`:                                   int64(limits.SubjectRetainedBytes),
		`SELECT count(*) FROM mqtt_sessions WHERE subject = 'bad'`:                                                           most,
		`SELECT count(*) FROM mqtt_subscriptions WHERE session NOT IN (SELECT id FROM mqtt_sessions WHERE subject != 'bad')`: 1024 * most,
		`SELECT count(*) FROM mqtt_messages`:                                                                                 int64(most * limits.QueueMessages),
		`SELECT coalesce(sum(length(packet)), 0) FROM mqtt_messages`:                                                         int64(most * limits.QueueBytes),
		`SELECT coalesce(sum(length(will) + 512), 0) FROM mqtt_wills WHERE subject = 'bad'`:                                  int64(limits.SubjectWillBytes),
	}
	for query, bound := range of {
		if n := rows(query); n == 0 || n > bound {
			t.Errorf("%s: %d, want some and %d at most", query, n, bound)
		}
	}
	if live, away, err := srv.admin.AllSessions(t.Context(), "bad"); err != nil || len(live) > most || len(away) != most {
		t.Errorf("%d sessions and %d without a connection are listed: %v", len(live), len(away), err)
	}
	seconds := int64(time.Since(begun)/time.Second) + 1
	added := rows(`SELECT count(*) FROM audit_entries`) - entries
	if bound := 1000 + 50*seconds + 2*int64(connects) + 100; added > bound {
		t.Errorf("%d entries of the log in %d s, want %d at most", added, seconds, bound)
	}
	lines := int64(0)
	for line := range strings.Lines(srv.log.String()[printed:]) {
		if strings.Contains(line, "subject=bad") || strings.Contains(line, "client=bad") || strings.Contains(line, "device=bad") {
			lines++
		}
	}
	if bound := logbudget.Burst/2 + (logbudget.Rate+logbudget.SourceRate)*seconds; lines > bound {
		t.Errorf("%d lines of the log in %d s, want %d at most", lines, seconds, bound)
	}
	t.Logf("%d entries, %d lines, in %d s", added, lines, seconds)

	must(t, srv.admin.DeleteDevice(t.Context(), "bad"))
	testwait.All(t, "the end of the floods after the deletion", &floods)
	t.Logf("%d messages of another device", stop())
	deadline := time.Now().Add(30 * time.Second)
	left := int64(0)
	until := func(what string, is func() bool) {
		t.Helper()
		for tick := time.NewTicker(50 * time.Millisecond); !is(); <-tick.C {
			if time.Now().After(deadline) {
				t.Fatalf("%s: not within 30 s of its deletion; %d kB of memory, %d before", what, left>>10, before>>10)
			}
		}
	}
	for query := range of {
		until(query, func() bool { return rows(query) == 0 })
	}
	until("memory", func() bool { left = heapOf(srv); return left <= before+before/10 })
	t.Logf("%d kB of memory after it was deleted", left>>10)
}
