package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/sdk/device"
)

// mqttClient is a device's MQTT connection with a third-party client: Eclipse Paho, with an access token as the password.
type mqttClient struct {
	client  *paho.Client
	session string
	expires time.Time
	got     chan *paho.Publish
	ended   chan *paho.Disconnect
}

func connectMQTT(ctx context.Context, d *device.Device) (*mqttClient, error) {
	tok, err := d.NewToken(ctx)
	if err != nil {
		return nil, err
	}
	pem, err := durable.ReadTrusted(d.CAFile(), 1<<20)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	nc, err := (&tls.Dialer{Config: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}}).DialContext(ctx, "tcp", d.MQTT())
	if err != nil {
		return nil, err
	}
	w := &mqttClient{got: make(chan *paho.Publish, 16), ended: make(chan *paho.Disconnect, 1)}
	w.client = paho.NewClient(paho.ClientConfig{
		Conn: packets.NewThreadSafeConn(nc),
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) {
			w.got <- r.Packet
			return true, nil
		}},
		OnServerDisconnect: func(p *paho.Disconnect) { w.ended <- p },
	})
	ack, err := w.client.Connect(ctx, &paho.Connect{
		ClientID: string(d.ID()), CleanStart: true, KeepAlive: 30, Username: "jwt", UsernameFlag: true, Password: []byte(tok), PasswordFlag: true,
	})
	if err != nil {
		return nil, fmt.Errorf("CONNECT: %w", err)
	}
	w.session = ack.Properties.User.Get("session")
	if w.expires, err = time.Parse(time.RFC3339, ack.Properties.User.Get("expires_at")); err != nil {
		return nil, err
	}
	_, err = w.client.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{
		{Topic: "devices/" + string(d.ID()) + "/commands", QoS: 1}, {Topic: "$watchword/auth", QoS: 1},
	}})
	return w, err
}

func (w *mqttClient) publish(ctx context.Context, topic, payload string) error {
	_, err := w.client.Publish(ctx, &paho.Publish{Topic: topic, QoS: 1, Payload: []byte(payload)})
	return err
}

// next returns the next message on topic.
func (w *mqttClient) next(ctx context.Context, topic string) ([]byte, error) {
	for {
		select {
		case p := <-w.got:
			if p.Topic == topic {
				return p.Payload, nil
			}
		case p := <-w.ended:
			return nil, fmt.Errorf("the connection ended with %#x %s", p.ReasonCode, p.Properties.ReasonString)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
