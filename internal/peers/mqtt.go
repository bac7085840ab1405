package peers

import "testing"

// Connect is what a client connects with.
type Connect struct {
	Broker    string `json:"broker"` // URL: tcp:// or ssl://
	Username  string `json:"username"`
	Password  string `json:"password"`
	CA        []byte `json:"ca,omitempty"` // PEM
	Clean     bool   `json:"clean"`        // Clean Session
	Reconnect bool   `json:"reconnect"`    // by itself, after 50 ms at most
}

// Message is what a client received.
type Message struct {
	Topic, Payload string
	QoS            byte
	Retained       bool
}

// Client is a client for MQTT 3.1.1 of Paho.
type Client struct {
	Messages chan Message // of 100; more must be read
	Lost     chan error   // of 1: why the connection was lost

	p  *Peers
	id string
}

// Connect returns a client that is connected, or the library's error. It disconnects when the test ends. id is not that
// of another client of the test binary which is connected.
func (p *Peers) Connect(t testing.TB, id string, o Connect) (*Client, error) {
	t.Helper()
	c := &Client{make(chan Message, 100), make(chan error, 1), p, id}
	p.mu.Lock()
	p.clients[id] = c
	p.mu.Unlock()
	t.Cleanup(func() { _ = c.Disconnect(t) }) // one that never connected
	_, err := p.ask(t, request{Op: "mqtt.connect", Client: id, Connect: &o})
	return c, err
}

// Subscribe subscribes to a filter with a QoS.
func (c *Client) Subscribe(t testing.TB, filter string, qos byte) error {
	t.Helper()
	_, err := c.p.ask(t, request{Op: "mqtt.subscribe", Client: c.id, Topic: filter, QoS: qos})
	return err
}

// Publish returns when the message is acknowledged.
func (c *Client) Publish(t testing.TB, topic string, qos byte, payload string) error {
	t.Helper()
	_, err := c.p.ask(t, request{Op: "mqtt.publish", Client: c.id, Topic: topic, QoS: qos, Data: []byte(payload)})
	return err
}

// Disconnect sends DISCONNECT.
func (c *Client) Disconnect(t testing.TB) error {
	t.Helper()
	_, err := c.p.ask(t, request{Op: "mqtt.disconnect", Client: c.id})
	return err
}
