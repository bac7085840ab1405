package device

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	mqttstate "github.com/eclipse/paho.golang/paho/session/state"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/token"
)

// Timing of the MQTT connection.
const (
	mqttTimeout        = 15 * time.Second // for a connection, and for each answer
	mqttKeepAlive      = 60               // seconds
	minRefreshInterval = 2 * time.Second  // minimum interval of session refreshes; the server waits 5 s for one
	mqttRetryPause     = 30 * time.Second // how long HTTPS is used after MQTT has failed
)

const (
	authTopic  = "$watchword/auth"
	helloTopic = "$watchword/hello"
)

// mqttConn is one MQTT 5 connection.
type mqttConn struct {
	run       *run
	client    *paho.Client
	conn      *checkedConn
	maxPacket int // maximum packet size of the server in bytes; 0: unlimited
	commands  chan *paho.Publish
	refresh   chan struct{}

	session *mqttstate.State

	once            sync.Once
	done            context.Context // ends with the connection; context.Cause is the reason
	cancel          context.CancelFunc
	cause           error
	sessionLifetime time.Duration // lifetime of a session, stated in CONNACK
	provedKey       bool          // the device proved its key in CONNECT
}

func (c *mqttConn) fail(err error) { c.failAfter(err, func() {}) }

// failAfter ends the connection like fail, after it has called leave, which sends the server the reason. While leave runs
// no other goroutine ends the connection.
func (c *mqttConn) failAfter(err error, leave func()) {
	c.once.Do(func() {
		c.cause = err
		leave()
		c.cancel()
	})
}

// mqttUnavailable is the error for which a device continues over HTTPS: MQTT does not answer.
type mqttUnavailable struct{ err error }

func (e *mqttUnavailable) Error() string { return "no MQTT: " + e.err.Error() }
func (e *mqttUnavailable) Unwrap() error { return e.err }

// connectMQTT connects and authenticates: by an assertion as the password, or by a proof of possession if the device proves
// its key everywhere.
func (d *run) connectMQTT(ctx context.Context) (*mqttConn, error) {
	ctx, cancel := context.WithTimeout(ctx, mqttTimeout)
	defer cancel()
	tr, err := d.transportFor(d.trust.Load())
	if err != nil {
		return nil, err
	}
	c := tr.TLSClientConfig.Clone()
	c.NextProtos = []string{"mqtt"}
	nc, err := d.dialTLS(ctx, c, d.mqttAddress())
	if err != nil {
		return nil, &mqttUnavailable{err}
	}
	w := &mqttConn{
		run: d, commands: make(chan *paho.Publish, receiveMaximum), refresh: make(chan struct{}, 1), session: mqttstate.NewInMemory(),
	}
	w.done, w.cancel = context.WithCancel(context.Background())
	max := d.maxPacket()
	w.conn = newCheckedConn(nc, max, w.failAfter)
	// Each call has its own context, which ends before PacketTimeout.
	w.client = paho.NewClient(paho.ClientConfig{
		AuthHandler: aceAuther{w}, Conn: w.conn, PingHandler: newPinger(), PacketTimeout: 2 * mqttTimeout, Session: manualAcks{w.session},
		OnPublishReceived:  []func(paho.PublishReceived) (bool, error){w.received},
		OnServerDisconnect: func(p *paho.Disconnect) { w.fail(disconnected(p)) },
		OnClientError:      func(err error) { w.fail(watchword.Wrap(err, watchword.Unavailable, "the MQTT connection was lost")) },
	})
	hello := &paho.Connect{ClientID: string(d.identity.ID), CleanStart: true, KeepAlive: mqttKeepAlive, Properties: &paho.ConnectProperties{
		MaximumPacketSize: new(uint32(max)), ReceiveMaximum: new(uint16(receiveMaximum)), TopicAliasMaximum: new(uint16(0)),
		RequestProblemInfo: true, // the codes of refusals are in reason strings
	}}
	if w.provedKey = d.tokens.BindsTokens(); w.provedKey {
		var challenge bool
		if challenge, err = d.proveConnection(ctx, hello, nc, d.trust.Load()); challenge {
			w.conn.auths.Store(authPackets) // else none may come: see proveConnection
		}
	} else {
		var assertion string
		assertion, err = d.Assertion(token.AssertionLifetime)
		hello.Username, hello.UsernameFlag, hello.Password, hello.PasswordFlag = "jwt", true, []byte(assertion), true
	}
	if err != nil {
		return nil, errors.Join(err, closed(nc))
	}
	ack, err := w.client.Connect(ctx, hello)
	if err != nil {
		if ack != nil && ack.Properties != nil {
			err = refusalOf(ack.Properties.ReasonString, err)
			if !alsoOverHTTPS(err) {
				err = &mqttUnavailable{err}
			}
		} else {
			err = &mqttUnavailable{err}
		}
		return nil, errors.Join(err, closed(nc))
	}
	if n := ack.Properties.MaximumPacketSize; n != nil {
		w.maxPacket = int(min(*n, 1<<30))
	}
	if end, terr := time.Parse(time.RFC3339, ack.Properties.User.Get("expires_at")); terr == nil {
		w.sessionLifetime = end.Sub(d.bestTime())
	}
	return w, nil
}

// alsoOverHTTPS reports whether HTTPS would answer with the same refusal as MQTT.
func alsoOverHTTPS(err error) bool {
	switch watchword.CodeOf(err) {
	case watchword.SubjectRevoked, watchword.ClientInvalid, watchword.ProofRequired, watchword.TokenEarly, watchword.TokenExpired, watchword.SubjectSuspended, watchword.Busy, watchword.RateLimited:
		return true
	}
	return false
}

// dialTLS connects to an address with TLS, and verifies that the certificate is for the address's host name.
func (d *Device) dialTLS(ctx context.Context, c *tls.Config, address string) (net.Conn, error) {
	var err error
	if c.ServerName, _, err = net.SplitHostPort(address); err != nil {
		return nil, err
	}
	nc, err := d.connect(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	tc := tls.Client(nc, c)
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, closed(nc))
	}
	return tc, nil
}

// closed closes a connection that may be closed already.
func closed(c io.Closer) error {
	if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// refusalOf converts the server's reason string, "code: detail", into an error; other if it has another form.
func refusalOf(reason string, other error) error {
	code, detail, _ := strings.Cut(reason, ": ")
	if slices.Contains(watchword.Codes, watchword.Code(code)) {
		return &watchword.Error{Code: watchword.Code(code), Detail: detail, Err: other}
	}
	if reason != "" {
		return watchword.Wrap(other, watchword.Unavailable, "%s", reason)
	}
	return watchword.Wrap(other, watchword.Unavailable, "the server refused without a reason")
}

func disconnected(p *paho.Disconnect) error {
	if p.ReasonCode == packets.DisconnectSessionTakenOver {
		return watchword.Refuse(watchword.Unavailable, "another connection of this device took over the session")
	}
	reason := ""
	if p.Properties != nil {
		reason = p.Properties.ReasonString
	}
	return refusalOf(reason, errors.New("the server ended the connection"))
}

// received is called for each PUBLISH of the connection. It does not block for long.
func (c *mqttConn) received(r paho.PublishReceived) (bool, error) {
	p := r.Packet
	switch own := "devices/" + string(c.run.identity.ID); p.Topic {
	case own + "/commands":
		if p.QoS == 0 {
			c.fail(&mqttUnavailable{watchword.Refuse(watchword.Unavailable, "a command arrived with QoS 0, which cannot be acknowledged")})
			return true, nil
		}
		select {
		case c.commands <- p: // acknowledged when its number is stored
		case <-c.done.Done():
		}
		return true, nil
	case own + "/config":
		c.run.pushedConfig.put(p.Payload, false)
		c.run.config.trigger()
	case authTopic:
		c.handleNotice(p.Payload)
	}
	return true, c.acknowledge(p)
}

// manualAcks is a session without automatic acknowledgements. Commands are acknowledged in the order in which they arrived
// (MQTT-4.6.0-2), and no other messages have QoS 1.
type manualAcks struct{ *mqttstate.State }

// Ack is called when a message was received.
func (manualAcks) Ack(*packets.Publish) error { return nil }

// acknowledge sends PUBACK.
func (c *mqttConn) acknowledge(p *paho.Publish) error {
	if p.QoS == 0 {
		return nil
	}
	c.conn.acknowledged(p.PacketID)
	return c.session.Ack(&packets.Publish{PacketID: p.PacketID, QoS: p.QoS})
}

// reject sends PUBACK with a reason code of 0x80 or more: the server does not count the command as delivered.
func (c *mqttConn) reject(p *paho.Publish) error {
	c.conn.acknowledged(p.PacketID)
	a := packets.Puback{PacketID: p.PacketID, ReasonCode: packets.PubackImplementationSpecificError, Properties: &packets.Properties{}}
	_, err := a.WriteTo(c.conn)
	return err
}

// handleNotice handles a message of the server about this session.
func (c *mqttConn) handleNotice(b []byte) {
	var n struct {
		Type      string    `json:"type"`
		Code      string    `json:"code"`
		Detail    string    `json:"detail"`
		ExpiresAt time.Time `json:"expires_at"`
	}
	if json.Unmarshal(b, &n) != nil {
		return
	}
	switch n.Type {
	case "refresh":
		signal(c.refresh)
	case "trust":
		c.run.bundle.trigger()
	case "lost":
		c.fail(watchword.Refuse(watchword.Denied, "the server removed a subscription"))
	}
}

// signal puts a token into c, unless there is one already.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// publish sends one message with QoS 1 and waits for PUBACK, for [mqttTimeout] at most; then the connection ends. Codes:
// those with which the server refuses; unavailable.
func (c *mqttConn) publish(ctx context.Context, topic, kind string, payload []byte) error {
	if c.maxPacket > 0 && len(topic)+len(kind)+len(payload)+32 > c.maxPacket {
		return &mqttUnavailable{watchword.Refuse(watchword.TooLarge, "the server takes packets of %d bytes over MQTT", c.maxPacket)}
	}
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, mqttTimeout)
	defer cancel()
	defer context.AfterFunc(c.done, cancel)() // paho keeps waiting when the connection is lost
	r, err := c.client.Publish(ctx, &paho.Publish{Topic: topic, QoS: 1, Payload: payload, Properties: &paho.PublishProperties{ContentType: kind}})
	if err == nil {
		return nil
	}
	if r != nil && r.ReasonCode >= 0x80 {
		reason := ""
		if r.Properties != nil {
			reason = r.Properties.ReasonString
		}
		return refusalOf(reason, err)
	}
	if caller.Err() == nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		// Ending the connection releases the client's copy of the message, and its place in the server's Receive Maximum.
		c.fail(&mqttUnavailable{watchword.Wrap(err, watchword.Unavailable, "no PUBACK within %s", mqttTimeout)})
	}
	return &mqttUnavailable{err}
}

// subscribe subscribes to the commands with QoS 1, so that they are acknowledged, and to other topics with QoS 0, so that
// their messages do not wait behind commands for Receive Maximum.
func (c *mqttConn) subscribe(ctx context.Context, commands string, topics ...string) error {
	ctx, cancel := context.WithTimeout(ctx, mqttTimeout)
	defer cancel()
	defer context.AfterFunc(c.done, cancel)()
	s := &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: commands, QoS: 1}}}
	for _, t := range topics {
		s.Subscriptions = append(s.Subscriptions, paho.SubscribeOptions{Topic: t})
	}
	ack, err := c.client.Subscribe(ctx, s)
	switch {
	case err != nil && ack != nil && ack.Properties != nil:
		return refusalOf(ack.Properties.ReasonString, err)
	case err != nil:
		return &mqttUnavailable{err}
	case len(ack.Reasons) != len(s.Subscriptions) || ack.Reasons[0] != 1:
		return &mqttUnavailable{watchword.Refuse(watchword.Unavailable, "the server refused a subscription, or lowered its QoS")}
	}
	return nil
}

// hello is the message with which a device reports its state before it receives commands.
type hello struct {
	Nonce string `json:"nonce"`         // nonce that commands must carry; empty for none
	Epoch int64  `json:"epoch"`         // the epoch of the trust bundle
	Seq   int64  `json:"seq"`           // number of the last command of that epoch that was begun; 0: none
	Log   *int64 `json:"log,omitempty"` // size of the last log that was seen, with RequireLogProof
	Max   int    `json:"max,omitempty"`
}

func (d *Device) hello() hello {
	d.stateMu.Lock()
	defer d.stateMu.Unlock()
	trust := d.trust.Load()
	g := hello{Epoch: d.journal.last.Epoch, Seq: d.journal.last.Seq, Max: d.opts.MaxCommand}
	if trust.Epoch > g.Epoch { // a server that was replaced by a restored one must see it, even before the first command
		g.Epoch, g.Seq = trust.Epoch, 0
	}
	if d.needsNonce() {
		g.Nonce = d.nonce.current(d.opts.Now())
	}
	if d.opts.RequireLogProof {
		size := d.seenLog.seenIn(trust).Size
		g.Log = &size
	}
	return g
}

// sendHello sends the device's position, and the nonce that it requires, if any.
func (c *mqttConn) sendHello(ctx context.Context) (nonce string, err error) {
	g := c.run.hello()
	b, err := json.Marshal(g)
	if err != nil {
		return "", err
	}
	return g.Nonce, c.publish(ctx, helloTopic, "application/json", b)
}

func (d *Device) connected(over string) {
	d.opts.Log.Debug("connected", slog.String("over", over))
	if d.opts.Connected != nil {
		d.opts.Connected(over)
	}
}

// connectionLost is the error of a connection that worked; the device reconnects.
func connectionLost(err error) error {
	if no, ok := errors.AsType[*mqttUnavailable](err); ok {
		return watchword.Wrap(no.err, watchword.Unavailable, "the MQTT connection was lost")
	}
	return err
}

// serveMQTT serves one connection until it ends, and returns the reason. Commands that were received and not begun are
// dropped with it: they are not acknowledged, and the server sends them again.
func (d *run) serveMQTT(ctx context.Context) error {
	w, err := d.connectMQTT(ctx)
	if err != nil {
		return err
	}
	d.mqtt.Store(w)
	defer func() {
		d.mqtt.CompareAndSwap(w, nil)
		w.fail(nil)
		w.conn.limitWrites()
		_ = w.client.Disconnect(&paho.Disconnect{}) // the connection may be closed already
	}()
	nonce, err := w.sendHello(ctx)
	if err != nil {
		return err
	}
	topics := []string{authTopic}
	if d.wantsConfig() {
		topics = append(topics, "devices/"+string(d.identity.ID)+"/config")
	}
	if err := w.subscribe(ctx, "devices/"+string(d.identity.ID)+"/commands", topics...); err != nil {
		return err
	}
	d.onConnected("mqtt")
	renew := time.NewTimer(w.refreshIn())
	defer renew.Stop()
	again := time.NewTicker(nonceLife / 4)
	defer again.Stop()
	var (
		renewed time.Time              // time of the last session refresh
		waiting []*paho.Publish        // received commands, oldest first
		first   receivedCommand        // the oldest, which is offered
		acting  chan<- receivedCommand // nil while nothing is offered
		begun   <-chan error           // nil while no command was taken
	)
	for {
		if acting == nil && begun == nil && len(waiting) > 0 {
			first, acting = receivedCommand{string(waiting[0].Payload), make(chan error, 1)}, d.commands
		}
		select {
		case p := <-w.commands:
			waiting = append(waiting, p)
			continue
		case acting <- first:
			acting, begun = nil, first.begun
			continue
		case err := <-begun:
			switch watchword.CodeOf(err) {
			case "":
				err = w.acknowledge(waiting[0])
			case watchword.CommandExpired: // the next command need not wait for another connection
				err = w.reject(waiting[0])
			default:
				return err
			}
			if err != nil {
				return connectionLost(err)
			}
			begun, waiting = nil, waiting[1:]
			continue
		case <-again.C:
			if nonce != d.hello().Nonce {
				if nonce, err = w.sendHello(ctx); err != nil {
					return connectionLost(err)
				}
			}
			continue
		case <-w.refresh:
			if left := minRefreshInterval - time.Since(renewed); left > 0 {
				renew.Reset(left) // however often the server requests it
				continue
			}
		case <-renew.C: // the server's request may have been lost
		case <-w.done.Done():
			return w.cause
		case <-ctx.Done():
			return nil
		}
		if err := w.refreshSession(ctx); err != nil {
			return connectionLost(err)
		}
		renewed = time.Now()
		renew.Reset(w.refreshIn())
	}
}

// refreshSession refreshes the session: by a new assertion, or by a new token and a proof.
func (c *mqttConn) refreshSession(ctx context.Context) error {
	if c.provedKey {
		return c.reauthenticate(ctx)
	}
	assertion, err := c.run.Assertion(token.AssertionLifetime)
	if err != nil {
		return err
	}
	return c.publish(ctx, authTopic, "application/jwt", []byte(assertion))
}

// refreshIn is the time after which the device refreshes the session without a request of the server.
func (c *mqttConn) refreshIn() time.Duration { return max(c.sessionLifetime, time.Minute) * 9 / 10 }
