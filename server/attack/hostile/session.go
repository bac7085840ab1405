package hostile

import (
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// Topics of a device, and of the protocol.
const (
	topicAuth     = "$watchword/auth"
	topicHello    = "$watchword/hello"
	topicCommands = "devices/" + string(DeviceID) + "/commands"
	topicConfig   = "devices/" + string(DeviceID) + "/config"
	topicReceipts = "devices/" + string(DeviceID) + "/receipts"
)

// maxDevicePacket is the Maximum Packet Size of the good server.
const maxDevicePacket = 256 << 10

// Session is one MQTT 5 connection with the device, on the server's side.
type Session struct {
	Server *Server
	Conn   net.Conn // TLS; read through [Session.Read]

	in      []byte
	connect *packet.Connect
	// Limits from the device's CONNECT; 0: none.
	Largest, Receive uint32

	writing    chan struct{} // held by the writer; blocking on a mutex would stop the virtual time
	mu         sync.Mutex
	nonce      string
	subscribed bool
	silent     bool // nothing is answered any more
	done       chan struct{}
	pushing    sync.WaitGroup
	id         uint16
	pushed     map[uint16]*Command
	sent       map[*Command]bool
}

// errPacket says that the device sent an invalid packet.
var errPacket = errors.New("no MQTT packet")

// Read returns the device's next packet.
func (m *Session) Read() (packet.Packet, error) {
	for {
		first, body, n, err := packet.Frame(m.in, maxDevicePacket)
		if err != nil {
			return nil, errors.Join(errPacket, err)
		}
		if n > 0 {
			p, err := packet.Parse(first, append([]byte(nil), body...), packet.V5)
			m.in = m.in[n:]
			if err != nil {
				return nil, errors.Join(errPacket, err)
			}
			return p, nil
		}
		more := make([]byte, 4<<10)
		k, err := m.Conn.Read(more)
		m.in = append(m.in, more[:k]...)
		if err != nil {
			return nil, err
		}
	}
}

// Write sends packets, also invalid ones.
func (m *Session) Write(ps ...packet.Packet) error {
	var b []byte
	for _, p := range ps {
		b = packet.Append(b, p, packet.V5)
	}
	return m.Raw(b)
}

// Raw sends bytes.
func (m *Session) Raw(b []byte) error {
	m.writing <- struct{}{}
	defer func() { <-m.writing }()
	_, err := m.Conn.Write(b)
	return err
}

// Open reads CONNECT without answering. It returns false if the connection ended, or the client is
// not the device.
func (m *Session) Open() bool {
	p, err := m.Read()
	c, ok := p.(*packet.Connect)
	if err != nil || !ok {
		return false
	}
	m.connect = c
	m.Largest, _ = c.Properties.Number(packet.MaximumPacketSize)
	m.Receive, _ = c.Properties.Number(packet.ReceiveMaximum)
	if method, _ := c.Properties.Text(packet.AuthenticationMethod); method == ace {
		data, _ := c.Properties.Data(packet.AuthenticationData)
		return m.proves(data)
	}
	return c.Version == packet.V5 && m.Server.verify(string(c.Password))
}

// ace is the Authentication Method of a proof of possession (RFC 9431 §2.2.4).
const ace = "ace"

// proves verifies a length-prefixed token, and the signature of this TLS connection's exported
// value.
func (m *Session) proves(data []byte) bool {
	tc, ok := m.Conn.(*tls.Conn)
	if !ok || len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
		return false
	}
	n := 2 + int(binary.BigEndian.Uint16(data))
	state := tc.ConnectionState()
	material, err := state.ExportKeyingMaterial("EXPORTER-ACE-MQTT-Sign-Challenge", nil, 32)
	m.Server.mu.Lock()
	key, known := m.Server.sign, m.Server.tokens[string(data[2:n])]
	m.Server.mu.Unlock()
	return err == nil && known && key.VerifyBytes(material, data[n:]) == nil
}

// Accept is [Session.Open] and a valid CONNACK.
func (m *Session) Accept() bool { return m.Open() && m.Write(m.Connack()) == nil }

// Connack returns the valid CONNACK.
func (m *Session) Connack() *packet.Connack {
	ack := &packet.Connack{}
	ack.Properties.SetNumber(packet.ReceiveMaximum, 256)
	ack.Properties.SetNumber(packet.MaximumPacketSize, maxDevicePacket)
	if method, ok := m.connect.Properties.Text(packet.AuthenticationMethod); ok {
		ack.Properties.SetText(packet.AuthenticationMethod, method)
	}
	ack.Properties.User = []packet.UserProp{{Name: "expires_at", Value: time.Now().Add(10 * time.Minute).UTC().Format(time.RFC3339)}}
	return ack
}

// Serve is the whole session of the good server.
func (m *Session) Serve() {
	if m.Accept() {
		m.ServeAfterConnack()
	}
}

// ServeAfterConnack is the good server's session after CONNACK, until the end of the connection.
func (m *Session) ServeAfterConnack() {
	for {
		p, err := m.Read()
		if err != nil || !m.HandlePacket(p) {
			return
		}
	}
}

// ServeUntilSubscribed is [Session.ServeAfterConnack] until the device has subscribed to its
// commands; it returns false if the connection ended before. No command was sent yet.
func (m *Session) ServeUntilSubscribed() bool {
	m.mu.Lock()
	m.sent = map[*Command]bool{}
	for _, o := range m.Server.next() {
		m.sent[o] = true // left to the case
	}
	m.mu.Unlock()
	for {
		p, err := m.Read()
		if err != nil || !m.HandlePacket(p) {
			return false
		}
		m.mu.Lock()
		there := m.subscribed
		m.mu.Unlock()
		if there {
			return true
		}
	}
}

// ServeWith is [Session.ServeAfterConnack] with f running concurrently, which may send anything.
func (m *Session) ServeWith(f func(m *Session) error) {
	var beside sync.WaitGroup
	beside.Go(func() { _ = f(m) }) // the peer has closed the connection
	for {
		p, err := m.Read()
		if err != nil {
			break
		}
		m.mu.Lock()
		deaf := m.silent
		m.mu.Unlock()
		if !deaf && !m.HandlePacket(p) {
			break
		}
	}
	_ = m.Conn.Close() // it may be closed already
	beside.Wait()
}

// Drain reads without answering, until the connection ends.
func (m *Session) Drain() {
	_, _ = io.Copy(io.Discard, m.Conn) // until its end, whatever the cause
}

// HandlePacket handles one packet like the good server; it returns false if the session has ended.
func (m *Session) HandlePacket(p packet.Packet) bool {
	switch p := p.(type) {
	case *packet.Publish:
		m.handlePublish(p)
		return p.QoS == 0 || m.Write(&packet.Ack{Kind: packet.PUBACK, ID: p.ID}) == nil
	case *packet.Subscribe:
		ack := &packet.Suback{ID: p.ID}
		commands := false
		for _, f := range p.Filters {
			ack.Codes = append(ack.Codes, packet.GrantedQoS1)
			commands = commands || f.Topic == topicCommands
		}
		if m.Write(ack) != nil {
			return false
		}
		if commands {
			m.start()
		}
		return true
	case *packet.Ack:
		m.acked(p)
		return true
	case *packet.Ping:
		return m.Write(&packet.Ping{Response: true}) == nil
	case *packet.Auth:
		return m.reauthenticate(p)
	case *packet.Disconnect:
		return false
	}
	return true
}

// reauthenticate answers AUTH: a token with a challenge, the response with success.
func (m *Session) reauthenticate(p *packet.Auth) bool {
	out := &packet.Auth{Reason: packet.ContinueAuthentication}
	out.Properties.SetText(packet.AuthenticationMethod, ace)
	if p.Reason == packet.ReAuthenticate {
		out.Properties.SetData(packet.AuthenticationData, []byte(watchword.NewNonce()))
	} else {
		out.Reason = packet.Success
	}
	return m.Write(out) == nil
}

// handlePublish handles publishes to topics of the protocol.
func (m *Session) handlePublish(p *packet.Publish) {
	switch p.Topic {
	case topicHello:
		var h struct{ Nonce string }
		if json.Unmarshal(p.Payload, &h) == nil {
			m.mu.Lock()
			m.nonce = h.Nonce
			m.mu.Unlock()
		}
	case topicReceipts:
		_ = m.Server.receipt(string(p.Payload)) // it is recorded
	}
}

// acked records that the device has stored a command.
func (m *Session) acked(a *packet.Ack) {
	m.mu.Lock()
	o := m.pushed[a.ID]
	delete(m.pushed, a.ID)
	m.mu.Unlock()
	if o != nil && a.Kind == packet.PUBACK {
		m.Server.mu.Lock()
		o.had = true
		m.Server.mu.Unlock()
	}
}

// start sends pending and later commands.
func (m *Session) start() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.subscribed {
		return
	}
	m.subscribed, m.done = true, make(chan struct{})
	m.Server.countSubscribers(1)
	m.pushing.Go(m.push)
}

// end waits for the goroutines of the session.
func (m *Session) end() {
	_ = m.Conn.Close() // it may be closed already
	m.mu.Lock()
	there := m.subscribed
	m.mu.Unlock()
	if there {
		close(m.done)
		m.pushing.Wait()
		m.Server.countSubscribers(-1)
	}
}

func (m *Session) push() {
	for {
		_, wake := m.Server.state()
		for _, o := range m.Server.next() {
			if !m.give(o) {
				return
			}
		}
		select {
		case <-wake:
		case <-m.done:
			return
		}
	}
}

// give sends a command once.
func (m *Session) give(o *Command) bool {
	m.mu.Lock()
	if m.sent == nil {
		m.sent = map[*Command]bool{}
	}
	known, nonce := m.sent[o], m.nonce
	m.sent[o] = true
	m.mu.Unlock()
	if known {
		return true
	}
	jwe, err := m.Server.sealed(o, nonce)
	if err != nil {
		return false
	}
	p := m.Command(jwe)
	m.mu.Lock()
	if m.pushed == nil {
		m.pushed = map[uint16]*Command{}
	}
	m.pushed[p.ID] = o
	m.mu.Unlock()
	return m.Write(p) == nil
}

// Command returns a PUBLISH with a sealed command.
func (m *Session) Command(jwe string) *packet.Publish { return m.Publish(topicCommands, []byte(jwe)) }

// Publish returns a QoS 1 PUBLISH with the next packet identifier.
func (m *Session) Publish(topic string, payload []byte) *packet.Publish {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.id++; m.id == 0 {
		m.id = 1
	}
	return &packet.Publish{Topic: topic, QoS: 1, ID: m.id, Payload: payload}
}

// Nonce returns the device's current nonce, if any.
func (m *Session) Nonce() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.nonce
}

// refusal returns a reason string in Watchword's form.
func refusal(code watchword.Code) string {
	return strings.Join([]string{string(code), "by the hostile server"}, ": ")
}
