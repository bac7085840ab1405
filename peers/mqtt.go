package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// connectOptions is what a client for MQTT 3.1.1 connects with.
type connectOptions struct {
	Broker    string `json:"broker"` // URL: tcp:// or ssl://
	Username  string `json:"username"`
	Password  string `json:"password"`
	CA        []byte `json:"ca"`        // PEM
	Clean     bool   `json:"clean"`     // Clean Session
	Reconnect bool   `json:"reconnect"` // by itself, after 50 ms at most
}

// operation is how long the client may take for an op.
const operation = 20 * time.Second

var clients sync.Map // client identifier → paho.Client

func await(t paho.Token, what string) error {
	if !t.WaitTimeout(operation) {
		return fmt.Errorf("%s: no answer for %s", what, operation)
	}
	return t.Error()
}

func clientOf(r request) (paho.Client, error) {
	c, ok := clients.Load(r.Client)
	if !ok {
		return nil, errors.New("there is no client " + r.Client)
	}
	return c.(paho.Client), nil
}

// connect connects a client, whose messages and lost connections are events from then on.
func connect(r request) (answer, error) {
	o := paho.NewClientOptions().AddBroker(r.Connect.Broker).SetClientID(r.Client).SetUsername(r.Connect.Username).SetPassword(r.Connect.Password).
		SetProtocolVersion(4).SetCleanSession(r.Connect.Clean).SetAutoReconnect(r.Connect.Reconnect).SetMaxReconnectInterval(50 * time.Millisecond).SetOrderMatters(true)
	if len(r.Connect.CA) > 0 {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(r.Connect.CA) {
			return answer{}, errors.New("ca has no certificate")
		}
		o.SetTLSConfig(&tls.Config{RootCAs: pool})
	}
	o.SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) {
		send(answer{Event: "message", Client: r.Client, Topic: m.Topic(), Data: m.Payload(), QoS: m.Qos(), Retained: m.Retained()})
	})
	o.SetConnectionLostHandler(func(_ paho.Client, err error) { send(answer{Event: "lost", Client: r.Client, Error: err.Error()}) })
	c := paho.NewClient(o)
	clients.Store(r.Client, c)
	return answer{}, await(c.Connect(), "connect")
}

func subscribe(r request) (answer, error) {
	c, err := clientOf(r)
	if err != nil {
		return answer{}, err
	}
	return answer{}, await(c.Subscribe(r.Topic, r.QoS, nil), "subscribe")
}

func publish(r request) (answer, error) {
	c, err := clientOf(r)
	if err != nil {
		return answer{}, err
	}
	return answer{}, await(c.Publish(r.Topic, r.QoS, false, r.Data), "publish")
}

func disconnect(r request) (answer, error) {
	c, err := clientOf(r)
	if err != nil {
		return answer{}, err
	}
	c.Disconnect(0)
	return answer{}, nil
}
