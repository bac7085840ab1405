package audit_test

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/server/audit"
)

// However entries come in, the edge, the tiles and the terms are the same.
func TestTreeEdgeDoesNotDependOnBatching(t *testing.T) {
	const n = 2*ledger.TileWidth + 5
	var leaves []audit.Leaf
	for i := range n {
		e := audit.Entry{At: time.Unix(int64(i+1), 0), Kind: audit.ConfigSet, Object: fmt.Sprint("lamp-", i)}
		_, hash := audit.NewRecord(int64(i+1), []byte(e.Object))
		leaves = append(leaves, audit.Leaf{Hash: hash, Entry: e})
	}
	grow := func(steps ...int) (audit.Edge, audit.Growth) {
		var e audit.Edge
		var all audit.Growth
		rest := leaves
		for _, n := range steps {
			before := e
			after, g := e.Append(rest[:n])
			if !reflect.DeepEqual(e, before) {
				t.Error("the edge that it got has changed")
			}
			e, rest = after, rest[n:]
			all.Tiles, all.Terms = append(all.Tiles, g.Tiles...), append(all.Terms, g.Terms...)
		}
		return e, all
	}
	edge, growth := grow(n)
	if edge.Tree.Size() != n || len(growth.Tiles) != 2 || len(growth.Terms) != 2 || growth.Terms[1].N != 1 {
		t.Fatalf("size %d, %d tiles, %d terms", edge.Tree.Size(), len(growth.Tiles), len(growth.Terms))
	}
	for i, g := range append(growth.Terms, audit.TileTerms{N: 2, TileFilter: edge.Terms}) {
		for j, l := range leaves {
			q := audit.Query{Object: l.Entry.Object}
			if j/ledger.TileWidth == i && !g.MayMatch(q) {
				t.Errorf("the terms of tile %d do not know entry %d", i, j+1)
			}
		}
		if first, last := g.First, min((i+1)*ledger.TileWidth, n)-1; first != leaves[i*ledger.TileWidth].Entry.At.UnixMilli() || g.Last != leaves[last].Entry.At.UnixMilli() {
			t.Errorf("tile %d: from %d to %d", i, first, g.Last)
		}
	}
	for _, steps := range [][]int{{1, n - 1}, {ledger.TileWidth, ledger.TileWidth, 5}, {ledger.TileWidth - 1, 1, n - ledger.TileWidth}, {0, n, 0}} {
		e, g := grow(steps...)
		if !reflect.DeepEqual(e, edge) || !reflect.DeepEqual(g, growth) {
			t.Errorf("in steps of %v it is another", steps)
		}
	}
}

func TestTilePruning(t *testing.T) {
	var rs []audit.Record
	for i := range ledger.TileWidth {
		e := audit.Entry{At: time.Unix(int64(i+1), 0), Kind: audit.TokenIssue, Object: fmt.Sprint("o", i), Outcome: audit.Done}
		if i%100 == 0 {
			e.Kind = audit.DeviceEnroll
		}
		body, err := e.Body()
		if err != nil {
			t.Fatal(err)
		}
		r, _ := audit.NewRecord(int64(i+1), body)
		rs = append(rs, r)
	}
	var p, want audit.Pruning
	goes, stays, err := p.Tile(rs)
	want.Through = ledger.TileWidth
	for _, seq := range []int64{1, 101, 201} {
		want.AddRetained(seq)
	}
	if err != nil || p != want || len(goes) != ledger.TileWidth-3 || goes[0] != 2 {
		t.Errorf("%d go, %+v, %v", len(goes), p, err)
	}
	if stays.First != 1000 || stays.Last != 201_000 || !stays.MayMatch(audit.Query{Object: "o100"}) || stays.MayMatch(audit.Query{Object: "o99"}) {
		t.Errorf("of what stays searches know %+v", stays)
	}
	if err := p.Reached(want); err != nil {
		t.Error(err)
	}
	for _, other := range []audit.Pruning{{Through: want.Through, Retained: 2, Chain: want.Chain}, {Through: 512, Retained: 3, Chain: want.Chain}, {Through: want.Through, Retained: 3}} {
		if err := p.Reached(other); watchword.CodeOf(err) != watchword.Conflict {
			t.Errorf("%+v: %v", other, err)
		}
	}
	rs[3].Body = nil
	if _, _, err := new(audit.Pruning).Tile(rs); err == nil {
		t.Error("a tile that was pruned is pruned again")
	}
}
