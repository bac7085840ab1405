package attack_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
)

// rawClient is an MQTT 5 client that sends exactly the given packets.
type rawClient struct {
	t  *testing.T
	nc net.Conn
	r  *bufio.Reader
}

// connectRaw connects as a device and subscribes to filters with QoS 1.
func connectRaw(t *testing.T, d *device.Device, edit func(*packet.Connect), filters ...string) *rawClient {
	t.Helper()
	token, err := d.NewToken(t.Context())
	must(t, err)
	nc, err := tls.Dial("tcp", d.MQTT(), anchored(t, d))
	must(t, err)
	t.Cleanup(func() { _ = nc.Close() })
	c := &rawClient{t, nc, bufio.NewReader(nc)}
	p := &packet.Connect{Version: packet.V5, CleanStart: true, ClientID: string(d.ID()), Username: "jwt", HasUser: true, HasPass: true, Password: []byte(token)}
	if edit != nil {
		edit(p)
	}
	c.send(p)
	if ack, ok := c.next().(*packet.Connack); !ok || ack.Code != packet.Success {
		t.Fatalf("not connected: %+v", ack)
	}
	for _, f := range filters {
		c.subscribe(f)
	}
	return c
}

func (c *rawClient) send(p packet.Packet) {
	c.t.Helper()
	_, err := c.nc.Write(packet.Append(nil, p, packet.V5))
	must(c.t, err)
}

func (c *rawClient) next() packet.Packet {
	c.t.Helper()
	must(c.t, c.nc.SetReadDeadline(time.Now().Add(20*time.Second)))
	p, err := readPacket(c.r)
	if err != nil {
		c.t.Fatalf("no packet: %v", err)
	}
	return p
}

func (c *rawClient) subscribe(filter string) {
	c.t.Helper()
	c.send(&packet.Subscribe{ID: 9, Filters: []packet.Filter{{Topic: filter, QoS: 1}}})
	for wait := testwait.Within(); ; wait.Check(c.t, "a SUBACK for "+filter) {
		if ack, ok := c.next().(*packet.Suback); ok {
			if ack.Codes[0].Failed() {
				c.t.Fatalf("%s: %#x", filter, ack.Codes[0])
			}
			return
		}
	}
}

// say publishes with QoS 1 and waits for the answer.
func (c *rawClient) say(topic, payload string) {
	c.t.Helper()
	c.send(&packet.Publish{Topic: topic, QoS: 1, ID: 8, Payload: []byte(payload)})
	if ack, ok := c.next().(*packet.Ack); !ok || ack.Kind != packet.PUBACK || ack.Reason.Failed() {
		c.t.Fatalf("%s: %+v", topic, ack)
	}
}

// command returns the next PUBLISH.
func (c *rawClient) command() *packet.Publish {
	c.t.Helper()
	p, ok := c.next().(*packet.Publish)
	if !ok {
		c.t.Fatalf("not a command: %T", p)
	}
	return p
}

func (c *rawClient) acknowledge(p *packet.Publish, reason packet.Reason) {
	c.t.Helper()
	c.send(&packet.Ack{Kind: packet.PUBACK, ID: p.ID, Reason: reason})
}

func atMost(bytes uint32) func(*packet.Connect) {
	return func(p *packet.Connect) { p.Properties.SetNumber(packet.MaximumPacketSize, bytes) }
}

// orderEntry returns the number of the entry of a command's order.
func (srv *testServer) orderEntry(c api.Command) int64 {
	srv.t.Helper()
	es, err := srv.admin.FindEntries(srv.t.Context(), admin.LogQuery{Kind: "command.order", Object: string(c.ID)}, 1)
	must(srv.t, err)
	if len(es) != 1 {
		srv.t.Fatalf("%d entries of the order", len(es))
	}
	return es[0].Seq
}

// large is a command's arguments that make a packet of more than 2,100 bytes.
var large = json.RawMessage(`{"text":"` + strings.Repeat("x", 900) + `"}`)

// commandTo orders the device to do something; args is nil for few bytes.
func (srv *testServer) commandTo(d *device.Device, args json.RawMessage) api.Command {
	srv.t.Helper()
	c, err := srv.admin.Send(srv.t.Context(), admin.CommandOrder{Device: d.ID(), Function: "f", Args: args})
	must(srv.t, err)
	return c
}

// waitForState waits until a command is in a state.
func (srv *testServer) waitForState(c api.Command, want watchword.CommandState) api.Command {
	srv.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; {
		now, err := srv.admin.Command(srv.t.Context(), c.ID, 0)
		must(srv.t, err)
		if now.State == want {
			return now
		}
		if now.State.Final() || time.Now().After(end) {
			srv.t.Fatalf("command %d is %s, want %s", c.Seq, now.State, want)
		}
	}
}

// tooLarge holds that a command ended because its device does not take as much.
func (srv *testServer) tooLarge(c api.Command, limit int) {
	srv.t.Helper()
	c = srv.waitForState(c, watchword.Undeliverable)
	if r := c.Reason; r == nil || r.Code != watchword.TooLarge || r.Max != limit || r.Size <= limit || c.SentAt != nil || c.DeliveredAt != nil || c.SettledAt == nil {
		srv.t.Errorf("command %d: sent %v, delivered %v, settled %v, reason %+v", c.Seq, c.SentAt, c.DeliveredAt, c.SettledAt, c.Reason)
	}
	handed, err := srv.admin.FindEntries(srv.t.Context(), admin.LogQuery{Kind: "command.handover", Object: string(c.ID)}, 1)
	must(srv.t, err)
	if len(handed) != 0 {
		srv.t.Errorf("command %d: the log says that it was handed over: %+v", c.Seq, handed)
	}
}

// numberOf opens what a device was sent.
func numberOf(t *testing.T, srv *testServer, d *device.Device, jwe string) int64 {
	t.Helper()
	r, err := d.Execute(t.Context(), jwe)
	must(t, err)
	must(t, d.SendReceipt(t.Context(), r))
	_, seq := d.Position()
	return seq
}

// A command that is larger than its client takes ends as undeliverable, was never sent,
// and keeps nothing back, however many there are.
func TestOversizedCommandEndsAndBlocksNothing(t *testing.T) {
	srv := serve(t, nil)
	for _, many := range []int{3, 16, 40} {
		t.Run(fmt.Sprint(many), func(t *testing.T) {
			srv := *srv
			srv.t = t
			d := srv.enroll(watchword.SubjectID(fmt.Sprintf("lamp-%d", many)), device.Options{}, nil)
			c := connectRaw(t, d, atMost(2100), "devices/"+string(d.ID())+"/commands")
			var sent []api.Command
			for range many {
				sent = append(sent, srv.commandTo(d, large))
			}
			small := srv.commandTo(d, nil)
			p := c.command()
			if n := numberOf(t, &srv, d, string(p.Payload)); n != small.Seq {
				t.Errorf("number %d came, want %d", n, small.Seq)
			}
			c.acknowledge(p, packet.Success)
			srv.waitForState(small, watchword.Refused) // by its receipt: the device has no such function
			for _, s := range sent {
				srv.tooLarge(s, 2100)
			}
			// The window has all its places.
			for range 16 {
				srv.commandTo(d, nil)
			}
			var ps []*packet.Publish
			for range 16 {
				ps = append(ps, c.command())
			}
			c.acknowledge(ps[0], packet.Success)
			last := srv.commandTo(d, nil)
			srv.waitForState(last, watchword.Sent)
			c.command()
			entries, err := srv.admin.FindEntries(t.Context(), admin.LogQuery{Kind: "command.undeliverable", After: srv.orderEntry(sent[0])}, 100)
			must(t, err)
			if len(entries) != many || entries[0].Object != string(sent[0].ID) || entries[0].Data["reason"] != "too_large" || entries[0].Data["max"] != "2100" {
				t.Errorf("%d entries of the log: %+v", len(entries), entries)
			}
		})
	}
}

// Queued commands of an offline device end when it connects, if they exceed the limits of that connection.
func TestBacklogOfSmallDevice(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	first, second, third := srv.commandTo(d, large), srv.commandTo(d, large), srv.commandTo(d, nil)
	c := connectRaw(t, d, nil, "devices/lamp-1/commands")
	p := c.command()
	c.acknowledge(p, packet.Success)
	srv.waitForState(first, watchword.Delivered)
	c.command() // number 2, which is not acknowledged
	must(t, c.nc.Close())
	c = connectRaw(t, d, atMost(2100), "devices/lamp-1/commands")
	if n := numberOf(t, srv, d, string(c.command().Payload)); n != third.Seq {
		t.Errorf("number %d came, want %d", n, third.Seq)
	}
	srv.waitForState(first, watchword.Delivered)
	got := srv.waitForState(second, watchword.Undeliverable)
	if got.SentAt == nil || got.Reason.Size <= 2100 || got.Reason.Max != 2100 {
		t.Errorf("one that an earlier connection took: %+v", got)
	}
}

// The limit is inclusive: a packet of exactly that many bytes, with all properties, is sent.
func TestAPacketOfTheMaximumSizePasses(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	for name, edit := range map[string]func(*packet.Connect, *packet.Subscribe){
		"plain":      func(*packet.Connect, *packet.Subscribe) {},
		"alias":      func(c *packet.Connect, _ *packet.Subscribe) { c.Properties.SetNumber(packet.TopicAliasMaximum, 5) },
		"identifier": func(_ *packet.Connect, s *packet.Subscribe) { s.Properties.Subscriptions = []uint32{200_000} },
	} {
		t.Run(name, func(t *testing.T) {
			srv := *srv
			srv.t = t
			// Size of a command's packet besides the command.
			connect := func(limit int) *rawClient {
				s := &packet.Subscribe{ID: 9, Filters: []packet.Filter{{Topic: "devices/lamp-1/commands", QoS: 1}}}
				c := connectRaw(t, d, func(p *packet.Connect) {
					if edit(p, s); limit > 0 {
						atMost(uint32(limit))(p)
					}
				})
				c.send(s)
				if _, ok := c.next().(*packet.Suback); !ok {
					t.Fatal("no SUBACK")
				}
				return c
			}
			one := srv.commandTo(d, nil)
			c := connect(0)
			p := c.command()
			c.acknowledge(p, packet.Success)
			srv.waitForState(one, watchword.Delivered)
			size := len(packet.Append(nil, p, packet.V5))
			must(t, c.nc.Close())

			one = srv.commandTo(d, nil) // as long as the one before
			c = connect(size)
			c.acknowledge(c.command(), packet.Success)
			srv.waitForState(one, watchword.Delivered)
			must(t, c.nc.Close())

			one = srv.commandTo(d, nil)
			_ = connect(size - 1)
			srv.tooLarge(one, size-1)
			if r := srv.waitForState(one, watchword.Undeliverable).Reason; r.Size != size {
				t.Errorf("it is said to have %d bytes, and has %d", r.Size, size)
			}
		})
	}
}

// A hello says how much a device can hold, and so does a request over HTTP.
func TestDeviceStatesMaxCommandSize(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	c := connectRaw(t, d, nil)
	c.say("$watchword/hello", `{"nonce":"","epoch":1,"seq":0,"max":2000}`)
	first := srv.commandTo(d, large)
	small := srv.commandTo(d, nil)
	c.subscribe("devices/lamp-1/commands")
	p := c.command()
	if n := numberOf(t, srv, d, string(p.Payload)); n != small.Seq || len(p.Payload) > 2000 {
		t.Errorf("number %d of %d bytes came, want %d", n, len(p.Payload), small.Seq)
	}
	c.acknowledge(p, packet.Success)
	srv.tooLarge(first, 2000)
	// A later hello applies to the commands after it.
	c.say("$watchword/hello", fmt.Sprintf(`{"nonce":"","epoch":1,"seq":%d}`, small.Seq))
	big := srv.commandTo(d, large)
	if n := numberOf(t, srv, d, string(c.command().Payload)); n != big.Seq {
		t.Errorf("number %d came, want %d", n, big.Seq)
	}
	c.send(&packet.Publish{Topic: "$watchword/hello", QoS: 1, ID: 3, Payload: []byte(`{"nonce":"","epoch":1,"seq":0,"max":-1}`)})
	if ack, ok := c.next().(*packet.Ack); !ok || !ack.Reason.Failed() {
		t.Errorf("a negative max: %+v", ack)
	}
	must(t, c.nc.Close())

	for what, get := range map[string]func(query string) string{
		"poll": func(query string) string {
			var out struct {
				Commands []struct {
					JWE string `json:"jwe"`
				} `json:"commands"`
			}
			a := srv.request("GET", "/v1/self/commands?wait=20s&limit=1"+query, srv.token(d), "")
			must(t, json.Unmarshal([]byte(a.body), &out))
			if len(out.Commands) != 1 {
				t.Fatalf("%s", a.body)
			}
			return out.Commands[0].JWE
		},
		"stream": func(query string) string {
			var out struct {
				JWE string `json:"jwe"`
			}
			must(t, json.Unmarshal([]byte(next(t, srv.stream("/v1/self/commands?"+query, srv.token(d)), "command").Data), &out))
			return out.JWE
		},
	} {
		var sent []api.Command
		for range 3 {
			sent = append(sent, srv.commandTo(d, large))
		}
		small := srv.commandTo(d, nil)
		if n := numberOf(t, srv, d, get("&max=2000")); n != small.Seq {
			t.Errorf("%s: number %d came, want %d", what, n, small.Seq)
		}
		for _, s := range sent {
			srv.tooLarge(s, 2000)
		}
	}
	if a := srv.request("GET", "/v1/self/commands?max=-1", srv.token(d), ""); a.status != 400 {
		t.Errorf("a negative max: %d", a.status)
	}
}

// The SDK says what its device can hold, over both transports, and takes no more.
func TestSDKDeviceWithSmallMaxCommand(t *testing.T) {
	srv := serve(t, nil)
	_, port, err := net.SplitHostPort(srv.info.MQTTS)
	must(t, err)
	for _, over := range []string{"mqtt", "https"} {
		t.Run(over, func(t *testing.T) {
			var dialer net.Dialer
			connected := make(chan string, 16)
			d := srv.enroll(watchword.SubjectID("lamp-"+over), device.Options{
				MaxCommand: 2000, Connected: func(over string) { connected <- over },
				Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
					if over == "https" && strings.HasSuffix(address, ":"+port) {
						return nil, errors.New("no MQTT here")
					}
					return dialer.DialContext(ctx, network, address)
				},
			}, nil)
			d.HandleAny(func(context.Context, *device.Command) (any, error) { return nil, nil })
			first, second := srv.commandTo(d, large), srv.commandTo(d, nil)
			ctx, cancel := context.WithCancel(t.Context())
			ran := make(chan error, 1)
			go func() { ran <- d.Run(ctx) }()
			srv.waitForState(second, watchword.Done)
			srv.tooLarge(first, 2000)
			if got := testwait.For(t, "a connection", connected); got != over {
				t.Errorf("connected over %s", got)
			}
			cancel()
			must(t, testwait.For(t, "the end of the device", ran))
			if _, err := d.Execute(t.Context(), strings.Repeat("x", 2001)); watchword.CodeOf(err) != watchword.TooLarge {
				t.Errorf("a larger one: %v", err)
			}
		})
	}
}

// A command is delivered only by its own PUBACK. A refused one stays sent and takes no place of the window, and a duplicate
// PUBACK adds none.
func TestCommandIsDeliveredOnlyByItsPuback(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	c := connectRaw(t, d, nil, "devices/lamp-1/commands")
	var sent []api.Command
	for range 40 {
		sent = append(sent, srv.commandTo(d, nil))
	}
	taken := []int{1, 17, 39}
	for i := range 40 {
		p := c.command()
		reason := packet.QuotaExceeded
		if slices.Contains(taken, i) {
			reason = packet.Success
		}
		c.acknowledge(p, reason)
		c.acknowledge(p, packet.Success) // it answers nothing any more
	}
	srv.waitForState(sent[39], watchword.Delivered)
	for i, s := range sent {
		want := watchword.Sent
		if slices.Contains(taken, i) {
			want = watchword.Delivered
		}
		srv.waitForState(s, want)
	}
	// The last acknowledgement is written down; so none of the others is on its way.
	got, err := srv.admin.Command(t.Context(), sent[0].ID, 0)
	must(t, err)
	if got.State != watchword.Sent {
		t.Errorf("the first is %s", got.State)
	}
	// Over the next connection they come again, and the window is 16: no 17th before an answer.
	must(t, c.nc.Close())
	c = connectRaw(t, d, nil, "devices/lamp-1/commands", "devices/lamp-1/config")
	for range 16 {
		c.command()
	}
	c.say("devices/lamp-1/events/marker", "1")
}

// Commands that wait in a client's hand leave half of its Receive Maximum to everything else.
func TestCommandsLeaveRoomForOtherMessages(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	for range 6 {
		srv.commandTo(d, nil)
	}
	c := connectRaw(t, d, func(p *packet.Connect) { p.Properties.SetNumber(packet.ReceiveMaximum, 8) }, "devices/lamp-1/commands")
	first := c.command()
	for range 3 {
		c.command()
	}
	c.say("devices/lamp-1/events/marker", "1") // no fifth
	c.acknowledge(first, packet.Success)
	c.command()
	c.say("devices/lamp-1/events/marker", "2")
}

// Commands in the queue of a client whose subscription is taken go out by another one
// that it has.
func TestQueuedCommandsUseRemainingSubscription(t *testing.T) {
	srv := serve(t, nil)
	policy := []byte("subjects = [\"lamp-1\"]\n[[allow]]\nsubscribe = [\"devices/lamp-1/#\"]\n")
	_, err := srv.admin.ApplyPolicy(t.Context(), "wide", policy, -1)
	must(t, err)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	c := connectRaw(t, d, func(p *packet.Connect) { p.Properties.SetNumber(packet.ReceiveMaximum, 1) }, "devices/lamp-1/#", "$watchword/auth")
	var sent []api.Command
	for range 4 {
		sent = append(sent, srv.commandTo(d, nil))
	}
	p := c.command()
	srv.waitForState(sent[3], watchword.Sent) // in the queue: the client takes one at once
	c.subscribe("devices/lamp-1/commands")
	must(t, srv.admin.DeletePolicy(t.Context(), "wide"))
	c.acknowledge(p, packet.Success)
	wait := testwait.Within()
	for seen := map[string]bool{}; len(seen) < 3; {
		wait.Check(t, fmt.Sprintf("three commands on their topic, of which came %d", len(seen)))
		p := c.command()
		if p.Topic == "devices/lamp-1/commands" {
			seen[string(p.Payload)] = true
		}
		c.acknowledge(p, packet.Success)
	}
	for _, s := range sent {
		srv.waitForState(s, watchword.Delivered)
	}
}
