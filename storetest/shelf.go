package storetest

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/watchword-iot/watchword/shelf"
)

// Shelf is what the MQTT engine asks of a cellar.
type Shelf interface {
	// Shelf hands out every session with its subscriptions, by id, then every message without its packet, by id. What a
	// function returns ends it.
	Shelf(ctx context.Context, session func(shelf.Session) error, message func(shelf.Message) error) error
	// Retained hands out every retained message.
	Retained(ctx context.Context, message func(shelf.Retained) error) error
	// Wills hands out every will, by id.
	Wills(ctx context.Context, will func(shelf.Will) error) error
	// ShelfMessages returns those of ids that are there, in the order of ids.
	ShelfMessages(ctx context.Context, ids []int64) ([]shelf.Message, error)
	// KeepOnShelf writes changes in the order of their fields, all or none. What is not there to be dropped is no error. A
	// message with the id of one that is there: an error.
	KeepOnShelf(ctx context.Context, c shelf.Changes) error
}

func (t *T) shelf() string {
	t.Helper()
	var b strings.Builder
	t.must(t.Shelf(t.ctx, func(s shelf.Session) error {
		fmt.Fprintf(&b, "%d %s/%s %s.%d %d %v %q %v\n", s.ID, s.Tenant, s.Client, s.Subject, s.Incarnation, s.Expiry, s.Left.UnixMilli(), s.Progress, s.Subscriptions)
		return nil
	}, func(m shelf.Message) error {
		fmt.Fprintf(&b, "message %d %v %d %v\n", m.ID, m.Packet == nil, m.Size, m.Receivers)
		return nil
	}))
	t.must(t.Retained(t.ctx, func(r shelf.Retained) error {
		fmt.Fprintf(&b, "retained %s %s %q %v %s.%d\n", r.Tenant, r.Topic, r.Packet, r.Expires.UnixMilli(), r.Subject, r.Incarnation)
		return nil
	}))
	t.must(t.Wills(t.ctx, func(w shelf.Will) error {
		fmt.Fprintf(&b, "will %d %s/%s %s.%d %s %s %s %v %v %q\n", w.ID, w.Tenant, w.Client, w.Subject, w.Incarnation, w.Token, w.Key, w.SignedBy, w.Proved, w.Due.UnixMilli(), w.Bytes)
		return nil
	}))
	return b.String()
}

func shelfKeeps(t *T) {
	first := shelf.Session{
		ID: 7, Tenant: here, Client: "lamp-1/a", Subject: "lamp-1", Incarnation: 2, Expiry: shelf.Forever, Left: t.now, Progress: []byte("p0"),
	}
	will := shelf.Will{
		ID: 7, Tenant: here, Client: "lamp-1/a", Subject: "lamp-1", Incarnation: 2, Token: "t1", Key: "k1", SignedBy: "s1", Proved: true,
		Due: t.now.Add(time.Second), Bytes: []byte("gone"),
	}
	old := shelf.Will{ID: 3, Tenant: other, Client: "lamp-2", Subject: "lamp-2", Incarnation: 1, Bytes: []byte("old")}
	t.must(t.KeepOnShelf(t.ctx, shelf.Changes{
		Sessions:   []shelf.Session{first, {ID: 8, Tenant: other, Client: "lamp-1/a", Subject: "lamp-1", Incarnation: 1, Expiry: 60}},
		Subscribed: []shelf.Filter{{Session: 7, Subscription: shelf.Subscription{Filter: "a/#", Options: 9, Identifier: 268_435_455}}, {Session: 7, Subscription: shelf.Subscription{Filter: "b", Options: 1}}, {Session: 8, Subscription: shelf.Subscription{Filter: "c"}}},
		Progress:   []shelf.Session{{ID: 7, Progress: []byte("p1")}, {ID: 99, Progress: []byte("of nobody")}},
		Messages:   []shelf.Message{{ID: 1, Packet: []byte("one"), Receivers: []byte{1}}, {ID: 2, Packet: []byte("three"), Expires: t.now, Receivers: []byte{2}}},
		Retained:   []shelf.Retained{{Tenant: here, Topic: "a", Packet: []byte("x")}, {Tenant: other, Topic: "a", Packet: []byte("y"), Expires: t.now, Subject: "lamp-1", Incarnation: 3}},
		Wills:      []shelf.Will{will, old},
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
	is(t, "the shelf", t.shelf(), want)
	got, err := t.ShelfMessages(t.ctx, []int64{2, 5, 1})
	t.must(err)
	is(t, "messages", fmt.Sprintf("%d %s %s %d", len(got), got[0].Packet, got[1].Packet, got[0].Expires.UnixMilli()), fmt.Sprintf("2 three one %d", ms))

	// All or none.
	if err := t.KeepOnShelf(t.ctx, shelf.Changes{Dropped: []int64{7}, Messages: []shelf.Message{{ID: 1, Packet: []byte("again"), Receivers: []byte{1}}}}); err == nil {
		t.Fatal("a message took the place of another")
	}
	is(t, "the shelf after what failed", t.shelf(), want)

	first.Left, first.Progress = time.Time{}, []byte("p2")
	will.Due, will.Token, will.Bytes = time.Time{}, "t2", []byte("again")
	t.must(t.KeepOnShelf(t.ctx, shelf.Changes{
		Dropped: []int64{8, 1000}, Sessions: []shelf.Session{first}, Unsubscribed: []shelf.Filter{{Session: 7, Subscription: shelf.Subscription{Filter: "a/#"}}},
		Subscribed: []shelf.Filter{{Session: 7, Subscription: shelf.Subscription{Filter: "b", Options: 2}}}, Done: []int64{1, 77},
		Retained: []shelf.Retained{{Tenant: here, Topic: "a"}, {Tenant: here, Topic: "never there"}},
		Wills:    []shelf.Will{{ID: 3}, will, {ID: 1000}},
	}))
	is(t, "the shelf in the end", t.shelf(), fmt.Sprintf(`7 default/lamp-1/a lamp-1.2 4294967295 %d "p2" [{b 2 0}]
message 2 true 5 [2]
retained other a "y" %d lamp-1.3
will 7 default/lamp-1/a lamp-1.2 t2 k1 s1 true %[1]d "again"
`, time.Time{}.UnixMilli(), ms))
}
