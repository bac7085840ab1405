// Package mqttstore defines what the MQTT engine stores: Session State, messages for offline
// clients, retained messages and wills, as values that a store writes in one transaction and
// returns at the next start. It contains no decisions and refuses only undecodable bytes.
package mqttstore

import (
	"encoding/binary"
	"math"
	"time"

	"github.com/watchword-iot/watchword"
)

// NeverExpires is a Session Expiry Interval without end (MQTT 5.0 §3.1.2.11.2).
const NeverExpires = math.MaxUint32

// Session is the Session State of one client (MQTT 5.0 §4.1), without its messages.
type Session struct {
	ID             int64 // id in the store; never reused
	Tenant         watchword.TenantID
	Client         string // client identifier
	Subject        watchword.SubjectID
	Incarnation    int64 // incarnation of the subject
	Expiry         uint32
	DisconnectedAt time.Time // when its connection ended; zero while connected
	Progress       []byte    // encoded [Progress]

	Subscriptions []Subscription
}

// Subscription is one filter of a session. Options is that of SUBSCRIBE (MQTT 5.0 §3.8.3.1).
type Subscription struct {
	Filter     string
	Options    byte
	Identifier uint32 // 0: none
}

// Message is an application message stored for sessions. Packet is an encoded version 5 PUBLISH.
type Message struct {
	ID        int64
	Packet    []byte // nil where only Size was asked for
	Size      int
	Expires   time.Time // zero: never
	Receivers []byte    // encoded by [AppendReceiver]
}

// Retained is the retained message of one topic; without Packet it is deleted.
type Retained struct {
	Tenant  watchword.TenantID
	Topic   string
	Packet  []byte
	Expires time.Time
	// Subject is the owner: it published the message, in that incarnation. Empty for the server,
	// and for messages stored before owners were recorded.
	Subject     watchword.SubjectID
	Incarnation int64 // incarnation of the subject
}

// Will is the will of one connection (MQTT 5.0 §3.1.2.5), on the token that the
// connection had last. Without Bytes it is removed. Token, Key and SignedBy are empty
// where the token is not known.
type Will struct {
	ID          int64 // never reused
	Tenant      watchword.TenantID
	Client      string // whole client identifier
	Subject     watchword.SubjectID
	Incarnation int64
	Token       string          // jti of the token
	Key         watchword.KeyID // key that the subject proved to get the token
	IssuerKey   watchword.KeyID // issuer key of the token
	KeyProved   bool            // the connection proved the key
	Due         time.Time       // when it is due; zero while connected
	Bytes       []byte          // the will as encoded by the engine; nil deletes it
}

// Changes are the changes of one transaction, applied in this order.
type Changes struct {
	DeletedSessions []int64 // sessions and their subscriptions
	Sessions        []Session
	Unsubscribed    []SessionSubscription
	Subscribed      []SessionSubscription
	Progress        []Session // with ID and Progress only
	Messages        []Message
	DeletedMessages []int64 // their number
	Retained        []Retained
	Wills           []Will
}

// SessionSubscription is a subscription of a session.
type SessionSubscription struct {
	Session int64
	Subscription
}

// Empty reports whether there are no changes.
func (c *Changes) Empty() bool {
	return len(c.DeletedSessions)+len(c.Sessions)+len(c.Unsubscribed)+len(c.Subscribed)+len(c.Progress)+len(c.Messages)+len(c.DeletedMessages)+len(c.Retained)+len(c.Wills) == 0
}

// Receiver is a session that a message is stored for.
type Receiver struct {
	Session     int64
	Seq         int64  // sequence number in the session's queue
	QoS         byte   // 1 or 2
	Retain      bool   // the RETAIN flag of the delivery
	Group       string // shared subscription that it is received by, "" for none
	Identifiers []uint32
}

// AppendReceiver appends the encoding of r.
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

// Receivers calls f with each encoded receiver in b. Code: internal for invalid bytes.
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

// Progress is the delivery state of a session's queue.
type Progress struct {
	Next     int64        // highest assigned sequence number
	Sent     int64        // highest sequence number that was sent
	Inflight []Inflight   // sent and not acknowledged
	Skipped  []SeqRange   // never to be sent, in order
	Lost     []LostFilter // lost subscriptions with messages still queued
	Received []uint16
	Dropped  int64 // messages dropped for lack of room
	Narrowed bool  // the session was opened with a narrowed token
}

// SeqRange is the sequence numbers from From to To, inclusive.
type SeqRange struct{ From, To int64 }

// Inflight is a message that was sent; Released means that the receiver has sent PUBREC.
type Inflight struct {
	Seq      int64
	Released bool
}

// LostFilter is a filter that a session may no longer subscribe to: its messages up to Seq are not delivered to the
// session. Reported says that the client was notified.
type LostFilter struct {
	Filter   string
	Seq      int64
	Reported bool
}

// Append appends the encoding of p.
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

// progressVersion is the version of the encoding. Version 2 listed each skipped number, version 1
// had no flags at its end.
const progressVersion = 3

// ParseProgress decodes what [Progress.Append] encoded; empty bytes are a new session. Code:
// internal for invalid bytes.
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

// count reads a number of items, at most the number of remaining bytes.
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
