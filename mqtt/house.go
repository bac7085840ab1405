package mqtt

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/session"
)

// The topics that the server has a part in: devices/{id}/….
const devicePrefix = "devices/"

// houseKind is what the server does with a topic.
type houseKind byte

const (
	toEvents   houseKind = iota + 1 // devices/{id}/events/…: routed, and kept for streams
	toState                         // devices/{id}/state: routed, and the last one kept
	toReceipts                      // devices/{id}/receipts: consumed
	serverOnly                      // devices/{id}/commands and …/config: no client publishes there
)

// house is what a topic means to the server; kind 0 is the application's own.
type house struct {
	kind   houseKind
	device watchword.SubjectID
	stream string
}

func houseOf(topic string) house {
	rest, ok := strings.CutPrefix(topic, devicePrefix)
	if !ok {
		return house{}
	}
	id, rest, ok := strings.Cut(rest, "/")
	if !ok {
		return house{}
	}
	h := house{device: watchword.SubjectID(id)}
	what, stream, deeper := strings.Cut(rest, "/")
	switch {
	case what == "events" && deeper:
		h.kind, h.stream = toEvents, stream
	case what == "state" && !deeper:
		h.kind = toState
	case what == "receipts" && !deeper:
		h.kind = toReceipts
	case what == "commands", what == "config":
		h.kind = serverOnly
	default:
		return house{}
	}
	return h
}

// isState reports whether topic is the one that the server keeps the last
// message of.
func isState(topic string) bool { return houseOf(topic).kind == toState }

// actor is who publishes: a live session, or (of a will) what one might do when it ended.
type actor struct {
	session *session.Session
	left    *session.Authority // where session is nil
}

// trace is the id of its session; empty for a will.
func (a actor) trace() string {
	if a.session == nil {
		return ""
	}
	return string(a.session.ID())
}

// act runs what a publish writes to the store under the authority to publish it, which the store
// compares: see [session.Session.Act].
func (st *sessionState) act(ctx context.Context, by actor, topic string, do func(context.Context, *session.Authority) error) error {
	lockrank.Block()
	may := func(a *session.Authority) error { return judge(a, topic).decision.Err() }
	if by.session != nil {
		return by.session.Act(ctx, may, do)
	}
	return st.broker.deps.Guard.Act(ctx, by.left, may, do)
}

// toTheHouse does what a topic of the server's means. It is always of use to somebody:
// to the server.
func (st *sessionState) toTheHouse(ctx context.Context, w *batch, h house, m *message, o *bus.Result, by actor) error {
	if err := watchword.CheckName("device", string(h.device)); err != nil {
		return err
	}
	o.Receivers++
	switch h.kind {
	case toEvents:
		return st.event(w, h, m, o)
	case toState:
		return st.state(ctx, w, h, m, o, by)
	case toReceipts:
		return st.receipt(ctx, h, m, by)
	}
	return nil
}

func (st *sessionState) event(w *batch, h house, m *message, o *bus.Result) error {
	for s := range strings.SplitSeq(h.stream, "/") {
		if err := watchword.CheckName("stream", s); err != nil {
			return err
		}
	}
	if len(m.payload) > watchword.MaxDocument {
		return watchword.Refuse(watchword.TooLarge, "an event may have 32 KiB")
	}
	e := &bus.Event{Device: h.device, Stream: h.stream, At: w.now, Data: m.payload}
	if m.props != nil {
		e.ContentType, _ = m.props.Text(packet.ContentType)
		e.ContentType = clip(e.ContentType)
	}
	st.world.bus.PublishEvent(e, m, &w.Batch, o)
	return nil
}

func (st *sessionState) state(ctx context.Context, w *batch, h house, m *message, o *bus.Result, by actor) error {
	if len(m.payload) > watchword.MaxDocument {
		return watchword.Refuse(watchword.TooLarge, "a state may have 32 KiB")
	}
	if err := jose.Walk(m.payload, func(string, jsontext.Value) error { return nil }); err != nil {
		return &watchword.Error{Code: watchword.BadRequest, Field: "state", Detail: "must be one JSON object, no member twice, at most 8 deep", Err: err}
	}
	if st.broker.deps.Twins != nil {
		var doc bytes.Buffer
		if err := json.Compact(&doc, m.payload); err != nil {
			return watchword.RefuseField("state", "must be one JSON object")
		}
		if err := st.act(ctx, by, m.topic, func(ctx context.Context, a *session.Authority) error {
			return st.broker.deps.Twins.ReportState(ctx, st.world.tenant, a.Basis(), h.device, doc.Bytes(), w.now)
		}); err != nil {
			return err
		}
	}
	st.world.bus.Publish(m, &w.Batch, o)
	return nil
}

func (st *sessionState) receipt(ctx context.Context, h house, m *message, by actor) error {
	if st.broker.deps.Desk == nil {
		return watchword.Refuse(watchword.ReceiptInvalid, "no commands were handed over here")
	}
	if len(m.payload) > watchword.MaxDocument {
		return watchword.Refuse(watchword.TooLarge, "a receipt may have 32 KiB")
	}
	err := st.act(ctx, by, m.topic, func(ctx context.Context, a *session.Authority) error {
		_, err := st.broker.deps.Desk.TakeReceipt(ctx, st.world.tenant, h.device, a.Basis(), string(m.payload), by.trace())
		return err
	})
	if code := codeOf(err); code != watchword.ReceiptInvalid && audit.Records(audit.RequestRefuse, code, true) {
		// The device's papers are good: what it handed in is not.
		return watchword.Because(err, watchword.ReceiptInvalid, "the receipt does not hold: %s", watchword.CodeOf(err))
	}
	return err
}

// isCommands reports whether filter is the topic of this client's own commands.
func (c *conn) isCommands(filter string) bool { return filter == c.commandsTopic() }

func (c *conn) commandsTopic() string {
	return devicePrefix + string(c.session.owner.subject) + "/commands"
}

// configType is the content type of a signed configuration.
const configType = "application/jose"

func stateTopic(id watchword.SubjectID) string  { return devicePrefix + string(id) + "/state" }
func configTopic(id watchword.SubjectID) string { return devicePrefix + string(id) + "/config" }
