package attack_test

import (
	"context"
	"crypto/tls"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
)

// A subject that must prove its key gets nothing that works without a proof.
func TestProofRequiredEverywhere(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, watchword.Labels{"site": "a"})
	ctx := t.Context()
	bearer := srv.token(d)
	for name, require := range map[string]func(on bool){
		"the subject": func(on bool) {
			proof := map[bool]string{true: watchword.RequireProof}[on]
			got, err := srv.admin.SetProof(ctx, "lamp-1", proof)
			must(t, err)
			if got.Proof != proof {
				t.Errorf("it is %q", got.Proof)
			}
		},
		"a policy": func(on bool) {
			if !on {
				must(t, srv.admin.DeletePolicy(ctx, "proving"))
				return
			}
			_, err := srv.admin.ApplyPolicy(ctx, "proving", []byte("for = { site = \"a\" }\nproof = \"required\"\n"), -1)
			must(t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, err := dialPaho(t, d, "lamp-1/a", srv.token(d))
			must(t, err)
			require(true)
			if p := <-w.ended; p.ReasonCode != 0x87 || p.Properties == nil || !strings.HasPrefix(p.Properties.ReasonString, "proof_required") {
				t.Errorf("the live session ended with %#x %+v", p.ReasonCode, p.Properties)
			}
			if a := srv.request("GET", "/v1/self", bearer, ""); a.status != 401 || a.code != watchword.ProofRequired {
				t.Errorf("a bearer token: %d %s", a.status, a.body)
			} else {
				srv.waitForRefusalEntry(a.member(t, "trace_id"), watchword.ProofRequired, "lamp-1")
			}
			if a := srv.post("/oauth/token", d, grant); a.status != 400 || a.code != watchword.ProofRequired || a.oauth != "invalid_dpop_proof" {
				t.Errorf("a token without a proof: %d %s", a.status, a.body)
			}
			assertion, err := d.Assertion(time.Minute)
			must(t, err)
			for what, password := range map[string]string{"a token": bearer, "an assertion": assertion} {
				w, err := dialPaho(t, d, "lamp-1/b", password)
				if err == nil || w.ack == nil || w.ack.ReasonCode != 0x87 || !strings.HasPrefix(w.ack.Properties.ReasonString, "proof_required") {
					t.Errorf("%s as the password: %v %+v", what, err, w.ack)
				}
			}
			s := deviceSigner(t, d)
			tok := srv.bound(d, s)
			if a := srv.send("GET", "/v1/self", "", http.Header{"Authorization": {"DPoP " + tok}, "Dpop": {prove(t, s, "GET", srv.url+"/v1/self", srv.nonce(), tok)}}); a.status != 200 {
				t.Errorf("with a proof: %d %s", a.status, a.body)
			}
			e, err := srv.admin.Explain(ctx, "lamp-1", "pub", "topic:devices/lamp-1/events/lux", nil)
			must(t, err)
			if !e.Allowed || !strings.HasPrefix(e.Proof, "required ") {
				t.Errorf("explained as %+v", e)
			}
			require(false)
			if a := srv.request("GET", "/v1/self", bearer, ""); a.status != 200 {
				t.Errorf("when it has expired: %d %s", a.status, a.body)
			}
		})
	}
	es, err := srv.admin.Entries(ctx, 0, 10_000)
	must(t, err)
	n := 0
	for _, e := range es {
		if e.Kind == audit.DeviceProof && e.Object == "lamp-1" {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d entries", n)
	}
	made, err := srv.admin.CreateDeviceWithProof(ctx, "lamp-2", nil, watchword.RequireProof, 0)
	must(t, err)
	if made.Proof != watchword.RequireProof {
		t.Errorf("made with %q", made.Proof)
	}
	if a := srv.request("PUT", "/v1/devices/lamp-2/proof", mustValue(srv.admin.Tokens().Renew(ctx))(t), `{"proof":"often"}`); a.code != watchword.BadRequest || a.field != "proof" {
		t.Errorf("another word: %d %s", a.status, a.body)
	}
}

// Operators may be under proof as well: the client finds out by itself.
func TestAnOperatorUnderProof(t *testing.T) {
	srv := serve(t, nil)
	must(t, srv.admin.Devices(t.Context(), nil, "", func(api.Device) error { return nil }))
	_, err := srv.admin.ApplyPolicy(t.Context(), "proving", []byte("for = {}\nkinds = [\"operator\"]\nproof = \"required\"\n"), 0)
	must(t, err)
	must(t, srv.admin.Devices(t.Context(), nil, "", func(api.Device) error { return nil }))
	if !srv.admin.Tokens().BindsTokens() {
		t.Error("it was let in without a proof")
	}
	fresh, err := admin.Local(srv.dir)
	must(t, err)
	must(t, fresh.Devices(t.Context(), nil, "", func(api.Device) error { return nil }))
}

// The SDK keeps working for a device that must prove its key: over MQTT by ace,
// refreshed by AUTH, over HTTPS by DPoP.
func TestSDKUsesProofOfPossession(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Token.Lifetime.Duration = 60 * time.Second })
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	over := make(chan string, 16)
	v := counting(srv.enroll("lamp-1", device.Options{Connected: func(o string) { over <- o }}, nil))
	ran := make(chan error, 1)
	go func() { ran <- v.Run(ctx) }()
	if got := <-over; got != "mqtt" {
		t.Fatal(got)
	}
	_, err := srv.admin.SetProof(ctx, "lamp-1", watchword.RequireProof)
	must(t, err)
	if got := <-over; got != "mqtt" { // cut, and there again by ace
		t.Fatal(got)
	}
	c, err := srv.admin.Send(ctx, admin.CommandOrder{Device: "lamp-1", Function: "lamp.set", WaitReceipt: 20 * time.Second})
	must(t, err)
	if c.State != watchword.Done || v.acts.Load() != 1 {
		t.Errorf("the command is %s after %d acts", c.State, v.acts.Load())
	}
	list, err := srv.admin.Sessions(ctx, "lamp-1")
	must(t, err)
	if len(list) != 1 {
		t.Fatalf("%d sessions", len(list))
	}
	// A policy edit makes the server request a refresh: the session continues, with a later end.
	_, err = srv.admin.ApplyPolicy(ctx, "more", []byte("for = {}\n[[allow]]\npublish = [\"plant/lux\"]\n"), 0)
	must(t, err)
	for moved := false; !moved; {
		now, err := srv.admin.Sessions(ctx, "lamp-1")
		must(t, err)
		if len(now) != 1 || now[0].ID != list[0].ID {
			t.Fatalf("the session went: %+v", now)
		}
		moved = now[0].ExpiresAt.After(list[0].ExpiresAt)
	}
	must(t, v.Publish(ctx, "lux", 42))
	stop()
	must(t, <-ran)
	must(t, v.Publish(t.Context(), "lux", 43)) // over HTTPS now
	must(t, v.ReportState(t.Context(), map[string]int{"level": 7}))
}

// A device with ProvePossession proves its key from the start, and recovers when a restarted server knows none of its
// nonces.
func TestSDKUsesProofOfPossessionWhenConfigured(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{ProvePossession: true}, nil)
	must(t, d.Publish(t.Context(), "lux", 42))
	c := claims(t, mustValue(d.Token(t.Context()))(t))
	if cnf, _ := c["cnf"].(map[string]any); cnf["jkt"] != c["key"] {
		t.Errorf("bound to %v, proved by %v", c["cnf"], c["key"])
	}
	port := portOf(t, srv.url)
	srv.stop()
	serveOn(t, srv.dir, onPort(port))
	must(t, d.Publish(t.Context(), "lux", 43))
}

func TestBoundTokensOverMQTT(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	own := deviceSigner(t, d)
	_, unknown := newKey(t, "P-256")
	tok, foreign := srv.bound(d, own), srv.bound(d, unknown)
	w, err := dialPaho(t, d, "lamp-1", tok)
	if err == nil || w.ack.ReasonCode != 0x86 || !strings.HasPrefix(w.ack.Properties.ReasonString, "token_kind") {
		t.Errorf("a bound token as the password: %v %+v", err, w.ack)
	}
	ace := func(tok string, by *jose.Signer) (*paho.Client, *paho.Connack) {
		nc, err := tls.Dial("tcp", d.MQTT(), anchored(t, d))
		must(t, err)
		state := nc.ConnectionState()
		material, err := state.ExportKeyingMaterial("EXPORTER-ACE-MQTT-Sign-Challenge", nil, 32)
		must(t, err)
		sig, err := by.SignBytes(material)
		must(t, err)
		c := paho.NewClient(paho.ClientConfig{Conn: packets.NewThreadSafeConn(nc), AuthHandler: challenged{func(b []byte) []byte { return mustValue(by.SignBytes(b))(t) }}})
		ack, err := c.Connect(t.Context(), &paho.Connect{ClientID: "lamp-1", CleanStart: true, KeepAlive: 30, Properties: &paho.ConnectProperties{
			AuthMethod: "ace", AuthData: append(counted(tok), sig...),
		}})
		if ack == nil {
			t.Fatal(err)
		}
		return c, ack
	}
	if _, ack := ace(foreign, own); ack.ReasonCode != 0x86 || !strings.HasPrefix(ack.Properties.ReasonString, "token_kind") {
		t.Errorf("bound to another key: %#x %+v", ack.ReasonCode, ack.Properties)
	}
	if _, ack := ace(foreign, unknown); ack.ReasonCode != 0x86 {
		t.Errorf("bound to another key, proved by that: %#x %+v", ack.ReasonCode, ack.Properties)
	}
	if _, ack := ace(tok, unknown); ack.ReasonCode != 0x87 || !strings.HasPrefix(ack.Properties.ReasonString, "signature_invalid") {
		t.Errorf("another's proof: %#x %+v", ack.ReasonCode, ack.Properties)
	}
	c, ack := ace(tok, own)
	if ack.ReasonCode != 0 {
		t.Fatalf("%#x %+v", ack.ReasonCode, ack.Properties)
	}
	// A session that proved its key is not refreshed by a bearer token, over whatever endpoint.
	list, err := srv.admin.Sessions(t.Context(), "lamp-1")
	must(t, err)
	if a := srv.request("PUT", "/v1/self/sessions/"+string(list[0].ID), srv.token(d), ""); a.code != watchword.ProofRequired {
		t.Errorf("over HTTP: %d %s", a.status, a.body)
	}
	if r, err := c.Authenticate(t.Context(), &paho.Auth{ReasonCode: 0x19, Properties: &paho.AuthProperties{AuthMethod: "ace", AuthData: counted(srv.bound(d, own))}}); err != nil || !r.Success {
		t.Errorf("by AUTH: %+v %v", r, err)
	}
	must(t, c.Disconnect(&paho.Disconnect{}))
}
