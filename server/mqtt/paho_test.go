package mqtt_test

import (
	"context"
	"crypto/ed25519"
	"net"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword/mqtt/packet"
)

// prover is what a user of Eclipse Paho writes to prove a key.
type prover struct{ key ed25519.PrivateKey }

func (p prover) Authenticated() {}

func (p prover) Authenticate(a *paho.Auth) *paho.Auth {
	const mine = "12345678"
	return &paho.Auth{ReasonCode: byte(packet.ContinueAuthentication), Properties: &paho.AuthProperties{
		AuthMethod: "ace", AuthData: append(withLength(mine), ed25519.Sign(p.key, append(a.Properties.AuthData, mine...))...),
	}}
}

// Eclipse Paho's automatic client proves its key at CONNECT and again in the session, and stays connected past the expiry
// of its first token.
func TestAutopahoReauthenticatesBeforeExpiry(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		pub, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		srv.proofKey = pub
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		received := make(chan string, 10)
		ups := 0
		cm, err := autopaho.NewConnection(ctx, autopaho.ClientConfig{
			ServerUrls: []*url.URL{{Scheme: "mqtt", Host: "bubble"}}, KeepAlive: 20, CleanStartOnInitialConnection: true,
			AttemptConnection: func(context.Context, autopaho.ClientConfig, *url.URL) (net.Conn, error) {
				mine, theirs := net2()
				srv.broker.Handle(theirs)
				return packets.NewThreadSafeConn(mine), nil
			},
			OnConnectionUp: func(*autopaho.ConnectionManager, *paho.Connack) { ups++ },
			ConnectPacketBuilder: func(c *paho.Connect, _ *url.URL) (*paho.Connect, error) {
				c.Properties = &paho.ConnectProperties{AuthMethod: "ace", AuthData: withLength(srv.token("lamp-7", 10*time.Minute))}
				return c, nil
			},
			ClientConfig: paho.ClientConfig{
				ClientID: "lamp-7", AuthHandler: prover{key},
				OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) {
					received <- string(r.Packet.Payload)
					return true, nil
				}},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := cm.AwaitConnection(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := cm.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "a", QoS: 1}}}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			// Not when a ping is due: with no buffer between them, as no socket is,
			// answer and answer would wait for each other.
			time.Sleep(8*time.Minute + 7*time.Second)
			r, err := cm.Authenticate(ctx, &paho.Auth{ReasonCode: byte(packet.ReAuthenticate), Properties: &paho.AuthProperties{
				AuthMethod: "ace", AuthData: withLength(srv.token("lamp-7", 10*time.Minute)),
			}})
			if err != nil || !r.Success {
				t.Fatalf("%+v %v", r, err)
			}
		}
		time.Sleep(5 * time.Minute) // 29 minutes after a token of 10
		if _, err := cm.Publish(ctx, &paho.Publish{Topic: "a", QoS: 1, Payload: []byte("still here")}); err != nil {
			t.Fatal(err)
		}
		if got := <-received; got != "still here" || ups != 1 {
			t.Errorf("received %q, connected %d times", got, ups)
		}
		if err := cm.Disconnect(ctx); err != nil {
			t.Error(err)
		}
		synctest.Wait()
	})
}
