package attack_test

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword/internal/peers"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/sdk/device"
)

// Sessions that outlive their connection, QoS 2, retained messages, wills and shared
// subscriptions, with clients that others wrote.

const sharedScript = `
import mqtt from 'mqtt'
import fs from 'fs'
const [url, ca, id, password] = process.argv.slice(2)
const wait = (c, n) => new Promise(ok => { const got = []; c.on('message', (topic, payload, p) => { got.push(topic.split('/').pop() + '=' + payload + (p.retain ? ' retained' : '') + ' ' + p.qos); if (got.length === n) ok(got) }) })
for (const protocolVersion of [4, 5]) {
  const base = { ca: fs.readFileSync(ca), username: 'jwt', password, protocolVersion, reconnectPeriod: 0 }
  const away = { ...base, clientId: id + '/away', clean: false, properties: protocolVersion === 5 ? { sessionExpiryInterval: 600 } : undefined }
  const one = await mqtt.connectAsync(url, away)
  await one.subscribeAsync('plant/+/q', { qos: 2 })
  await one.endAsync()
  const pub = await mqtt.connectAsync(url, { ...base, clientId: id })
  for (let n = 0; n < 5; n++) await pub.publishAsync('plant/' + id + '/q', 'm' + n, { qos: n < 3 ? 1 : 2 })
  await pub.publishAsync('plant/' + id + '/r', 'kept', { qos: 1, retain: true })
  const two = mqtt.connect(url, away)
  const present = new Promise(ok => two.on('connect', ack => ok(ack.sessionPresent)))
  const queued = await wait(two, 5)
  console.log(protocolVersion, await present, queued.join(','))
  const kept = wait(two, 1)
  await two.subscribeAsync('plant/+/r', { qos: 2 })
  console.log((await kept).join(','))
  await pub.publishAsync('plant/' + id + '/r', '', { qos: 1, retain: true })
  // A will, of a connection that breaks.
  const lost = await mqtt.connectAsync(url, { ...base, clientId: id + '/lost', will: { topic: 'plant/' + id + '/q', payload: 'will', qos: 2 } })
  const will = wait(two, 1)
  lost.stream.destroy()
  console.log((await will).join(','))
  await two.unsubscribeAsync(['plant/+/q', 'plant/+/r'])
  await two.endAsync()
  await pub.endAsync()
}
process.exit(0)
`

func TestNpmMQTTEndToEnd(t *testing.T) {
	srv, one, _ := meterServer(t)
	file := filepath.Join(mustDir(t), "all.mjs")
	must(t, os.WriteFile(file, []byte(sharedScript), 0o600))
	for _, url := range []string{"mqtts://" + one.MQTT(), "wss://" + strings.TrimPrefix(srv.url, "https://") + "/mqtt"} {
		tok, err := one.NewToken(t.Context())
		must(t, err)
		out := tool(t, "node", file, url, one.CAFile(), "meter-1", tok)
		var want string
		for _, v := range []string{"4", "5"} {
			want += v + " true q=m0 1,q=m1 1,q=m2 1,q=m3 2,q=m4 2\nr=kept retained 1\nq=will 2\n"
		}
		if out != want {
			t.Errorf("over %s: got\n%s", url, out)
		}
	}
}

// connectPaho3 is Paho for 3.1.1, which reconnects to its session automatically.
func connectPaho3(t *testing.T, d *device.Device, clean bool) *peers.Client {
	t.Helper()
	tok, err := d.NewToken(t.Context())
	must(t, err)
	ca, err := os.ReadFile(d.CAFile())
	must(t, err)
	c, err := peers.Find(t).Connect(t, string(d.ID()), peers.Connect{Broker: "ssl://" + d.MQTT(), Username: "jwt", Password: tok, CA: ca, Clean: clean, Reconnect: true})
	must(t, err)
	return c
}

func TestPaho3ResumesSession(t *testing.T) {
	srv, one, two := meterServer(t)
	sub := connectPaho3(t, two, false)
	must(t, sub.Subscribe(t, "plant/+/lux", 2))
	pub := connectPaho3(t, one, true)
	// The server closes the connection, and the client resumes its session.
	for round := range 3 {
		ss, err := srv.admin.Sessions(t.Context(), two.ID())
		must(t, err)
		for _, s := range ss {
			must(t, srv.admin.CloseSession(t.Context(), s.ID))
		}
		for n := range 3 {
			must(t, pub.Publish(t, "plant/meter-1/lux", byte(n), fmt.Sprintf("%d-%d", round, n)))
		}
		for _, want := range []string{fmt.Sprintf("%d-1 1 false", round), fmt.Sprintf("%d-2 2 false", round)} {
			for m := range sub.Messages {
				if m.QoS == 0 && !m.Retained {
					continue // QoS 0 is received by connected clients only
				}
				if got := fmt.Sprintf("%s %d %v", m.Payload, m.QoS, m.Retained); got != want {
					t.Fatalf("received %q, want %q", got, want)
				}
				break
			}
		}
	}
	// What waits is shown.
	must(t, sub.Disconnect(t))
	must(t, pub.Publish(t, "plant/meter-1/lux", 1, "waits"))
	_, away, err := srv.admin.AllSessions(t.Context(), two.ID())
	must(t, err)
	if len(away) != 1 || away[0].MQTT.Client != "meter-2" || away[0].MQTT.Messages < 1 || !slices.Equal(away[0].MQTT.Subscriptions, []string{"plant/+/lux"}) {
		t.Fatalf("%+v", away)
	}
	must(t, srv.admin.CloseSession(t.Context(), away[0].ID))
	if _, away, err = srv.admin.AllSessions(t.Context(), two.ID()); err != nil || len(away) != 0 {
		t.Errorf("%+v %v", away, err)
	}
}

// pahoOver connects paho for version 5 over a connection, to a session that lasts.
func pahoOver(t *testing.T, d *device.Device, id string, edit func(*paho.Connect), w *pahoClient, conn paho.ClientConfig) {
	t.Helper()
	tok, err := d.NewToken(t.Context())
	must(t, err)
	conn.OnPublishReceived = []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) { w.got <- r.Packet; return true, nil }}
	conn.OnServerDisconnect = func(p *paho.Disconnect) { w.ended <- p }
	w.client = paho.NewClient(conn)
	expiry := uint32(600)
	c := &paho.Connect{ClientID: id, KeepAlive: 30, Username: "jwt", UsernameFlag: true, Password: []byte(tok), PasswordFlag: true, Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry}}
	if edit != nil {
		edit(c)
	}
	w.ack, err = w.client.Connect(t.Context(), c)
	must(t, err)
}

func TestPaho5SharesAndWaits(t *testing.T) {
	_, one, two := meterServer(t)
	connect := func(d *device.Device, suffix string) *pahoClient {
		nc, err := tls.Dial("tcp", d.MQTT(), anchored(t, d))
		must(t, err)
		w := &pahoClient{got: make(chan *paho.Publish, 256), ended: make(chan *paho.Disconnect, 1)}
		pahoOver(t, d, string(d.ID())+suffix, nil, w, paho.ClientConfig{Conn: packets.NewThreadSafeConn(nc)})
		return w
	}
	a, b := connect(one, "/a"), connect(one, "/b")
	for _, w := range []*pahoClient{a, b} {
		_, err := w.client.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "$share/workers/plant/+/job", QoS: 2}}})
		must(t, err)
	}
	pub := connect(two, "")
	jobs := func(from, to int) {
		for n := from; n < to; n++ {
			_, err := pub.client.Publish(t.Context(), &paho.Publish{Topic: "plant/meter-2/job", QoS: byte(1 + n%2), Payload: []byte(fmt.Sprint(n))})
			must(t, err)
		}
	}
	jobs(0, 20)
	seen := map[string]int{}
	count := map[*pahoClient]int{}
	take := func(n int) {
		for range n {
			select {
			case p := <-a.got:
				seen[string(p.Payload)]++
				count[a]++
			case p := <-b.got:
				seen[string(p.Payload)]++
				count[b]++
			}
		}
	}
	take(20)
	if count[a] != 10 || count[b] != 10 || len(seen) != 20 {
		t.Errorf("%d and %d of %d", count[a], count[b], len(seen))
	}
	must(t, a.client.Disconnect(&paho.Disconnect{}))
	jobs(20, 30)
	take(10)
	if count[b] != 20 {
		t.Errorf("who is there had %d", count[b])
	}
}

// MQTT over WebSocket: the subprotocol, binary frames, packets in any pieces, and the
// word with which it ends.
func TestMQTTOverWebSocket(t *testing.T) {
	srv, one, _ := meterServer(t)
	tok, err := one.NewToken(t.Context())
	must(t, err)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: anchored(t, one)}}
	dial := func(protocols ...string) *websocket.Conn {
		ws, _, err := websocket.Dial(t.Context(), "wss"+strings.TrimPrefix(srv.url, "https")+"/mqtt", &websocket.DialOptions{HTTPClient: client, Subprotocols: protocols, HTTPHeader: http.Header{"Origin": {"https://elsewhere.example"}}})
		must(t, err)
		return ws
	}
	ended := func(ws *websocket.Conn, want websocket.StatusCode) {
		t.Helper()
		for {
			if _, _, err := ws.Read(t.Context()); err != nil {
				if got := websocket.CloseStatus(err); got != want {
					t.Errorf("ended with %v (%v), want %v", got, err, want)
				}
				return
			}
		}
	}
	ended(dial(), websocket.StatusProtocolError)
	ws := dial("mqtt")
	must(t, ws.Write(t.Context(), websocket.MessageText, []byte("hello")))
	ended(ws, websocket.StatusUnsupportedData)

	connect := packet.Append(nil, &packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "meter-1", Username: "jwt", HasUser: true, HasPass: true, Password: []byte(tok)}, packet.V5)
	both := packet.Append(connect, &packet.Ping{}, packet.V5)
	ws = dial("mqtt")
	for _, piece := range [][]byte{both[:1], both[1:40], both[40:]} {
		must(t, ws.Write(t.Context(), websocket.MessageBinary, piece))
	}
	var in []byte
	for len(in) < 4 || in[len(in)-2] != byte(packet.PINGRESP)<<4 {
		_, b, err := ws.Read(t.Context())
		must(t, err)
		in = append(in, b...)
	}
	if in[0] != byte(packet.CONNACK)<<4 {
		t.Errorf("%x", in)
	}
	_, err = srv.admin.Suspend(t.Context(), one.ID(), "look into it")
	must(t, err)
	ended(ws, websocket.StatusPolicyViolation)
	res, err := client.Get(srv.url + "/mqtt")
	must(t, err)
	_ = res.Body.Close()
	if res.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("no upgrade: %d", res.StatusCode)
	}
}

func TestMosquittoClientsResumeSession(t *testing.T) {
	_, one, two := meterServer(t)
	for _, v := range []string{"mqttv311", "mqttv5"} {
		session := []string{"-V", v, "-q", "2", "-c", "-t", "plant/+/lux", "-v"}
		if v == "mqttv5" {
			session = append(session, "-x", "600")
		}
		id := "meter-2/" + v
		if out, err := mosquitto(t, "mosquitto_sub", two, id, append(session, "-E")...).CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		for n, qos := range []string{"1", "2", "2"} { // it hands QoS 2 on once that is released
			if out, err := mosquitto(t, "mosquitto_pub", one, "meter-1", "-V", v, "-q", qos, "-t", "plant/meter-1/lux", "-m", fmt.Sprint(n)).CombinedOutput(); err != nil {
				t.Fatalf("%v %s", err, out)
			}
		}
		out, err := mosquitto(t, "mosquitto_sub", two, id, append(session, "-C", "3")...).CombinedOutput()
		if want := "plant/meter-1/lux 0\nplant/meter-1/lux 1\nplant/meter-1/lux 2\n"; err != nil || string(out) != want {
			t.Errorf("%s: %v %s", v, err, out)
		}
		if out, err := mosquitto(t, "mosquitto_pub", one, "meter-1", "-V", v, "-q", "2", "-r", "-t", "plant/meter-1/kept", "-m", v).CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		out, err = mosquitto(t, "mosquitto_sub", two, "meter-2", "-V", v, "-q", "2", "-t", "plant/meter-1/kept", "-C", "1", "-F", "%p %r").CombinedOutput()
		if err != nil || string(out) != v+" 1\n" {
			t.Errorf("%v %s", err, out)
		}
	}
}
