package attack_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/peers"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
)

const meterPolicy = `for = { kind = "meter" }
[[allow]]
publish   = ["plant/${id}/#", "answers/#", "ask/#"]
subscribe = ["plant/#", "answers/${id}", "ask/#"]
[[deny]]
publish   = ["plant/+/secret"]
`

// meterServer is a server with plain MQTT beside the other endpoints, and two devices.
func meterServer(t *testing.T) (srv *testServer, one, two *device.Device) {
	srv = serve(t, func(c *server.Config) { c.Server.MQTT = "127.0.0.1:0" })
	_, err := srv.admin.ApplyPolicy(t.Context(), "meters", []byte(meterPolicy), 0)
	must(t, err)
	labels := watchword.Labels{"kind": "meter"}
	return srv, srv.enroll("meter-1", device.Options{}, labels), srv.enroll("meter-2", device.Options{SignCurve: "Ed25519"}, labels)
}

// mosquitto runs one of mosquitto's clients as a device, over TLS.
func mosquitto(t *testing.T, name string, d *device.Device, id string, args ...string) *exec.Cmd {
	t.Helper()
	tok, err := d.NewToken(t.Context())
	must(t, err)
	host, port, _ := strings.Cut(d.MQTT(), ":")
	all := append([]string{"-h", host, "-p", port, "--cafile", d.CAFile(), "-i", id, "-u", "jwt", "-P", tok}, args...)
	// Lines come when they are written, so that a test can wait for them.
	return exec.CommandContext(t.Context(), outside(t, "stdbuf"), append([]string{"-oL", outside(t, name)}, all...)...)
}

func TestMosquittosClients(t *testing.T) {
	_, one, two := meterServer(t)
	for _, v := range []string{"mqttv311", "mqttv5"} {
		t.Run(v, func(t *testing.T) {
			// It says by itself that it has subscribed, and ends with the first message.
			sub := mosquitto(t, "mosquitto_sub", two, "meter-2", "-V", v, "-q", "1", "-t", "plant/+/lux", "-v", "-C", "1", "-d")
			received := make(chan string, 1)
			r, w := io.Pipe()
			sub.Stdout = w
			must(t, sub.Start())
			subscribed := make(chan struct{})
			go func() {
				var all bytes.Buffer
				b := make([]byte, 4096)
				for told := false; ; {
					n, err := r.Read(b)
					all.Write(b[:n])
					if !told && strings.Contains(all.String(), "Subscribed") {
						told = true
						close(subscribed)
					}
					if err != nil {
						received <- all.String()
						return
					}
				}
			}()
			<-subscribed
			out, err := mosquitto(t, "mosquitto_pub", one, "meter-1", "-V", v, "-q", "1", "-t", "plant/meter-1/lux", "-m", "42", "-d").CombinedOutput()
			if err != nil || !strings.Contains(string(out), "received PUBACK") {
				t.Errorf("%v\n%s", err, out)
			}
			must(t, sub.Wait())
			must(t, w.Close())
			if got := <-received; !strings.Contains(got, "plant/meter-1/lux 42") {
				t.Errorf("received %s", got)
			}
		})
	}
	t.Run("what its claims do not allow", func(t *testing.T) {
		out, _ := mosquitto(t, "mosquitto_pub", one, "meter-1", "-V", "mqttv5", "-q", "1", "-t", "plant/meter-1/secret", "-m", "x").CombinedOutput()
		if !strings.Contains(string(out), "Not authorized") || !strings.Contains(string(out), "denied by meters:5") {
			t.Errorf("got %s", out)
		}
		out, err := mosquitto(t, "mosquitto_pub", one, "meter-1", "-V", "mqttv311", "-q", "1", "-t", "plant/meter-2/lux", "-m", "x").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "lost") {
			t.Errorf("3.1.1: %v %s", err, out)
		}
		out, err = mosquitto(t, "mosquitto_sub", one, "meter-1", "-V", "mqttv5", "-t", "#", "-C", "1").CombinedOutput()
		if !strings.Contains(string(out), "denied") {
			t.Errorf("a subscription to all: %v %s", err, out)
		}
		out, err = mosquitto(t, "mosquitto_pub", one, "meter-2", "-V", "mqttv5", "-t", "plant/meter-1/lux", "-m", "x").CombinedOutput()
		if err == nil || !strings.Contains(strings.ToLower(string(out)), "client id") {
			t.Errorf("another's client id: %v %s", err, out)
		}
	})
	t.Run("request and response", func(t *testing.T) {
		w := connectPaho(t, two, "")
		w.subscribe(t, "ask/#")
		go func() {
			p := <-w.got
			_, _ = w.client.Publish(context.Background(), &paho.Publish{ // the asker says what came
				Topic: p.Properties.ResponseTopic, Payload: append([]byte("you said "), p.Payload...),
				Properties: &paho.PublishProperties{CorrelationData: p.Properties.CorrelationData},
			})
		}()
		out, err := mosquitto(t, "mosquitto_rr", one, "meter-1", "-V", "mqttv5", "-t", "ask/all", "-e", "answers/meter-1", "-m", "hello", "-W", "20").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "you said hello") {
			t.Errorf("%v %s", err, out)
		}
	})
}

// pahoClient is Eclipse Paho for MQTT 5.
type pahoClient struct {
	client *paho.Client
	ack    *paho.Connack
	got    chan *paho.Publish
	ended  chan *paho.Disconnect
}

// anchored is TLS as a device has it.
func anchored(t testing.TB, d *device.Device) *tls.Config {
	pem, err := os.ReadFile(d.CAFile())
	must(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &tls.Config{RootCAs: pool}
}

// connectPaho connects as a device, with a suffix or none.
func connectPaho(t *testing.T, d *device.Device, suffix string) *pahoClient {
	t.Helper()
	tok, err := d.NewToken(t.Context())
	must(t, err)
	w, err := dialPaho(t, d, string(d.ID())+suffix, tok)
	must(t, err)
	return w
}

func dialPaho(t testing.TB, d *device.Device, id, password string) (*pahoClient, error) {
	t.Helper()
	nc, err := tls.Dial("tcp", d.MQTT(), anchored(t, d))
	must(t, err)
	w := &pahoClient{got: make(chan *paho.Publish, 256), ended: make(chan *paho.Disconnect, 1)}
	w.client = paho.NewClient(paho.ClientConfig{
		Conn: packets.NewThreadSafeConn(nc),
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) {
			w.got <- r.Packet
			return true, nil
		}},
		OnServerDisconnect: func(p *paho.Disconnect) { w.ended <- p },
	})
	w.ack, err = w.client.Connect(t.Context(), &paho.Connect{ClientID: id, CleanStart: true, KeepAlive: 300, Username: "jwt", UsernameFlag: true, Password: []byte(password), PasswordFlag: true})
	if err == nil {
		t.Cleanup(func() { _ = w.client.Disconnect(&paho.Disconnect{}) }) // gone already in some tests
	}
	return w, err
}

func (w *pahoClient) subscribe(t *testing.T, filters ...string) {
	t.Helper()
	s := &paho.Subscribe{}
	for _, f := range filters {
		s.Subscriptions = append(s.Subscriptions, paho.SubscribeOptions{Topic: f, QoS: 1})
	}
	_, err := w.client.Subscribe(t.Context(), s)
	must(t, err)
}

func TestPaho3(t *testing.T) {
	srv, one, two := meterServer(t)
	connect := func(d *device.Device, broker string) *peers.Client {
		assertion, err := d.Assertion(time.Minute)
		must(t, err)
		ca, err := os.ReadFile(d.CAFile())
		must(t, err)
		c, err := peers.Find(t).Connect(t, string(d.ID()), peers.Connect{Broker: broker, Username: "jwt", Password: assertion, CA: ca, Clean: true})
		must(t, err)
		return c
	}
	var place struct {
		MQTT string `json:"mqtt"`
	}
	b, err := os.ReadFile(filepath.Join(srv.dir, "server.json"))
	must(t, err)
	must(t, json.Unmarshal(b, &place))
	sub := connect(two, "tcp://"+place.MQTT) // plain, on loopback
	must(t, sub.Subscribe(t, "plant/#", 1))
	pub := connect(one, "tls://"+one.MQTT())
	for range 50 {
		must(t, pub.Publish(t, "plant/meter-1/lux", 1, "42"))
		if m := <-sub.Messages; m.Topic != "plant/meter-1/lux" || m.Payload != "42" {
			t.Errorf("received %+v", m)
		}
	}
	if err := pub.Publish(t, "plant/meter-1/secret", 1, "x"); err == nil {
		t.Error("the secret is acknowledged")
	}
	<-pub.Lost // 3.1.1 has no other word
	_, err = srv.admin.Revoke(t.Context(), two.ID(), "stolen")
	must(t, err)
	<-sub.Lost
	if len(sub.Messages) > 0 {
		t.Errorf("received %+v", <-sub.Messages)
	}
}

func TestNpmMQTT(t *testing.T) {
	srv, one, two := meterServer(t)
	tok, err := one.NewToken(t.Context())
	must(t, err)
	w := connectPaho(t, two, "/listener")
	w.subscribe(t, "plant/#")
	const script = `
import mqtt from 'mqtt'
import fs from 'fs'
const [url, ca, id, password] = process.argv.slice(2)
for (const protocolVersion of [4, 5]) {
  const c = await mqtt.connectAsync(url, { ca: fs.readFileSync(ca), clientId: id, username: 'jwt', password, protocolVersion, reconnectPeriod: 0 })
  const granted = await c.subscribeAsync(['plant/#'], { qos: 1 })
  const received = new Promise(ok => c.on('message', (topic, payload) => ok(topic + ' ' + payload)))
  await c.publishAsync('plant/' + id + '/lux', 'v' + protocolVersion, { qos: 1 })
  let refused = 'closed'
  if (protocolVersion === 5) refused = await c.publishAsync('plant/' + id + '/secret', 'x', { qos: 1 }).then(() => 'passed', e => 'code ' + e.code)
  console.log(granted[0].qos, await received, refused)
  await c.endAsync()
}
`
	file := filepath.Join(mustDir(t), "client.mjs")
	must(t, os.WriteFile(file, []byte(script), 0o600))
	out := tool(t, "node", file, "mqtts://"+one.MQTT(), one.CAFile(), "meter-1", tok)
	if want := "1 plant/meter-1/lux v4 closed\n1 plant/meter-1/lux v5 code 135\n"; out != want {
		t.Errorf("got %q, want %q", out, want)
	}
	for _, want := range []string{"v4", "v5"} {
		if p := <-w.got; string(p.Payload) != want {
			t.Errorf("received %q, want %s", p.Payload, want)
		}
	}
	_ = srv
}

// mustDir is a new folder beside npm's modules, where node looks for them.
func mustDir(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat("npm/node_modules/mqtt"); err != nil {
		if os.Getenv("WATCHWORD_OUTSIDE") == "required" {
			t.Fatal("npm's mqtt is missing")
		}
		t.Skip("npm's mqtt is not installed; make test installs it")
	}
	dir, err := os.MkdirTemp("npm/node_modules", "test-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return dir
}

// Forged, stale and foreign credentials at the MQTT endpoint.
func TestCredentialsOverMQTT(t *testing.T) {
	srv, one, two := meterServer(t)
	good, err := one.NewToken(t.Context())
	must(t, err)
	foreign, err := two.Assertion(time.Minute)
	must(t, err)
	used, err := one.Assertion(time.Minute)
	must(t, err)
	first, err := dialPaho(t, one, "meter-1/a", used)
	must(t, err)
	for name, c := range map[string]struct {
		password string
		code     byte
	}{
		"nothing":                 {"", 0x87},
		"no token":                {"secret", 0x86},
		"a changed byte":          {good[:len(good)-8] + "AAAAAAAA", 0x87},
		"an assertion used twice": {used, 0x87},
		"another's assertion":     {foreign, 0x85},
		"a token of another kind": {string(mustValue(os.ReadFile(filepath.Join(filepath.Dir(one.CAFile()), "trust.jws")))(t)), 0x86},
	} {
		w, err := dialPaho(t, one, "meter-1/b", c.password)
		if err == nil || w.ack == nil || w.ack.ReasonCode != c.code {
			t.Errorf("%s: %v %+v, want %#x", name, err, w.ack, c.code)
		}
	}
	_, err = srv.admin.Suspend(t.Context(), "meter-1", "look into it")
	must(t, err)
	if p := <-first.ended; p.ReasonCode != 0x98 {
		t.Errorf("suspended: %#x", p.ReasonCode)
	}
	if w, err := dialPaho(t, one, "meter-1", good); err == nil || w.ack.ReasonCode != 0x87 {
		t.Errorf("a suspended device: %v", err)
	}
}

func mustValue[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		must(t, err)
		return v
	}
}

// A device's messages over HTTP are received over MQTT, and the other way round; stored messages are sent at once.
func TestTransportsShareEvents(t *testing.T) {
	srv, one, two := meterServer(t)
	_, err := srv.admin.ApplyPolicy(t.Context(), "listeners", []byte("subjects = [\"meter-2\"]\n[[allow]]\nsubscribe = [\"devices/+/events/#\", \"devices/+/state\"]\n"), 0)
	must(t, err)
	must(t, one.ReportState(t.Context(), map[string]int{"level": 7})) // over HTTP: it does not run
	w := connectPaho(t, two, "")
	w.subscribe(t, "devices/+/events/#", "devices/meter-1/state")
	if p := <-w.got; p.Topic != "devices/meter-1/state" || string(p.Payload) != `{"level":7}` || !p.Retain {
		t.Errorf("kept state: %+v", p)
	}
	must(t, one.Publish(t.Context(), "lux", 42))
	if p := <-w.got; p.Topic != "devices/meter-1/events/lux" || string(p.Payload) != "42" || p.Properties.ContentType != "application/json" {
		t.Errorf("event: %+v", p)
	}
	opened, events := make(chan struct{}), make(chan api.Event, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_ = srv.admin.Watch(ctx, "meter-2", "", func() { close(opened) }, func(e api.Event) error { // ends with the test
			events <- e
			return nil
		})
	}()
	<-opened
	_, err = w.client.Publish(t.Context(), &paho.Publish{Topic: "devices/meter-2/events/power", QoS: 1, Payload: []byte(`{"w":3}`)})
	must(t, err)
	if e := <-events; e.Stream != "power" || string(e.Data) != `{"w":3}` {
		t.Errorf("over SSE: %+v", e)
	}
	c := connectPaho(t, one, "")
	c.subscribe(t, "devices/meter-1/config")
	_, err = srv.admin.SetConfig(t.Context(), "meter-1", json.RawMessage(`{"every":5}`), -1)
	must(t, err)
	if p := <-c.got; p.Topic != "devices/meter-1/config" || strings.Count(string(p.Payload), ".") != 2 {
		t.Errorf("configuration: %+v", p)
	}
}

// Events of one stream that are published over HTTP and over MQTT at the same time reach a stream of server-sent events and
// an MQTT client in one order.
func TestTransportsHaveOneOrderOfEvents(t *testing.T) {
	srv, one, two := meterServer(t)
	_, err := srv.admin.ApplyPolicy(t.Context(), "listeners", []byte("subjects = [\"meter-2\"]\n[[allow]]\nsubscribe = [\"devices/+/events/#\"]\n"), 0)
	must(t, err)
	op, err := srv.admin.Tokens().Renew(t.Context())
	must(t, err)
	reader, publisher := connectPaho(t, two, ""), connectPaho(t, one, "")
	reader.subscribe(t, "devices/meter-1/events/#")
	stream := srv.stream("/v1/events?device=meter-1", op)
	const each = 60
	failed := make(chan error, 2)
	go func() {
		var err error
		for n := 0; n < each && err == nil; n++ {
			err = one.Publish(t.Context(), "lux", fmt.Sprint("http ", n)) // over HTTP: the device does not run
		}
		failed <- err
	}()
	go func() {
		var err error
		for n := 0; n < each && err == nil; n++ {
			_, err = publisher.client.Publish(t.Context(), &paho.Publish{Topic: "devices/meter-1/events/lux", QoS: 1, Payload: fmt.Appendf(nil, "%q", fmt.Sprint("mqtt ", n))})
		}
		failed <- err
	}()
	overMQTT, overSSE := make([]string, 2*each), make([]string, 2*each)
	for i := range overMQTT {
		var e api.Event
		must(t, json.Unmarshal([]byte(next(t, stream, "event").Data), &e))
		overSSE[i] = string(e.Data)
		select {
		case p := <-reader.got:
			overMQTT[i] = string(p.Payload)
		case <-time.After(20 * time.Second):
			t.Fatalf("MQTT: no event after %d", i)
		}
	}
	must(t, <-failed)
	must(t, <-failed)
	if !slices.Equal(overMQTT, overSSE) {
		t.Errorf("over MQTT %q, over SSE %q", overMQTT, overSSE)
	}
}

// Commands go to one connection of a device, in sequence; to the newest, and back
// to the one before when that closes; delivered is the PUBACK.
func TestCommandsOverMQTT(t *testing.T) {
	srv, one, _ := meterServer(t)
	send := func() api.Command {
		c, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: "meter-1", Function: "reset"})
		must(t, err)
		return c
	}
	waiting := send() // before a device is connected
	a := connectPaho(t, one, "/a")
	a.subscribe(t, "devices/meter-1/commands")
	if p := <-a.got; p.Topic != "devices/meter-1/commands" || p.QoS != 1 {
		t.Fatalf("%+v", p)
	}
	b := connectPaho(t, one, "/b")
	b.subscribe(t, "devices/meter-1/commands")
	for range 40 {
		send()
	}
	for i := range 40 {
		select {
		case <-b.got:
		case p := <-a.got:
			t.Fatalf("command %d went to the older connection: %+v", i, p)
		}
	}
	must(t, b.client.Disconnect(&paho.Disconnect{}))
	last := send()
	c := last
	for !c.State.Final() { // one that was not acknowledged there is sent first, again
		p := <-a.got
		r, err := one.Execute(t.Context(), string(p.Payload))
		must(t, err)
		must(t, one.SendReceipt(t.Context(), r))
		c = mustValue(srv.admin.Command(t.Context(), last.ID, 0))(t)
	}
	if c.State != watchword.Done && c.State != watchword.Refused {
		t.Errorf("the last is %s", c.State)
	}
	for c.ID != waiting.ID || c.State == watchword.Sent { // written down a moment after the PUBACK
		c = mustValue(srv.admin.Command(t.Context(), waiting.ID, 0))(t)
	}
	if c.State != watchword.Delivered {
		t.Errorf("the first is %s", c.State)
	}
}

// Eclipse Paho proves the device's key by the TLS connection's exporter, with no
// challenge; and again in session, where only a challenge counts. A proof made for
// another connection is worth nothing.
func TestExporterProof(t *testing.T) {
	_, one, _ := meterServer(t)
	tok, err := one.NewToken(t.Context())
	must(t, err)
	raw := mustValue(os.ReadFile(filepath.Join(filepath.Dir(one.CAFile()), "sign.jwk")))(t)
	key := mustValue(jose.ParsePrivateJWK(raw, jose.ForSigning))(t).Crypto().(*ecdsa.PrivateKey)
	prove := func(material []byte) []byte {
		sum := sha256.Sum256(material)
		r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
		must(t, err)
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}
	connect := func(other *tls.Conn) (*paho.Client, byte) {
		nc, err := tls.Dial("tcp", one.MQTT(), anchored(t, one))
		must(t, err)
		from := nc
		if other != nil {
			from = other
		}
		state := from.ConnectionState()
		material, err := state.ExportKeyingMaterial("EXPORTER-ACE-MQTT-Sign-Challenge", nil, 32)
		must(t, err)
		c := paho.NewClient(paho.ClientConfig{Conn: packets.NewThreadSafeConn(nc), AuthHandler: challenged{prove}})
		ack, err := c.Connect(t.Context(), &paho.Connect{ClientID: "meter-1", CleanStart: true, KeepAlive: 30, Properties: &paho.ConnectProperties{
			AuthMethod: "ace", AuthData: append(counted(tok), prove(material)...),
		}})
		if err != nil && ack == nil {
			t.Fatal(err)
		}
		return c, ack.ReasonCode
	}
	c, code := connect(nil)
	if code != 0 {
		t.Fatalf("CONNACK %#x", code)
	}
	r, err := c.Authenticate(t.Context(), &paho.Auth{ReasonCode: 0x19, Properties: &paho.AuthProperties{AuthMethod: "ace", AuthData: counted(tok)}})
	if err != nil || !r.Success {
		t.Errorf("re-authentication: %+v %v", r, err)
	}
	must(t, c.Disconnect(&paho.Disconnect{}))
	foreign, err := tls.Dial("tcp", one.MQTT(), anchored(t, one))
	must(t, err)
	defer foreign.Close()
	if _, code := connect(foreign); code != 0x87 {
		t.Errorf("a proof for another connection: %#x", code)
	}
}

// challenged answers the server's challenges.
type challenged struct{ prove func([]byte) []byte }

func (challenged) Authenticated() {}

func (c challenged) Authenticate(a *paho.Auth) *paho.Auth {
	const mine = "12345678"
	return &paho.Auth{ReasonCode: 0x18, Properties: &paho.AuthProperties{
		AuthMethod: "ace", AuthData: append(counted(mine), c.prove(append(a.Properties.AuthData, mine...))...),
	}}
}

// counted puts the length of s before it, in two bytes.
func counted(s string) []byte { return append([]byte{byte(len(s) >> 8), byte(len(s))}, s...) }
