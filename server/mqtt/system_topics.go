package mqtt

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/internal/truncate"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/session"
)

// System topics: devices/{id}/…, in which the server takes part.
const devicePrefix = "devices/"

// systemTopicKind says what the server does with a publish to a topic.
type systemTopicKind byte

const (
	topicEvents     systemTopicKind = iota + 1 // devices/{id}/events/…: forwarded, and buffered for streams
	topicState                                 // devices/{id}/state: forwarded, and the last one stored
	topicReceipts                              // devices/{id}/receipts: consumed
	topicServerOnly                            // devices/{id}/commands and …/config: clients may not publish
)

// systemTopic is a parsed topic; kind 0 is a topic of the application.
type systemTopic struct {
	kind    systemTopicKind
	device  watchword.SubjectID
	stream  string
	invalid error // why nothing is published to it, see [systemTopic.check]; set by [decidePublish] alone
}

// check returns why a device's id or the name of a stream is not valid. Code: bad_request.
func (sys systemTopic) check() error {
	if sys.kind == 0 {
		return nil
	}
	if err := watchword.CheckName("device", string(sys.device)); err != nil || sys.kind != topicEvents {
		return err
	}
	for s := range strings.SplitSeq(sys.stream, "/") {
		if err := watchword.CheckName("stream", s); err != nil {
			return err
		}
	}
	return nil
}

func parseSystemTopic(topic string) systemTopic {
	rest, ok := strings.CutPrefix(topic, devicePrefix)
	if !ok {
		return systemTopic{}
	}
	id, rest, ok := strings.Cut(rest, "/")
	if !ok {
		return systemTopic{}
	}
	sys := systemTopic{device: watchword.SubjectID(id)}
	what, stream, deeper := strings.Cut(rest, "/")
	switch {
	case what == "events" && deeper:
		sys.kind, sys.stream = topicEvents, stream
	case what == "state" && !deeper:
		sys.kind = topicState
	case what == "receipts" && !deeper:
		sys.kind = topicReceipts
	case what == "commands", what == "config":
		sys.kind = topicServerOnly
	default:
		return systemTopic{}
	}
	return sys
}

// isStateTopic reports whether topic is a device's state topic.
func isStateTopic(topic string) bool { return parseSystemTopic(topic).kind == topicState }

// publisher is the publisher of a message: a live session, or, for a will, an offline authority.
type publisher struct {
	session *session.Session
	offline *session.Authority // set if session is nil
}

// trace returns the session's id; empty for a will.
func (a publisher) trace() string {
	if a.session == nil {
		return ""
	}
	return string(a.session.ID())
}

// runAuthorized runs the store writes of a publish under the authority to publish it, whose versions the
// store compares: see [session.Session.RunAuthorized].
func (st *sessionState) runAuthorized(ctx context.Context, by publisher, topic string, do func(context.Context, *session.Authority) error) error {
	lockrank.Block()
	may := func(a *session.Authority) error { return decidePublish(a, topic).decision.Err() }
	if by.session != nil {
		return by.session.RunAuthorized(ctx, may, do)
	}
	return st.broker.deps.Guard.RunAuthorized(ctx, by.offline, may, do)
}

// handleSystemTopic handles a publish to a system topic. The server itself counts as a receiver.
func (st *sessionState) handleSystemTopic(ctx context.Context, w *workBatch, sys systemTopic, p bus.Publication, m *message, o *bus.Result, by publisher) error {
	if sys.invalid != nil {
		return sys.invalid
	}
	o.Receivers++
	switch sys.kind {
	case topicEvents:
		return st.publishEvent(w, sys, p, m, o)
	case topicState:
		return st.reportState(ctx, w, sys, p, m, o, by)
	case topicReceipts:
		return st.takeReceipt(ctx, sys, m, by)
	}
	return nil
}

func (st *sessionState) publishEvent(w *workBatch, sys systemTopic, p bus.Publication, m *message, o *bus.Result) error {
	if len(m.payload) > watchword.MaxDocument {
		return watchword.Refuse(watchword.TooLarge, "the event must have at most 32768 bytes")
	}
	e := &bus.Event{Device: sys.device, Stream: sys.stream, At: w.now, Data: m.payload}
	if m.props != nil {
		e.ContentType, _ = m.props.Text(packet.ContentType)
		e.ContentType = truncate.LogText(e.ContentType)
	}
	p.Event = e
	return st.tenant.bus.Publish(p, &w.Batch, o)
}

func (st *sessionState) reportState(ctx context.Context, w *workBatch, sys systemTopic, p bus.Publication, m *message, o *bus.Result, by publisher) error {
	if len(m.payload) > watchword.MaxDocument {
		return watchword.Refuse(watchword.TooLarge, "the state must have at most 32768 bytes")
	}
	if err := jose.Walk(m.payload, func(string, jsontext.Value) error { return nil }); err != nil {
		return &watchword.Error{Code: watchword.BadRequest, Field: "state", Detail: "must be one JSON object, no member twice, at most 8 deep", Err: err}
	}
	publish := func() error { return st.tenant.bus.Publish(p, &w.Batch, o) }
	if st.broker.deps.Twins == nil {
		return publish()
	}
	var doc bytes.Buffer
	if err := json.Compact(&doc, m.payload); err != nil {
		return watchword.RefuseField("state", "must be one JSON object")
	}
	return st.runAuthorized(ctx, by, m.topic, func(ctx context.Context, a *session.Authority) error {
		return st.broker.deps.Twins.ReportState(ctx, st.tenant.id, a.Versions(), sys.device, doc.Bytes(), w.now, publish)
	})
}

func (st *sessionState) takeReceipt(ctx context.Context, sys systemTopic, m *message, by publisher) error {
	if st.broker.deps.Commands == nil {
		return watchword.Refuse(watchword.ReceiptInvalid, "this server does not accept receipts")
	}
	if len(m.payload) > watchword.MaxDocument {
		return watchword.Refuse(watchword.TooLarge, "the receipt must have at most 32768 bytes")
	}
	return st.runAuthorized(ctx, by, m.topic, func(ctx context.Context, a *session.Authority) error {
		_, err := st.broker.deps.Commands.ApplyReceipt(ctx, st.tenant.id, sys.device, a.Versions(), string(m.payload), by.trace())
		return err
	})
}

// isCommandsFilter reports whether filter is the commands topic of this client.
func (c *conn) isCommandsFilter(filter string) bool { return filter == c.commandsTopic() }

func (c *conn) commandsTopic() string {
	return devicePrefix + string(c.session.owner.subject) + "/commands"
}

// configContentType is the content type of a signed configuration.
const configContentType = "application/jose"

func stateTopic(id watchword.SubjectID) string  { return devicePrefix + string(id) + "/state" }
func configTopic(id watchword.SubjectID) string { return devicePrefix + string(id) + "/config" }
