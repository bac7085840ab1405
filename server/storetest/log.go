package storetest

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/server/audit"
)

// AuditLog is what a store has of the log: entries, and the Merkle tree over them.
//
// A store with one writer numbers entries in the transaction of their act. One with
// many may queue them there, and number them in Number alone, which one node at a
// time calls: then every method above returns once its entry is durable, and the
// log has it after the next Number.
type AuditLog interface {
	// AddEntry writes entries that no other step carries, all or none: refusals, a start.
	AddEntry(ctx context.Context, es ...audit.Entry) error
	// Sequence gives every entry that is committed its number: from 1, without gaps.
	Sequence(ctx context.Context) error
	// Tree is the tree over all entries that have a number.
	Tree(ctx context.Context) (ledger.Tree, error)
	// Tile returns the first width hashes of a tile of that tree; log_invalid where there are not so many.
	Tile(ctx context.Context, level int, n int64, width int) ([]byte, error)
	// Commitments returns the permanent hashes of up to limit entries after a number; log_invalid over a gap.
	Commitments(ctx context.Context, after int64, limit int) ([]ledger.Hash, error)
	// Records returns up to limit entries after a number, oldest first.
	Records(ctx context.Context, after int64, limit int) ([]audit.Record, error)
	// Find returns those that q and p choose, in p's order.
	Find(ctx context.Context, q audit.Query, p audit.Page) ([]audit.Record, error)
	// PlanPrune returns how far the log is pruned, and how far it would be: full tiles whose entries are all older than
	// before, at most limit of them.
	PlanPrune(ctx context.Context, before time.Time, limit int) (is, shall audit.Pruning, err error)
	// PruneLog takes the bodies that shall of PlanPrune takes (all but those of permanent kinds, [audit.Permanent]); hashes stay. It returns
	// how many went. Another pruning than planned: conflict.
	PruneLog(ctx context.Context, p audit.Pruning) (int64, error)
	// AddCheckpoint keeps a checkpoint, in the place of one of the same size.
	AddCheckpoint(ctx context.Context, c audit.SignedCheckpoint) error
	// LastCheckpoint returns the largest checkpoint; a zero one if there is none.
	LastCheckpoint(ctx context.Context) (audit.SignedCheckpoint, error)
}

// logTree holds the tree that a store keeps against one made of its entries.
func logTree(t *T) {
	const n = 256*2 + 100
	var es []audit.Entry
	for i := range n {
		e := t.entry(audit.RequestRefuse, fmt.Sprint("object-", i))
		e.Outcome, e.Actor = audit.Refused, watchword.SubjectID(fmt.Sprint("lamp-", i%7))
		es = append(es, e)
	}
	t.must(t.AddEntry(t.ctx, es[:250]...))
	t.must(t.AddEntry(t.ctx, es[250:600]...)) // over the end of two tiles
	for _, e := range es[600:] {
		t.must(t.AddEntry(t.ctx, e))
	}
	t.must(t.Sequence(t.ctx))
	tree, err := t.Tree(t.ctx)
	t.must(err)
	equal(t, "size", tree.Size(), int64(n))
	rs, err := t.Records(t.ctx, 0, 10_000)
	t.must(err)
	equal(t, "records", len(rs), n)
	var own ledger.Tree
	for i, r := range rs {
		equal(t, "number", r.Seq, int64(i+1))
		equal(t, "fits", r.MatchesHash(), true)
		e, err := r.Entry()
		t.must(err)
		equal(t, "object", e.Object, fmt.Sprint("object-", i))
		own, _ = own.Append(ledger.LeafHash(r.Hash))
	}
	equal(t, "root", tree.Root(), own.Root())
	for _, size := range []int64{1, 255, 256, 257, 512, n} {
		then, err := ledger.TreeAt(size, func(level int, n int64, width int) ([]byte, error) { return t.Tile(t.ctx, level, n, width) })
		t.must(err)
		var want ledger.Tree
		for _, r := range rs[:size] {
			want, _ = want.Append(ledger.LeafHash(r.Hash))
		}
		equal(t, fmt.Sprint("root of ", size), then.Root(), want.Root())
	}
	_, err = t.Tile(t.ctx, 0, 2, 101)
	t.wantCode(watchword.LogInvalid, err)
	cs, err := t.Commitments(t.ctx, 510, 5)
	t.must(err)
	equal(t, "commits", len(cs), 5)
	equal(t, "commit", cs[0], rs[510].Hash)
}

// logSearch finds what is to be found, forwards and backwards, page by page.
func logSearch(t *T) {
	const n = 256*3 + 40
	var es []audit.Entry
	for i := range n {
		e := t.entry(audit.DeviceLabel, fmt.Sprint("thing-", i%300))
		e.At = t.now.Add(time.Duration(i) * time.Second)
		e.Actor, e.Versions = "alice", watchword.AuthorityVersions{Local: true}
		if i%256 == 3 {
			e.Kind, e.Actor, e.Data = audit.SessionClose, "lamp-1", map[string]string{"cause": "token_expired"}
		}
		if i == 700 {
			e.Data = map[string]string{"device": "lamp-1"}
		}
		es = append(es, e)
	}
	t.must(t.AddEntry(t.ctx, es...))
	t.must(t.Sequence(t.ctx))
	for _, c := range []struct {
		q    audit.Query
		want []int64
	}{
		{audit.Query{Subject: "lamp-1"}, []int64{4, 260, 516, 701, 772}},
		{audit.Query{Kind: audit.SessionClose}, []int64{4, 260, 516, 772}},
		{audit.Query{Kind: "session.*", From: t.now.Add(200 * time.Second)}, []int64{260, 516, 772}},
		{audit.Query{Cause: "token_expired", To: t.now.Add(515 * time.Second)}, []int64{4, 260}},
		{audit.Query{Object: "thing-5"}, []int64{6, 306, 606}},
		{audit.Query{Object: "thing-5", Kind: audit.SessionClose}, nil},
		{audit.Query{Subject: "nobody"}, nil},
	} {
		for _, limit := range []int{1, 2, 100} {
			for _, newest := range []bool{false, true} {
				want := append([]int64(nil), c.want...)
				if newest {
					for i, j := 0, len(want)-1; i < j; i, j = i+1, j-1 {
						want[i], want[j] = want[j], want[i]
					}
				}
				var got []int64
				for p := (audit.Page{Limit: limit, Newest: newest}); ; {
					rs, err := t.Find(t.ctx, c.q, p)
					t.must(err)
					for _, r := range rs {
						got = append(got, r.Seq)
					}
					if len(rs) < limit {
						break
					}
					if newest {
						p.Before = rs[len(rs)-1].Seq
					} else {
						p.After = rs[len(rs)-1].Seq
					}
				}
				equal(t, fmt.Sprintf("%+v, %d at a time, newest %v", c.q, limit, newest), fmt.Sprint(got), fmt.Sprint(want))
			}
		}
	}
	rs, err := t.Find(t.ctx, audit.Query{}, audit.Page{After: 10, Before: 300, Limit: 1000})
	t.must(err)
	equal(t, "a range", fmt.Sprint(len(rs), rs[0].Seq, rs[len(rs)-1].Seq), "289 11 299")
}

func checkpoints(t *T) {
	c, err := t.LastCheckpoint(t.ctx)
	t.must(err)
	equal(t, "none", c.Note == nil, true)
	for _, size := range []int64{3, 900, 12} {
		t.must(t.AddCheckpoint(t.ctx, audit.SignedCheckpoint{Size: size, Note: fmt.Append(nil, size), At: t.now}))
	}
	t.must(t.AddCheckpoint(t.ctx, audit.SignedCheckpoint{Size: 900, Note: []byte("cosigned"), At: t.now}))
	c, err = t.LastCheckpoint(t.ctx)
	t.must(err)
	equal(t, "last", c.Size == 900 && bytes.Equal(c.Note, []byte("cosigned")) && c.At.Equal(t.now), true)
}

// pruning takes bodies and leaves the tree.
func pruning(t *T) {
	const n = 256*4 + 10
	var es []audit.Entry
	for i := range n {
		e := t.entry(audit.TokenIssue, fmt.Sprint("tok-", i))
		if e.At = t.now.Add(time.Duration(i) * time.Second); i%100 == 0 {
			e.Kind = audit.DeviceEnroll
		}
		es = append(es, e)
	}
	t.must(t.AddEntry(t.ctx, es...))
	t.must(t.Sequence(t.ctx))
	before, err := t.Tree(t.ctx)
	t.must(err)
	prune := func(at time.Time, limit int, want int64) {
		t.Helper()
		was, planned, err := t.PlanPrune(t.ctx, at, limit)
		t.must(err)
		gone, err := t.PruneLog(t.ctx, planned)
		t.must(err)
		equal(t, "bodies that went", gone, want)
		if planned != was {
			_, err = t.PruneLog(t.ctx, was)
			t.wantCode(watchword.Conflict, err)
		}
	}
	prune(t.now.Add(255*time.Second), 10, 0) // the first tile's last is not older
	prune(t.now.Add(700*time.Second), 1, 253)
	prune(t.now.Add(700*time.Second), 10, 253)
	prune(t.now.Add(700*time.Second), 10, 0)
	tree, err := t.Tree(t.ctx)
	t.must(err)
	equal(t, "entries", tree.Size(), int64(n))
	then, err := ledger.TreeAt(n, func(level int, n int64, width int) ([]byte, error) { return t.Tile(t.ctx, level, n, width) })
	t.must(err)
	equal(t, "root", then.Root(), before.Root())
	rs, err := t.Records(t.ctx, 0, 10_000)
	t.must(err)
	for i, r := range rs[:n] {
		equal(t, fmt.Sprint("pruned ", i), r.Pruned(), i < 512 && i%100 != 0)
		equal(t, "fits", r.MatchesHash(), true)
	}
	p, _, err := t.PlanPrune(t.ctx, t.now, 1)
	t.must(err)
	equal(t, "how far", fmt.Sprint(p.Through, p.Retained), "512 6")
	found, err := t.Find(t.ctx, audit.Query{Kind: audit.TokenIssue}, audit.Page{Limit: 2000})
	t.must(err)
	equal(t, "found", len(found), 512+10-5)
	found, err = t.Find(t.ctx, audit.Query{Kind: audit.DeviceEnroll}, audit.Page{Limit: 2000})
	t.must(err)
	equal(t, "found", len(found), 11)
}

// fewerCheckpoints keeps one of each past hour.
func fewerCheckpoints(t *T) {
	hour := t.now.Truncate(time.Hour).Add(-time.Hour)
	for i := range 10 {
		t.must(t.AddCheckpoint(t.ctx, audit.SignedCheckpoint{Size: int64(i + 1), Note: []byte("n"), At: hour.Add(time.Duration(i) * time.Minute)}))
	}
	gone, err := t.DeleteExpired(t.ctx, hour.Add(time.Hour), 100) // none is an hour old
	t.must(err)
	equal(t, "gone", gone, 0)
	gone, err = t.DeleteExpired(t.ctx, hour.Add(2*time.Hour), 100)
	t.must(err)
	equal(t, "gone", gone, 9)
	c, err := t.LastCheckpoint(t.ctx)
	t.must(err)
	equal(t, "kept", c.Size, int64(10))
	gone, err = t.DeleteExpired(t.ctx, hour.Add(2*time.Hour), 100)
	t.must(err)
	equal(t, "gone", gone, 0)
}

func entries(t *T) {
	const n = 40
	for _, err := range race(n, func(i int) error {
		return t.AddEntry(t.ctx, t.entry(audit.RequestRefuse, fmt.Sprint(i)))
	}) {
		t.must(err)
	}
	var seq int64
	for {
		es, err := t.Entries(seq, 7)
		t.must(err)
		if len(es) == 0 {
			break
		}
		for _, e := range es {
			seq++
			equal(t, "number", e.Seq, seq)
			equal(t, "time", e.At.Equal(t.now), true)
			equal(t, "data", e.Data["why"], "test")
		}
	}
	equal(t, "entries", seq, n)
}
