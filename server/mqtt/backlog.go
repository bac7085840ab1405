package mqtt

import (
	"cmp"
	"slices"

	"github.com/watchword-iot/watchword/server/bus"
)

// backlog is the messages that the store has for a persistent session, and how far its client has come.
type backlog struct {
	entries  []backlogEntry // those that are not in the queue or in flight, by seq
	loading  bool           // a page of entries is being moved to the queue
	messages int            // in entries, in the queue and in flight
	bytes    int            // their bytes
	lastSent int64          // the highest seq that was sent
	skipped  sequenceSet    // seqs above lastSent that will not be sent

	redistributing []backlogEntry // being handed to other members of a shared subscription
	minSeq         int64          // seqs up to here belong to a session that was discarded
}

// backlogEntry is one message of a backlog.
type backlogEntry struct {
	stored      *storedMessage // nil where the receiver has the message, and PUBREL is to be sent
	identifiers *[]uint32
	seq         int64
	size        uint32
	qos         byte
	retain      bool
	released    bool
	group       *bus.Group // shared subscription that it was received by, or one of the same name
}

func backlogEntryOf(it *queuedMessage) backlogEntry {
	e := backlogEntry{stored: it.extra.stored, seq: it.extra.seq, size: it.extra.countedBytes, qos: it.qos, retain: it.flags&1 != 0, group: it.extra.group}
	if it.extra.identifiers != nil {
		e.identifiers = &it.extra.identifiers
	}
	return e
}

// entryOverhead is what a message of a backlog counts beside its bytes.
const entryOverhead = 64

// hasRoom reports whether one more message of that size may be stored.
func (b *backlog) hasRoom(size int, o *Options) bool {
	return b.messages < o.QueueMessages && b.bytes+size+entryOverhead <= o.QueueBytes
}

// halfFull reports whether more than half of what may be stored is.
func (b *backlog) halfFull(o *Options) bool {
	return b.messages > o.QueueMessages/2 || b.bytes > o.QueueBytes/2
}

// count counts one more message.
func (b *backlog) count(size int) {
	b.messages++
	b.bytes += size + entryOverhead
}

// uncount undoes count for a message that is done, or will not be sent.
func (b *backlog) uncount(seq int64, size int) {
	b.messages--
	b.bytes -= size + entryOverhead
	if seq > b.lastSent {
		b.skipped.add(seq, seq)
	}
}

// markSent notes that all messages up to seq were sent.
func (b *backlog) markSent(seq int64) { b.lastSent = max(b.lastSent, seq) }

// wasSent reports whether the message was sent: it is sent again with DUP, whatever its age.
func (b *backlog) wasSent(seq int64) bool { return seq > 0 && seq <= b.lastSent }

// isInflight reports whether e was sent with QoS 2: it is not another receiver's any more (MQTT 5.0 §4.8.2).
func (b *backlog) isInflight(e *backlogEntry) bool { return e.qos == 2 && b.wasSent(e.seq) }

// push appends the newest message.
func (b *backlog) push(e backlogEntry) { b.entries = append(b.entries, e) }

// insert puts an entry in its place.
func (b *backlog) insert(e backlogEntry) {
	at, _ := slices.BinarySearchFunc(b.entries, e.seq, func(x backlogEntry, seq int64) int { return cmp.Compare(x.seq, seq) })
	b.entries = slices.Insert(b.entries, at, e)
}

// prepend puts what came back from the queue and from flight before the rest.
func (b *backlog) prepend(first []backlogEntry) {
	b.entries = append(first, b.entries...)
	b.sort()
	b.loading = false
}

func (b *backlog) sort() {
	slices.SortStableFunc(b.entries, func(x, y backlogEntry) int { return cmp.Compare(x.seq, y.seq) })
}

// take removes the entries that match, in order.
func (b *backlog) take(match func(*backlogEntry) bool) (taken []backlogEntry) {
	rest := b.entries[:0]
	for i := range b.entries {
		if e := &b.entries[i]; match(e) {
			taken = append(taken, *e)
		} else {
			rest = append(rest, *e)
		}
	}
	clear(b.entries[len(rest):])
	b.entries = rest
	return taken
}

// page returns the oldest entries, as many as are loaded at once. They stay.
func (b *backlog) page() []backlogEntry {
	n, size := 0, 0
	for n < len(b.entries) && n < fetchMessages && (n == 0 || size+int(b.entries[n].size) <= fetchBytes) {
		size += int(b.entries[n].size)
		n++
	}
	return slices.Clone(b.entries[:n])
}

// pop removes a page from the front, and returns those of its entries that are still there.
func (b *backlog) pop(page []backlogEntry) (present []backlogEntry) {
	n := 0
	for _, e := range page {
		if n < len(b.entries) && b.entries[n].seq == e.seq {
			n++
			present = append(present, e)
		}
	}
	b.entries = trimFront(b.entries, n)
	return present
}

// startRedistributing notes that other members of a shared subscription are offered e. It belongs to the
// session until one has it.
func (b *backlog) startRedistributing(e backlogEntry) { b.redistributing = append(b.redistributing, e) }

// stopRedistributing undoes startRedistributing.
func (b *backlog) stopRedistributing(seq int64) {
	b.redistributing = slices.DeleteFunc(b.redistributing, func(x backlogEntry) bool { return x.seq == seq })
}

// discard removes all entries, which the caller has released: seq is the last one of the session that is discarded. A
// redistribution in progress continues.
func (b *backlog) discard(seq int64) {
	b.entries, b.skipped = nil, nil
	b.lastSent, b.minSeq = seq, seq
}

// each calls f with every entry that is not done, but for those in the queue and in flight.
func (b *backlog) each(f func(e *backlogEntry)) {
	for i := range b.entries {
		f(&b.entries[i])
	}
	for i := range b.redistributing {
		if e := &b.redistributing[i]; e.seq > b.minSeq {
			f(e)
		}
	}
}
