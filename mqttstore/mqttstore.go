// Package mqttstore is what lies beside the side door until it is fetched: the Session
// State of MQTT clients, messages for those who are away, and retained messages, as
// bytes that a cellar keeps. In come changes, out comes, at the next start, all of
// it. It decides nothing and refuses only what it cannot read.
package mqttstore

import (
	"encoding/binary"
	"math"
	"time"

	"github.com/watchword-iot/watchword"
)

// NeverExpires is a session expiry that never comes (MQTT 5.0 §3.1.2.11.2).
const NeverExpires = math.MaxUint32

// Session is the Session State of one client (MQTT 5.0 §4.1), without its messages.
type Session struct {
	ID             int64 // the store's and this package's name for it; never used again
	Tenant         watchword.TenantID
	Client         string // its client identifier
	Subject        watchword.SubjectID
	Incarnation    int64 // of the subject
	Expiry         uint32
	DisconnectedAt time.Time // when its connection ended; zero while it has one
	Progress       []byte    // see [Progress]

	Subscriptions []Subscription
}

// Subscription is one filter of a session. Options is that of SUBSCRIBE (MQTT 5.0 §3.8.3.1).
type Subscription struct {
	Filter     string
	Options    byte
	Identifier uint32 // 0 for none
}

// Message is one application message that sessions wait for. Packet is an encoded
// PUBLISH of version 5.
type Message struct {
	ID        int64
	Packet    []byte // nil where only Size is asked for
	Size      int
	Expires   time.Time // zero: never
	Receivers []byte    // see [AppendReceiver]
}

// Retained is the retained message of one topic; without a Packet it is removed.
type Retained struct {
	Tenant  watchword.TenantID
	Topic   string
	Packet  []byte
	Expires time.Time
	// Subject owns it, in one of its lives: it published it. Empty for the server, and for
	// what was stored before owners were kept.
	Subject     watchword.SubjectID
	Incarnation int64 // of the subject
}

// Will is the will of one connection (MQTT 5.0 §3.1.2.5), on the token that the
// connection had last. Without Bytes it is removed. Token, Key and SignedBy are empty
// where the token is not known.
type Will struct {
	ID          int64 // no other will has it
	Tenant      watchword.TenantID
	Client      string // the client identifier, whole
	Subject     watchword.SubjectID
	Incarnation int64
	Token       string          // its jti
	Key         watchword.KeyID // with which the subject got it
	IssuerKey   watchword.KeyID // the issuer key
	KeyProved   bool            // the connection proved the key
	Due         time.Time       // when it is published; zero while there is a connection
	Bytes       []byte          // the will as the engine encodes it; nil removes it
}

// Changes is what one transaction writes, in this order.
type Changes struct {
	DeletedSessions []int64 // sessions, with their subscriptions
	Sessions        []Session
	Unsubscribed    []SessionSubscription
	Subscribed      []SessionSubscription
	Progress        []Session // ID and Progress alone
	Messages        []Message
	DeletedMessages []int64 // messages
	Retained        []Retained
	Wills           []Will
}

// SessionSubscription is a subscription of a session.
type SessionSubscription struct {
	Session int64
	Subscription
}

// Empty reports whether there is nothing to write.
func (c *Changes) Empty() bool {
	return len(c.DeletedSessions)+len(c.Sessions)+len(c.Unsubscribed)+len(c.Subscribed)+len(c.Progress)+len(c.Messages)+len(c.DeletedMessages)+len(c.Retained)+len(c.Wills) == 0
}

// Receiver is one session that waits for a message.
type Receiver struct {
	Session     int64
	Seq         int64  // its place in the session's queue
	QoS         byte   // 1 or 2
	Retain      bool   // RETAIN is to be set
	Group       string // the shared subscription that the session has it for, "" for none
	Identifiers []uint32
}

// AppendReceiver appends r to the receivers of a message.
func AppendReceiver(out []byte, r Receiver) []byte {
	out = binary.AppendUvarint(out, uint64(r.Session))
	out = binary.AppendUvarint(out, uint64(r.Seq))
	flags := r.QoS
	if r.Retain {
		flags |= 4
	}
	if r.Group != "" {
		flags |= 8
	}
	if len(r.Identifiers) > 0 {
		flags |= 16
	}
	out = append(out, flags)
	if r.Group != "" {
		out = append(binary.AppendUvarint(out, uint64(len(r.Group))), r.Group...)
	}
	if len(r.Identifiers) > 0 {
		out = binary.AppendUvarint(out, uint64(len(r.Identifiers)))
	}
	for _, n := range r.Identifiers {
		out = binary.AppendUvarint(out, uint64(n))
	}
	return out
}

// Receivers calls f with each receiver in b. Code: internal for bytes that are none.
func Receivers(b []byte, f func(Receiver)) error {
	d := decoder{b: b}
	for len(d.b) > 0 && !d.bad {
		r := Receiver{Session: d.int(), Seq: d.int()}
		flags := d.byte()
		r.QoS, r.Retain = flags&3, flags&4 != 0
		if flags&8 != 0 {
			r.Group = string(d.take(d.count()))
		}
		if flags&16 != 0 {
			for n := d.count(); n > 0; n-- {
				r.Identifiers = append(r.Identifiers, uint32(d.int()))
			}
		}
		if !d.bad {
			f(r)
		}
	}
	return d.err("receivers of a message")
}

// Progress is how far a session has come in its queue.
type Progress struct {
	Next     int64        // the highest number that was given to a message
	Sent     int64        // the highest number that was sent
	Inflight []Inflight   // what was sent and is not done
	Skipped  []SeqRange   // what was not sent and never will be, in order
	Lost     []LostFilter // what was lost, until no message before it is left
	Received []uint16
	Dropped  int64 // messages that found no room
	Narrowed bool  // the session is held by narrowed tokens
}

// SeqRange is the numbers from From to To, both among them.
type SeqRange struct{ From, To int64 }

// Inflight is a message that was sent; Released, if its receiver has said PUBREC.
type Inflight struct {
	Seq      int64
	Released bool
}

// LostFilter is a filter that a session may no longer subscribe to: what came by it, up to
// Seq, is not for it any more. Told says that the client knows.
type LostFilter struct {
	Filter   string
	Seq      int64
	Reported bool
}

// Append appends p as it is stored.
func (p *Progress) Append(out []byte) []byte {
	out = append(out, progressVersion)
	u := func(n int64) { out = binary.AppendUvarint(out, uint64(n)) }
	u(p.Next)
	u(p.Sent)
	u(int64(len(p.Inflight)))
	for _, o := range p.Inflight {
		n := o.Seq << 1
		if o.Released {
			n++
		}
		u(n)
	}
	u(int64(len(p.Skipped)))
	for _, s := range p.Skipped {
		u(s.From)
		u(s.To)
	}
	u(int64(len(p.Lost)))
	for _, l := range p.Lost {
		n := l.Seq << 1
		if l.Reported {
			n++
		}
		u(n)
		u(int64(len(l.Filter)))
		out = append(out, l.Filter...)
	}
	u(int64(len(p.Received)))
	for _, id := range p.Received {
		u(int64(id))
	}
	u(p.Dropped)
	var flags byte
	if p.Narrowed {
		flags |= 1
	}
	return append(out, flags)
}

// progressVersion is the version of the form. Form 2 had each number of what is gone, and form
// 1 no flags at its end.
const progressVersion = 3

// ParseProgress reads what [Progress.Append] wrote; nothing is a session at its
// beginning. Code: internal for bytes that are none.
func ParseProgress(b []byte) (p Progress, err error) {
	if len(b) == 0 {
		return p, nil
	}
	d := decoder{b: b}
	form := d.byte()
	if form < 1 || form > progressVersion {
		d.bad = true
	}
	p.Next, p.Sent = d.int(), d.int()
	for n := d.count(); n > 0; n-- {
		v := d.int()
		p.Inflight = append(p.Inflight, Inflight{v >> 1, v&1 != 0})
	}
	for n := d.count(); n > 0; n-- {
		s := SeqRange{From: d.int()}
		if s.To = s.From; form == progressVersion {
			s.To = d.int()
		}
		p.Skipped = append(p.Skipped, s)
	}
	for n := d.count(); n > 0; n-- {
		v := d.int()
		p.Lost = append(p.Lost, LostFilter{Seq: v >> 1, Reported: v&1 != 0, Filter: string(d.take(d.count()))})
	}
	for n := d.count(); n > 0; n-- {
		p.Received = append(p.Received, uint16(d.int()))
	}
	p.Dropped = d.int()
	if form > 1 {
		p.Narrowed = d.byte()&1 != 0
	}
	if len(d.b) > 0 {
		d.bad = true
	}
	return p, d.err("progress of a session")
}

type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) int() int64 {
	n, used := binary.Uvarint(d.b)
	if used <= 0 || n > math.MaxInt64 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[used:]
	return int64(n)
}

// count reads how many follow: never more than there are bytes.
func (d *decoder) count() int {
	n := d.int()
	if n > int64(len(d.b)) {
		d.bad, d.b = true, nil
		return 0
	}
	return int(n)
}

func (d *decoder) byte() byte {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) take(n int) []byte {
	if d.bad || len(d.b) < n {
		d.bad, d.b = true, nil
		return nil
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) err(what string) error {
	if d.bad {
		return watchword.Refuse(watchword.Internal, "the %s cannot be read", what)
	}
	return nil
}
