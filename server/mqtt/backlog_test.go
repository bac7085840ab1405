package mqtt

import (
	"slices"
	"testing"
)

func backlogOf(seqs ...int64) *backlog {
	b := &backlog{}
	for _, n := range seqs {
		b.push(backlogEntry{seq: n, size: 10})
	}
	return b
}

func seqsOf(es []backlogEntry) (out []int64) {
	for _, e := range es {
		out = append(out, e.seq)
	}
	return out
}

func TestBacklogGivesOutItsOldestEntries(t *testing.T) {
	b := backlogOf(2, 4, 6, 8, 10)
	page := b.page()
	if got := seqsOf(page); !slices.Equal(got, []int64{2, 4, 6, 8, 10}) {
		t.Fatalf("page %v", got)
	}
	if got := seqsOf(b.take(func(e *backlogEntry) bool { return e.seq == 2 || e.seq == 8 })); !slices.Equal(got, []int64{2, 8}) {
		t.Errorf("taken %v", got)
	}
	b.insert(backlogEntry{seq: 12})
	b.insert(backlogEntry{seq: 11})
	if got := seqsOf(b.pop(page)); !slices.Equal(got, []int64{4, 6, 10}) {
		t.Errorf("popped %v: what was taken meanwhile is not there", got)
	}
	if got := seqsOf(b.entries); !slices.Equal(got, []int64{11, 12}) {
		t.Errorf("left %v", got)
	}
	b.loading = true
	if b.prepend([]backlogEntry{{seq: 13}, {seq: 1}}); !slices.Equal(seqsOf(b.entries), []int64{1, 11, 12, 13}) || b.loading {
		t.Errorf("after prepend %v, loading %v", seqsOf(b.entries), b.loading)
	}
}

func TestBacklogPageIsBounded(t *testing.T) {
	b := &backlog{}
	for n := range int64(3) {
		b.push(backlogEntry{seq: n + 1, size: fetchBytes/2 + 1})
	}
	if got := len(b.page()); got != 1 {
		t.Errorf("%d large messages in one page", got)
	}
	b.entries[0].size = fetchBytes + 1
	if got := len(b.page()); got != 1 {
		t.Errorf("%d messages in the page of one that is larger than a page", got)
	}
	b = &backlog{}
	for n := range int64(fetchMessages + 1) {
		b.push(backlogEntry{seq: n + 1})
	}
	if got := len(b.page()); got != fetchMessages {
		t.Errorf("%d small messages in one page", got)
	}
}

func TestBacklogCounts(t *testing.T) {
	o := Options{QueueMessages: 2, QueueBytes: 1000}
	b := backlogOf(1, 2)
	b.count(100)
	if !b.hasRoom(1000-100-2*entryOverhead, &o) || b.hasRoom(1000-100-2*entryOverhead+1, &o) || b.halfFull(&o) {
		t.Error("bounds of bytes")
	}
	b.count(100)
	if b.hasRoom(1, &o) || !b.halfFull(&o) {
		t.Error("bounds of messages")
	}
	b.markSent(1)
	b.markSent(0)
	b.uncount(1, 100)
	b.uncount(2, 100)
	if b.messages != 0 || b.bytes != 0 || b.skipped.has(1) || !b.skipped.has(2) {
		t.Errorf("%+v", b)
	}
	if !b.wasSent(1) || b.wasSent(2) || b.wasSent(0) || !b.isInflight(&backlogEntry{seq: 1, qos: 2}) || b.isInflight(&backlogEntry{seq: 1, qos: 1}) {
		t.Error("what was sent")
	}
}

func TestDiscardedBacklogKeepsNothingOfTheSession(t *testing.T) {
	b := backlogOf(5)
	b.startRedistributing(backlogEntry{seq: 3})
	b.startRedistributing(backlogEntry{seq: 4})
	b.stopRedistributing(3)
	var got []int64
	b.each(func(e *backlogEntry) { got = append(got, e.seq) })
	if !slices.Equal(got, []int64{5, 4}) {
		t.Errorf("open %v", got)
	}
	b.discard(5)
	b.startRedistributing(backlogEntry{seq: 6})
	got = nil
	if b.each(func(e *backlogEntry) { got = append(got, e.seq) }); !slices.Equal(got, []int64{6}) {
		t.Errorf("open after discard %v", got)
	}
}

func TestRowIsWrittenAgainWhereItWasNot(t *testing.T) {
	r := newPersistent(60).rowChanged
	r.changeFilter("a")
	all, filters := r.take()
	if !all || len(filters) != 1 {
		t.Fatalf("%v %v", all, filters)
	}
	if all, filters := r.take(); all || len(filters) != 0 {
		t.Errorf("written twice: %v %v", all, filters)
	}
	r.changeFilter("b")
	r.restore(all, filters)
	if all, filters := r.take(); !all || len(filters) != 2 {
		t.Errorf("lost: %v %v", all, filters)
	}
	c := newCommit()
	if !r.joins(c) || r.joins(c) || !r.isPending() {
		t.Error("one commit writes it once, and is pending")
	}
	if c.state.Store(commitWritten); r.isPending() {
		t.Error("pending after the write")
	}
}
