package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/watchword-iot/watchword/mqtt/packet"
)

// client is an MQTT 5 connection with little overhead: one goroutine reads and calls on, any
// goroutine may write.
type client struct {
	nc   net.Conn
	on   func(*packet.Publish) // from the reader's goroutine; the packet is its own
	acks chan uint16           // PUBACKs, dropped if the channel is full
	mu   sync.Mutex
	out  []byte
	end  chan struct{}
	last packet.Packet // the reason of the end, if the server sent one; after end
	err  error         // likewise, if it broke
}

// dial connects and waits for CONNACK.
func dial(ctx context.Context, address string, secret *tls.Config, id, password string, on func(*packet.Publish), edit ...func(*packet.Connect)) (*client, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if secret != nil {
		nc = tls.Client(nc, secret)
	}
	c := &client{nc: nc, on: on, acks: make(chan uint16, 4096), end: make(chan struct{})}
	p := &packet.Connect{Version: packet.V5, CleanStart: true, ClientID: id}
	if password != "" {
		p.Username, p.HasUser, p.Password, p.HasPass = "jwt", true, []byte(password), true
	}
	for _, e := range edit {
		e(p)
	}
	if err := c.send(p); err != nil {
		return nil, errors.Join(err, nc.Close())
	}
	r := bufio.NewReaderSize(nc, 512)
	got, err := next(r)
	if err != nil {
		return nil, errors.Join(err, nc.Close())
	}
	if ack, ok := got.(*packet.Connack); !ok || ack.Code != packet.Success {
		return nil, errors.Join(fmt.Errorf("CONNECT of %s: %+v", id, got), nc.Close())
	}
	go c.read(r)
	return c, nil
}

// next reads one packet.
func next(r *bufio.Reader) (packet.Packet, error) {
	first, err := r.ReadByte()
	if err != nil {
		return nil, err
	}
	n, shift := 0, 0
	for {
		b, err := r.ReadByte()
		if err != nil {
			return nil, err
		}
		n |= int(b&127) << shift
		if shift += 7; b < 128 {
			break
		}
	}
	body := make([]byte, n)
	for at := 0; at < n; {
		k, err := r.Read(body[at:])
		if err != nil {
			return nil, err
		}
		at += k
	}
	return packet.Parse(first, body, packet.V5)
}

func (c *client) read(r *bufio.Reader) {
	defer close(c.end)
	for {
		p, err := next(r)
		if err != nil {
			c.err = err
			return
		}
		switch p := p.(type) {
		case *packet.Publish:
			switch p.QoS { // a broken connection ends the reader
			case 1:
				_ = c.send(&packet.Ack{Kind: packet.PUBACK, ID: p.ID})
			case 2:
				_ = c.send(&packet.Ack{Kind: packet.PUBREC, ID: p.ID})
			}
			if c.on != nil {
				c.on(p)
			}
		case *packet.Ack:
			switch p.Kind {
			case packet.PUBREC:
				_ = c.send(&packet.Ack{Kind: packet.PUBREL, ID: p.ID})
			case packet.PUBREL:
				_ = c.send(&packet.Ack{Kind: packet.PUBCOMP, ID: p.ID})
			default:
				c.acks <- p.ID
			}
		case *packet.Suback, *packet.Disconnect:
			c.last = p
			if _, over := p.(*packet.Disconnect); over {
				return
			}
			c.acks <- 0
		}
	}
}

func (c *client) send(p packet.Packet) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out = packet.Append(c.out[:0], p, packet.V5)
	_, err := c.nc.Write(c.out)
	return err
}

// subscribe asks for one filter and waits for the answer.
func (c *client) subscribe(filter string, qos byte) error {
	if err := c.send(&packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: filter, QoS: qos}}}); err != nil {
		return err
	}
	select {
	case <-c.acks:
	case <-c.end:
		return errors.New("the connection ended")
	case <-time.After(20 * time.Second):
		return errors.New("no SUBACK")
	}
	if s, ok := c.last.(*packet.Suback); !ok || s.Codes[0].Failed() {
		return fmt.Errorf("SUBSCRIBE %s: %+v", filter, c.last)
	}
	return nil
}
