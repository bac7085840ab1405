package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/token"
)

// demoRun is the state of a demonstration.
type demoRun struct {
	dir, data string
	count     int
	out       *terminal.Writer
	colour    bool
	log       *slog.Logger
	steps     []demoStep
	measured  time.Duration // set by a step that measures only a part of its duration

	stopServer context.CancelFunc
	served     chan error

	admin   *admin.Client
	devices []*demoDevice
	stop    context.CancelFunc
	running sync.WaitGroup

	connected chan string // transport with which a lamp connected
	mqtt      *mqttClient // connection of the last lamp
	sent      api.Command
	jwe       string // the command that the last lamp received
	revoked   time.Time
}

// demoDevice is one device with its function.
type demoDevice struct {
	id    watchword.SubjectID
	dev   *device.Device
	level atomic.Int64
	acts  atomic.Int64
}

// set is the function lamp.set.
func (l *demoDevice) set(_ context.Context, c *device.Command) (any, error) {
	var in struct {
		Level int64 `json:"level"`
	}
	if err := c.Args(&in); err != nil {
		return nil, device.Refuse("bad_args", err)
	}
	l.acts.Add(1)
	l.level.Store(in.Level)
	return map[string]int64{"level": in.Level}, nil
}

const lampPolicy = `name = "lamps"
for  = { kind = "lamp" }

[[allow]]
call = ["lamp.set"]                       # a lamp may dim its neighbours,
on   = { kind = "lamp", site = "${site}" }
args = { level = { maximum = 80 } }       # but not dazzle

[[deny]]
publish = ["devices/${id}/events/debug/#"]
`

const lampSchema = `{"type":"object","properties":{"level":{"type":"integer","minimum":0,"maximum":100}},"required":["level"],"additionalProperties":false}`

// enroll adds the devices, and enrolls each with keys that it generates.
func (t *demoRun) enroll(ctx context.Context) (string, error) {
	var err error
	if t.admin, err = admin.Local(t.data); err != nil {
		return "", err
	}
	if _, err := t.admin.ApplyPolicy(ctx, "lamps", []byte(lampPolicy), 0); err != nil {
		return "", err
	}
	t.connected = make(chan string, t.count)
	start := time.Now()
	for i := range t.count {
		l := &demoDevice{id: watchword.SubjectID(fmt.Sprintf("lamp-%d", i+1))}
		t.devices = append(t.devices, l)
		made, err := t.admin.CreateDevice(ctx, l.id, watchword.Labels{"kind": "lamp", "site": "plant-1"}, 0)
		if err != nil {
			return "", err
		}
		o := device.Options{Log: t.log, Connected: func(over string) {
			select {
			case t.connected <- over:
			default:
			}
		}}
		if i%2 == 1 {
			o.SignCurve, o.SealCurve = "Ed25519", "X25519"
		}
		if l.dev, err = device.OpenWith(filepath.Join(t.dir, string(l.id)), o); err != nil {
			return "", err
		}
		if err := l.dev.Enroll(ctx, made.Enrollment.Link); err != nil {
			return "", err
		}
		l.dev.HandleFunction(device.Function{Name: "lamp.set", Schema: []byte(lampSchema)}, l.set)
	}
	t.measured = time.Since(start)
	return fmt.Sprintf("%d devices made their own keys (P-256, Ed25519, X25519), checked the server by the pin of the link, and enrolled with a one-time code", t.count), nil
}

// token requests a token for each device.
func (t *demoRun) token(ctx context.Context) (string, error) {
	start := time.Now()
	var last string
	for _, l := range t.devices {
		var err error
		if last, err = l.dev.NewToken(ctx); err != nil {
			return "", err
		}
	}
	t.measured = time.Since(start) / time.Duration(len(t.devices))
	issuers := token.NewKeySet(t.devices[0].dev.Trust().Issuers...)
	u, err := jose.ParseJWS(last, watchword.MaxToken)
	if err != nil {
		return "", err
	}
	payload, err := u.Verify(issuers[watchword.KeyID(u.Kid)])
	if err != nil {
		return "", err
	}
	c, err := claimsOf(payload)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("each signed an assertion and got a JWT of %d bytes, valid for %d s, with %d permissions (time for one token)", len(last), c.EXP-c.IAT, len(c.Perm)), nil
}

// last returns the last lamp, which is used through a third-party client.
func (t *demoRun) last() *demoDevice { return t.devices[len(t.devices)-1] }

// connect connects every device over MQTT: the last one with a third-party client.
func (t *demoRun) connect(ctx context.Context) (string, error) {
	run, stop := context.WithCancel(context.Background())
	t.stop = stop
	for _, l := range t.devices[:len(t.devices)-1] {
		t.running.Go(func() {
			if err := l.dev.Run(run); err != nil {
				t.log.Error("device", slog.String("id", string(l.id)), slog.Any("err", err))
			}
		})
	}
	if err := t.last().dev.Announce(ctx, device.Function{Name: "lamp.set", Schema: []byte(lampSchema)}); err != nil {
		return "", err
	}
	var err error
	if t.mqtt, err = connectMQTT(ctx, t.last().dev); err != nil {
		return "", err
	}
	for range len(t.devices) - 1 {
		select {
		case over := <-t.connected:
			if over != "mqtt" {
				return "", fmt.Errorf("a lamp is connected over %s", over)
			}
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	return fmt.Sprintf("over MQTT 5 and TLS 1.3: %d with the SDK, authenticated by an assertion; %s with a stock client, its token as the password, session %s", len(t.devices)-1, t.last().id, t.mqtt.session), nil
}

// publish publishes an event of a device, which an operator receives.
func (t *demoRun) publish(ctx context.Context) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	opened, got := make(chan struct{}), make(chan api.Event, 1)
	watched := make(chan error, 1)
	go func() {
		watched <- t.admin.Watch(ctx, "lamp-1", "lux", func() { close(opened) }, func(e api.Event) error {
			got <- e
			return nil
		})
	}()
	select {
	case <-opened:
	case err := <-watched:
		return "", err
	}
	start := time.Now()
	if err := t.devices[0].dev.Publish(ctx, "lux", 42); err != nil {
		return "", err
	}
	select {
	case e := <-got:
		t.measured = time.Since(start)
		return fmt.Sprintf("lamp-1 published lux %s, and the operator received it", e.Data), nil
	case err := <-watched:
		return "", err
	}
}

// wantRefusal verifies that err is a refusal with that code, and returns a description.
func wantRefusal(err error, code watchword.Code, what string) (string, error) {
	if err == nil {
		return "", fmt.Errorf("%s was allowed", what)
	}
	if watchword.CodeOf(err) != code {
		return "", fmt.Errorf("%s: %w, instead of %s", what, err, code)
	}
	e, _ := errors.AsType[*watchword.Error](err) // it has a code, so this succeeds
	return what + ": refused, " + e.Detail, nil
}

func (t *demoRun) publishDenied(ctx context.Context) (string, error) {
	return wantRefusal(t.devices[0].dev.Publish(ctx, "debug/core", "0xdead"), watchword.Denied, "lamp-1 publishes debug/core")
}

func (t *demoRun) callDenied(ctx context.Context) (string, error) {
	start := time.Now()
	_, err := t.devices[0].dev.Call(ctx, "lamp-2", "lamp.set", map[string]int{"level": 99}, 0)
	t.measured = time.Since(start)
	message, err := wantRefusal(err, watchword.Denied, "lamp-1 calls lamp-2 lamp.set level=99")
	if err != nil {
		return "", err
	}
	e, err := t.admin.Explain(ctx, "lamp-1", "call", "fn:lamp-2/lamp.set", json.RawMessage(`{"level":99}`))
	return message + "; policy explain says: " + e.Nearest, err
}

// command orders a command for a lamp; the next step shows its receipt.
func (t *demoRun) command(ctx context.Context) (_ string, err error) {
	t.sent, err = t.admin.Send(ctx, admin.CommandOrder{Device: "lamp-2", Function: "lamp.set", Args: json.RawMessage(`{"level":40}`)})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("the operator orders lamp-2 lamp.set level=40: %s, number %d, stored before the answer", t.sent.ID, t.sent.Seq), nil
}

// receipt waits for the receipt and verifies it without trusting the server.
func (t *demoRun) receipt(ctx context.Context) (string, error) {
	c, err := t.admin.Command(ctx, t.sent.ID, 20*time.Second)
	if err != nil {
		return "", err
	}
	if c.State != watchword.Done || c.Receipt == nil {
		return "", fmt.Errorf("the command is %s", c.State)
	}
	sign, _ := t.devices[1].dev.Keys()
	r, _, err := token.VerifyReceipt(c.Receipt.JWS, token.NewKeySet(sign), "lamp-2", t.devices[1].dev.Trust().Issuer)
	if err != nil {
		return "", err
	}
	if got := t.devices[1].level.Load(); got != 40 || r.Command != c.ID {
		return "", fmt.Errorf("the lamp has level %d", got)
	}
	t.measured = c.SettledAt.Sub(c.CreatedAt)
	return fmt.Sprintf("lamp-2 decrypted, checked, executed and signed: %s; receipt verified with its key %.8s…", r.Result, sign.ID()), nil
}

// forgedCommand sends a device a command that an attacker signed, encrypted correctly.
func (t *demoRun) forgedCommand(ctx context.Context) (string, error) {
	l := t.last()
	attacker, err := jose.GenerateKey("P-256")
	if err != nil {
		return "", err
	}
	s, err := attacker.Signer()
	if err != nil {
		return "", err
	}
	_, seal := l.dev.Keys()
	now := time.Now()
	jws, err := token.SignCommand(s, token.Command{
		Issuer: l.dev.Trust().Issuer, Device: l.id, ID: "cmd_FORGED", Epoch: 1, Seq: 999, Function: "lamp.set", Args: []byte(`{"level":0}`),
		By: "operator", Issued: now, Expires: now.Add(time.Minute),
	})
	if err != nil {
		return "", err
	}
	jwe, err := jose.Encrypt(seal, "JWT", []byte(jws))
	if err != nil {
		return "", err
	}
	_, err = l.dev.Execute(ctx, jwe)
	if l.acts.Load() != 0 {
		return "", errors.New("the lamp acted on a forged command")
	}
	return wantRefusal(err, watchword.KeyUnknown, "a command that an attacker signed and encrypted to "+string(l.id))
}

// replayedCommand lets the last lamp execute one command, and sends it the same command again.
func (t *demoRun) replayedCommand(ctx context.Context) (string, error) {
	l := t.last()
	c, err := t.admin.Send(ctx, admin.CommandOrder{Device: l.id, Function: "lamp.set", Args: json.RawMessage(`{"level":55}`)})
	if err != nil {
		return "", err
	}
	m, err := t.mqtt.next(ctx, "devices/"+string(l.id)+"/commands")
	if err != nil {
		return "", err
	}
	t.jwe = string(m)
	first, err := l.dev.Execute(ctx, t.jwe)
	if err != nil {
		return "", err
	}
	if err := l.dev.SendReceipt(ctx, first); err != nil {
		return "", err
	}
	again, err := l.dev.Execute(ctx, t.jwe)
	if err != nil {
		return "", err
	}
	if again != first || l.acts.Load() != 1 {
		return "", fmt.Errorf("the lamp acted %d times", l.acts.Load())
	}
	done, err := t.admin.Command(ctx, c.ID, 5*time.Second)
	if err != nil || done.State != watchword.Done {
		return "", fmt.Errorf("the command is %s: %w", done.State, err)
	}
	return string(l.id) + " executed it once; the same command again was not executed and returned the first receipt", nil
}

// refresh refreshes the live connection with a newer token.
func (t *demoRun) refresh(ctx context.Context) (string, error) {
	tok, err := t.last().dev.NewToken(ctx)
	if err != nil {
		return "", err
	}
	start := time.Now()
	if err := t.mqtt.publish(ctx, "$watchword/auth", tok); err != nil {
		return "", err
	}
	b, err := t.mqtt.next(ctx, "$watchword/auth")
	if err != nil {
		return "", err
	}
	t.measured = time.Since(start)
	var n struct {
		Type    string    `json:"type"`
		Expires time.Time `json:"expires_at"`
	}
	if err := json.Unmarshal(b, &n); err != nil || n.Type != "refreshed" || n.Expires.Before(t.mqtt.expires) {
		return "", fmt.Errorf("the server answers %s: %w", b, err)
	}
	return fmt.Sprintf("a newer token for the open connection, which now expires at %s", n.Expires.Local().Format("15:04:05Z07:00")), nil
}

// revoke revokes the last lamp while its connection is open.
func (t *demoRun) revoke(ctx context.Context) (string, error) {
	_, err := t.admin.Revoke(ctx, t.last().id, "demonstration")
	t.revoked = time.Now()
	return "the operator revokes " + string(t.last().id) + ": its keys are not accepted any more", err
}

// sessionCut verifies that the connection has ended, and that the token is refused.
func (t *demoRun) sessionCut(ctx context.Context) (string, error) {
	var disconnect *paho.Disconnect
	select {
	case disconnect = <-t.mqtt.ended:
	case <-ctx.Done():
		return "", fmt.Errorf("the connection is still open: %w", ctx.Err())
	}
	t.measured = max(time.Since(t.revoked), time.Microsecond)
	if disconnect.ReasonCode != 0x87 || !strings.HasPrefix(disconnect.Properties.ReasonString, string(watchword.SubjectRevoked)) {
		return "", fmt.Errorf("the connection ended with %#x %q", disconnect.ReasonCode, disconnect.Properties.ReasonString)
	}
	err := t.last().dev.Publish(ctx, "lux", 1)
	if _, err := wantRefusal(err, watchword.SubjectRevoked, "a publish after the end"); err != nil {
		if watchword.CodeOf(err) != watchword.TokenRevoked && watchword.CodeOf(err) != watchword.ClientInvalid {
			return "", err
		}
	}
	return fmt.Sprintf("its connection was closed with subject_revoked (0x87); a publish over HTTPS is refused: %s", watchword.CodeOf(err)), nil
}

// audit recomputes the log without trusting the server, and verifies the evidence of the command with the root's public key
// alone.
func (t *demoRun) audit(ctx context.Context) (string, error) {
	e, err := t.admin.Evidence(ctx, t.sent.ID)
	if err != nil {
		return "", err
	}
	v, err := command.VerifyEvidence(e, token.TrustPin(t.devices[0].dev.Trust().Roots[0]))
	if err != nil {
		return "", err
	}
	start := time.Now()
	log, err := server.VerifyLog(ctx, t.data, nil)
	if err != nil {
		return "", err
	}
	t.measured = time.Since(start)
	return fmt.Sprintf("%d entries recomputed and compared with %d signed checkpoints; order, delivery and receipt of %s proved with the root's public key alone (log entries %d, %d, %d)",
		log.Entries, log.Checkpoints, t.sent.ID, v.Ordered.Seq, v.HandedOver.Seq, v.Settled.Seq), nil
}
