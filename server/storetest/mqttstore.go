package storetest

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/watchword-iot/watchword/server/mqttstore"
)

// MQTTStore is what the MQTT server needs from a store.
type MQTTStore interface {
	// Sessions hands out every session with its subscriptions, by id, then every message without its packet, by id. What a
	// function returns ends it.
	Sessions(ctx context.Context, session func(mqttstore.Session) error, message func(mqttstore.Message) error) error
	// RetainedMessages calls message with every retained message.
	RetainedMessages(ctx context.Context, message func(mqttstore.Retained) error) error
	// Wills calls will with every will, by id.
	Wills(ctx context.Context, will func(mqttstore.Will) error) error
	// Messages returns those of ids that are there, in the order of ids.
	Messages(ctx context.Context, ids []int64) ([]mqttstore.Message, error)
	// WriteMQTT writes changes in the order of their fields, all or none. What is not there to be dropped is no error. A
	// message with the id of one that is there: an error.
	WriteMQTT(ctx context.Context, c mqttstore.Changes) error
}

func (t *T) mqttState() string {
	t.Helper()
	var b strings.Builder
	t.must(t.Sessions(t.ctx, func(s mqttstore.Session) error {
		fmt.Fprintf(&b, "%d %s/%s %s.%d %d %v %q %v\n", s.ID, s.Tenant, s.Client, s.Subject, s.Incarnation, s.Expiry, s.DisconnectedAt.UnixMilli(), s.Progress, s.Subscriptions)
		return nil
	}, func(m mqttstore.Message) error {
		fmt.Fprintf(&b, "message %d %v %d %v\n", m.ID, m.Packet == nil, m.Size, m.Receivers)
		return nil
	}))
	t.must(t.RetainedMessages(t.ctx, func(r mqttstore.Retained) error {
		fmt.Fprintf(&b, "retained %s %s %q %v %s.%d\n", r.Tenant, r.Topic, r.Packet, r.Expires.UnixMilli(), r.Subject, r.Incarnation)
		return nil
	}))
	t.must(t.Wills(t.ctx, func(w mqttstore.Will) error {
		fmt.Fprintf(&b, "will %d %s/%s %s.%d %s %s %s %v %v %q\n", w.ID, w.Tenant, w.Client, w.Subject, w.Incarnation, w.Token, w.Key, w.IssuerKey, w.KeyProved, w.Due.UnixMilli(), w.Bytes)
		return nil
	}))
	return b.String()
}

func mqttStateSurvives(t *T) {
	first := mqttstore.Session{
		ID: 7, Tenant: tenant, Client: "lamp-1/a", Subject: "lamp-1", Incarnation: 2, Expiry: mqttstore.NeverExpires, DisconnectedAt: t.now, Progress: []byte("p0"),
	}
	will := mqttstore.Will{
		ID: 7, Tenant: tenant, Client: "lamp-1/a", Subject: "lamp-1", Incarnation: 2, Token: "t1", Key: "k1", IssuerKey: "s1", KeyProved: true,
		Due: t.now.Add(time.Second), Bytes: []byte("gone"),
	}
	old := mqttstore.Will{ID: 3, Tenant: otherTenant, Client: "lamp-2", Subject: "lamp-2", Incarnation: 1, Bytes: []byte("old")}
	t.must(t.WriteMQTT(t.ctx, mqttstore.Changes{
		Sessions:   []mqttstore.Session{first, {ID: 8, Tenant: otherTenant, Client: "lamp-1/a", Subject: "lamp-1", Incarnation: 1, Expiry: 60}},
		Subscribed: []mqttstore.SessionSubscription{{Session: 7, Subscription: mqttstore.Subscription{Filter: "a/#", Options: 9, Identifier: 268_435_455}}, {Session: 7, Subscription: mqttstore.Subscription{Filter: "b", Options: 1}}, {Session: 8, Subscription: mqttstore.Subscription{Filter: "c"}}},
		Progress:   []mqttstore.Session{{ID: 7, Progress: []byte("p1")}, {ID: 99, Progress: []byte("of no subject")}},
		Messages:   []mqttstore.Message{{ID: 1, Packet: []byte("one"), Receivers: []byte{1}}, {ID: 2, Packet: []byte("three"), Expires: t.now, Receivers: []byte{2}}},
		Retained:   []mqttstore.Retained{{Tenant: tenant, Topic: "a", Packet: []byte("x")}, {Tenant: otherTenant, Topic: "a", Packet: []byte("y"), Expires: t.now, Subject: "lamp-1", Incarnation: 3}},
		Wills:      []mqttstore.Will{will, old},
	}))
	ms := t.now.UnixMilli()
	want := fmt.Sprintf(`7 default/lamp-1/a lamp-1.2 4294967295 %d "p1" [{a/# 9 268435455} {b 1 0}]
8 other/lamp-1/a lamp-1.1 60 %[3]d "" [{c 0 0}]
message 1 true 3 [1]
message 2 true 5 [2]
retained default a "x" %[3]d .0
retained other a "y" %[1]d lamp-1.3
will 3 other/lamp-2 lamp-2.1    false %[3]d "old"
will 7 default/lamp-1/a lamp-1.2 t1 k1 s1 true %[2]d "gone"
`, ms, ms+1000, time.Time{}.UnixMilli())
	equal(t, "the store", t.mqttState(), want)
	got, err := t.Messages(t.ctx, []int64{2, 5, 1})
	t.must(err)
	equal(t, "messages", fmt.Sprintf("%d %s %s %d", len(got), got[0].Packet, got[1].Packet, got[0].Expires.UnixMilli()), fmt.Sprintf("2 three one %d", ms))

	// All or none.
	if err := t.WriteMQTT(t.ctx, mqttstore.Changes{DeletedSessions: []int64{7}, Messages: []mqttstore.Message{{ID: 1, Packet: []byte("again"), Receivers: []byte{1}}}}); err == nil {
		t.Fatal("a message took the place of another")
	}
	equal(t, "the store after what failed", t.mqttState(), want)

	first.DisconnectedAt, first.Progress = time.Time{}, []byte("p2")
	will.Due, will.Token, will.Bytes = time.Time{}, "t2", []byte("again")
	t.must(t.WriteMQTT(t.ctx, mqttstore.Changes{
		DeletedSessions: []int64{8, 1000}, Sessions: []mqttstore.Session{first}, Unsubscribed: []mqttstore.SessionSubscription{{Session: 7, Subscription: mqttstore.Subscription{Filter: "a/#"}}},
		Subscribed: []mqttstore.SessionSubscription{{Session: 7, Subscription: mqttstore.Subscription{Filter: "b", Options: 2}}}, DeletedMessages: []int64{1, 77},
		Retained: []mqttstore.Retained{{Tenant: tenant, Topic: "a"}, {Tenant: tenant, Topic: "never there"}},
		Wills:    []mqttstore.Will{{ID: 3}, will, {ID: 1000}},
	}))
	equal(t, "the store in the end", t.mqttState(), fmt.Sprintf(`7 default/lamp-1/a lamp-1.2 4294967295 %d "p2" [{b 2 0}]
message 2 true 5 [2]
retained other a "y" %d lamp-1.3
will 7 default/lamp-1/a lamp-1.2 t2 k1 s1 true %[1]d "again"
`, time.Time{}.UnixMilli(), ms))
}
