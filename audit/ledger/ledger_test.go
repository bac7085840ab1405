package ledger_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/internal/peers"
)

// memoryLog is a log in memory: every tile, and the tree's edge.
type memoryLog struct {
	tree  ledger.Tree
	full  map[string]ledger.Tile
	leafs []ledger.Hash
}

func grow(n int) *memoryLog {
	f := &memoryLog{full: map[string]ledger.Tile{}}
	for i := range n {
		f.leafs = append(f.leafs, ledger.LeafHash(ledger.Commitment(ledger.Salt{byte(i)}, fmt.Append(nil, i))))
	}
	var tiles []ledger.Tile
	// In uneven pieces, as commits come.
	for i, step := 0, 1; i < n; step = step%700 + 13 {
		j := min(n, i+step)
		f.tree, tiles = f.tree.Append(f.leafs[i:j]...)
		for _, t := range tiles {
			f.full[ledger.Path(t.Level, t.N, ledger.TileWidth)] = t
		}
		i = j
	}
	return f
}

func (f *memoryLog) read(level int, n int64, width int) ([]byte, error) {
	hashes := f.full[ledger.Path(level, n, ledger.TileWidth)].Hashes
	if hashes == nil {
		if at, edge := f.tree.Edge(level); at == n {
			hashes = edge
		}
	}
	if len(hashes) < width {
		return nil, fmt.Errorf("no tile %d/%d of width %d", level, n, width)
	}
	var b []byte
	for _, h := range hashes[:width] {
		b = append(b, h[:]...)
	}
	return b, nil
}

// oracle is the tlog package's own tree over the same leaves.
func oracle(t testing.TB, leafs []ledger.Hash) tlog.HashReaderFunc {
	var stored []tlog.Hash
	read := tlog.HashReaderFunc(func(indexes []int64) (out []tlog.Hash, err error) {
		for _, i := range indexes {
			out = append(out, stored[i])
		}
		return out, nil
	})
	for i, l := range leafs {
		hs, err := tlog.StoredHashesForRecordHash(int64(i), l, read)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, hs...)
	}
	return read
}

func TestTreeMatchesRFC6962(t *testing.T) {
	const most = 66_000 // three levels
	all := grow(most).leafs
	read := oracle(t, all)
	for _, n := range []int{1, 2, 3, 255, 256, 257, 511, 512, 1000, 65_535, 65_536, 65_537, most} {
		want, err := tlog.TreeHash(int64(n), read)
		if err != nil {
			t.Fatal(err)
		}
		f := grow(n)
		if got := f.tree.Root(); got != want {
			t.Errorf("of %d leaves the root is %v, want %v", n, got, want)
		}
		var edges [][]ledger.Hash
		for level, w := range ledger.PartialWidths(int64(n)) {
			_, edge := f.tree.Edge(level)
			if len(edge) != w {
				t.Errorf("of %d leaves the edge of level %d is %d wide, want %d", n, level, len(edge), w)
			}
			edges = append(edges, edge)
		}
		again := ledger.TreeFromEdges(edges)
		if again.Size() != int64(n) || again.Root() != want {
			t.Errorf("resumed: %d leaves, %v", again.Size(), again.Root())
		}
	}
	if empty := (ledger.Tree{}).Root(); empty != emptyRoot() {
		t.Errorf("the empty tree's root is %v", empty)
	}
}

func emptyRoot() tlog.Hash { h, _ := tlog.TreeHash(0, nil); return h }

func TestAppendDoesNotChangeItsReceiver(t *testing.T) {
	f := grow(300)
	before := f.tree.Root()
	for range 3 {
		_, _ = f.tree.Append(make([]ledger.Hash, 500)...) // a step that is rolled back
	}
	if f.tree.Root() != before {
		t.Error("the tree is another one")
	}
	next, _ := f.tree.Append(grow(301).leafs[300])
	if next.Root() != grow(301).tree.Root() {
		t.Error("what follows is another tree")
	}
}

func TestProofsVerifyForTheirEntryOnly(t *testing.T) {
	for _, n := range []int{1, 7, 256, 300, 1000} {
		f := grow(n)
		c := ledger.Checkpoint{Origin: "log", Size: int64(n), Root: f.tree.Root()}
		for _, i := range []int{0, n / 2, n - 1} {
			p, err := ledger.InclusionProof(c, int64(i), f.read)
			if err != nil {
				t.Fatal(err)
			}
			if err := ledger.VerifyInclusion(c, int64(i), f.leafs[i], p); err != nil {
				t.Error(err)
			}
			if n > 1 && ledger.VerifyInclusion(c, int64(i), f.leafs[(i+1)%n], p) == nil {
				t.Errorf("of %d, the proof of %d holds for another leaf", n, i)
			}
			if ledger.VerifyInclusion(c, int64(i)+1, f.leafs[i], p) == nil {
				t.Errorf("of %d, the proof of %d holds at another place", n, i)
			}
		}
		for _, m := range []int{0, 1, n / 2, n} {
			before := ledger.Checkpoint{Origin: "log", Size: int64(m), Root: grow(m).tree.Root()}
			p, err := ledger.ConsistencyProof(c, int64(m), f.read)
			if err != nil {
				t.Fatal(err)
			}
			if err := ledger.VerifyConsistency(c, before, p); err != nil {
				t.Errorf("%d after %d: %v", n, m, err)
			}
			if m > 0 {
				before.Root[5] ^= 1
				if ledger.VerifyConsistency(c, before, p) == nil {
					t.Errorf("%d after another %d holds", n, m)
				}
			}
		}
		if err := ledger.VerifyConsistency(ledger.Checkpoint{Origin: "log", Size: 0}, c, nil); watchword.CodeOf(err) != watchword.LogInvalid {
			t.Errorf("a log that was cut: %v", err)
		}
		if err := ledger.VerifyConsistency(ledger.Checkpoint{Origin: "another", Size: c.Size, Root: c.Root}, c, nil); watchword.CodeOf(err) != watchword.LogInvalid {
			t.Errorf("another log: %v", err)
		}
	}
}

func TestProofsFromWrongTilesAreRefused(t *testing.T) {
	f := grow(1000)
	c := ledger.Checkpoint{Origin: "log", Size: 1000, Root: f.tree.Root()}
	f.full[ledger.Path(0, 1, ledger.TileWidth)].Hashes[7][3] ^= 1
	if _, err := ledger.InclusionProof(c, 300, f.read); watchword.CodeOf(err) != watchword.LogInvalid {
		t.Errorf("got %v", err)
	}
	if _, err := ledger.InclusionProof(c, 900, f.read); err != nil {
		t.Errorf("a proof that does not touch it: %v", err)
	}
}

func newKey(t testing.TB, name string) (ledger.Signer, ed25519.PrivateKey) {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return ledger.Signer{Key: ledger.LogKey(name, pub), SignFunc: func(m []byte) ([]byte, error) { return ed25519.Sign(priv, m), nil }}, priv
}

func TestKeysAndCheckpointsAreC2SPs(t *testing.T) {
	s, priv := newKey(t, "example.com/log")
	vkey, err := note.NewEd25519VerifierKey("example.com/log", priv.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	if s.Key.String() != vkey {
		t.Errorf("the key is %s, want %s", s.Key, vkey)
	}
	f := grow(1000)
	c := ledger.Checkpoint{Origin: "example.com/log", Size: 1000, Root: f.tree.Root()}
	signed, err := c.Sign(s)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	others := peers.Find(t)
	origin, size, root, err := others.Checkpoint(t, c2(t, signed, theirs))
	if err != nil || size != 1000 || !bytes.Equal(root, c.Root[:]) || origin != c.Origin {
		t.Errorf("another reads %s, %d, %x, %v", origin, size, root, err)
	}
	// A witness of another's making.
	witness := others.Witness(t, "witness.example", priv2(t))
	n, err := note.Open(signed, note.VerifierList(theirs))
	if err != nil {
		t.Fatal(err)
	}
	both, err := note.Sign(n, witness)
	if err != nil {
		t.Fatal(err)
	}
	answer := []byte(lines(both)[len(lines(both))-1])
	wk, err := ledger.ParseKey(witness.Verifier())
	if err != nil || !wk.Witness() || wk.String() != witness.Verifier() {
		t.Fatalf("%v %v", wk, err)
	}
	cosigned, err := ledger.Cosign(signed, answer, wk)
	if err != nil || !bytes.Equal(cosigned, both) {
		t.Fatalf("%v\n%s\n%s", err, cosigned, both)
	}
	if again, err := ledger.Cosign(cosigned, answer, wk); err != nil || !bytes.Equal(again, cosigned) {
		t.Errorf("a second time: %s %v", again, err)
	}
	o, err := ledger.VerifyCheckpoint(cosigned, s.Key, wk)
	if err != nil || o.Checkpoint != c || len(o.Cosignatures) != 1 || o.Cosignatures[0].At.IsZero() {
		t.Errorf("%+v %v", o, err)
	}
	if _, err := ledger.VerifyCheckpoint(cosigned, wk); watchword.CodeOf(err) != watchword.LogInvalid {
		t.Errorf("a witness alone: %v", err)
	}
	other, _ := newKey(t, "witness.example")
	if o, err := ledger.VerifyCheckpoint(cosigned, s.Key, other.Key); err != nil || len(o.Cosignatures) != 0 {
		t.Errorf("another witness of that name: %+v %v", o, err)
	}
	if _, err := ledger.Cosign(signed, answer, other.Key); watchword.CodeOf(err) != watchword.LogInvalid {
		t.Errorf("an answer by another: %v", err)
	}
	for i := range cosigned { // a changed byte never opens as the same
		invalid := bytes.Clone(cosigned)
		invalid[i] ^= 1
		if o, err := ledger.VerifyCheckpoint(invalid, s.Key, wk); err == nil && len(o.Cosignatures) == 1 && o.Checkpoint == c {
			t.Fatalf("byte %d of %q may be changed", i, cosigned)
		}
	}
}

func priv2(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, p, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func c2(t *testing.T, signed []byte, v note.Verifier) string {
	t.Helper()
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		t.Fatal(err)
	}
	return n.Text
}

func lines(b []byte) []string { return slices.Collect(strings.Lines(string(b))) }

func TestBadKeysAreRefused(t *testing.T) {
	s, _ := newKey(t, "example.com/log")
	good := s.Key.String()
	for _, invalid := range []string{
		"", "x", good[1:], good + "A", strings.Replace(good, "log+", "log +", 1), strings.ToUpper(good), strings.Replace(good, "+", "", 1), "PRIVATE+KEY+" + good,
	} {
		if _, err := ledger.ParseKey(invalid); watchword.CodeOf(err) != watchword.BadRequest {
			t.Errorf("%q: %v", invalid, err)
		}
	}
}

func TestPathsAreC2SPs(t *testing.T) {
	for _, c := range []struct {
		level int
		n     int64
		width int
		want  string
	}{
		{0, 0, 256, "tile/0/000"},
		{3, 1234067, 256, "tile/3/x001/x234/067"},
		{ledger.EntriesLevel, 1000, 7, "tile/entries/x001/000.p/7"},
		{63, 999, 255, "tile/63/999.p/255"},
	} {
		got := ledger.Path(c.level, c.n, c.width)
		theirs := c.want
		if others := peers.Maybe(t); others != nil {
			theirs = others.TilePath(t, c.level, c.n, c.width)
		}
		if got != c.want || got != theirs {
			t.Errorf("got %s, want %s, and another has %s", got, c.want, theirs)
		}
		level, n, width, err := ledger.ParsePath(got)
		if err != nil || level != c.level || n != c.n || width != c.width {
			t.Errorf("%s is read as %d %d %d %v", got, level, n, width, err)
		}
	}
	for _, invalid := range []string{
		"", "tile", "tile/", "tile/0", "tile/0/", "tile/0/1", "tile/0/0001", "tile/00/000", "tile/-1/000", "tile/64/000", "tile/+1/000", "tile/0/000.p/", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/07",
		"tile/0/x000/001", "tile/0/x001/x001", "tile/0/001/001", "tile/0/-01", "tile/0/000/", "tile/entries", "tile/data/000", "tile/8/0/000", "/tile/0/000", "tile/0/000.p/1/", "tile/0/x999/x999/x999/x999/x999/x999/x999/999",
	} {
		if _, _, _, err := ledger.ParsePath(invalid); watchword.CodeOf(err) != watchword.NotFound {
			t.Errorf("%q: %v", invalid, err)
		}
	}
}

func TestProofFormatIsText(t *testing.T) {
	s, _ := newKey(t, "example.com/log")
	salt, body := ledger.NewSalt(), []byte(`{"kind":"x"}`)
	f := grow(500)
	leaf := ledger.LeafHash(ledger.Commitment(salt, body))
	tree, _ := f.tree.Append(leaf)
	f.tree = tree
	c := ledger.Checkpoint{Origin: "example.com/log", Size: 501, Root: tree.Root()}
	signed, err := c.Sign(s)
	if err != nil {
		t.Fatal(err)
	}
	hs, err := ledger.InclusionProof(c, 500, f.read)
	if err != nil {
		t.Fatal(err)
	}
	text := ledger.Proof{Index: 500, Salt: salt, Body: body, Hashes: hs, Checkpoint: signed}.Marshal()
	p, err := ledger.ParseProof(text)
	if err != nil || string(p.Marshal()) != string(text) {
		t.Fatalf("%v\n%s", err, text)
	}
	if o, err := p.Verify(s.Key); err != nil || o.Size != 501 {
		t.Errorf("%v %v", o, err)
	}
	for i := range text {
		invalid := bytes.Clone(text)
		invalid[i] ^= 1
		q, err := ledger.ParseProof(invalid)
		if err != nil {
			continue
		}
		if _, err := q.Verify(s.Key); err == nil {
			t.Fatalf("byte %d of the proof may be changed:\n%s", i, invalid)
		}
	}
}

func FuzzReaders(f *testing.F) {
	f.Add([]byte("c2sp.org/tlog-proof@v1\nextra AAAAAAAAAAAAAAAAAAAAAHt9\nindex 0\n\nlog\n1\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n— log AAAAAA==\n"))
	f.Add([]byte("log\n1\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n— log AAAAAA==\n"))
	f.Add([]byte("tile/entries/x001/000.p/7"))
	f.Add([]byte("example.com/log+deadbeef+AQAA"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := ledger.ParseProof(b); err == nil {
			if q, err := ledger.ParseProof(p.Marshal()); err != nil || string(q.Marshal()) != string(p.Marshal()) {
				t.Errorf("%q is written as %q", b, p.Marshal())
			}
		}
		if c, err := ledger.ReadCheckpoint(b); err == nil && c.Size < 0 {
			t.Errorf("%q has %d entries", b, c.Size)
		}
		if level, n, w, err := ledger.ParsePath(string(b)); err == nil && ledger.Path(level, n, w) != string(b) {
			t.Errorf("%q is a path", b)
		}
		if k, err := ledger.ParseKey(string(b)); err == nil && k.String() != string(b) {
			t.Errorf("%q is written as %q", b, k)
		}
		if hs, err := ledger.ParseBundle(b, 2); err == nil {
			if again := ledger.AppendBundle(ledger.AppendBundle(nil, hs[0]), hs[1]); !bytes.Equal(again, b) {
				t.Errorf("%x is written as %x", b, again)
			}
		}
	})
}

// What a device holds a command against.
func TestLoggedJWSExtendsTheSeenCheckpoint(t *testing.T) {
	s, _ := newKey(t, "example.com/log")
	others := peers.Find(t)
	var witnesses []*peers.Witness
	keys := []ledger.Key{s.Key}
	for _, name := range []string{"w1.example", "w2.example", "w3.example"} {
		w := others.Witness(t, name, priv2(t))
		k, err := ledger.ParseKey(w.Verifier())
		if err != nil {
			t.Fatal(err)
		}
		witnesses, keys = append(witnesses, w), append(keys, k)
	}
	stranger := others.Witness(t, "stranger.example", priv2(t))
	salt, body := ledger.NewSalt(), []byte(`{}`)
	f := grow(300)
	at := ledger.Checkpoint{Origin: "example.com/log", Size: 300, Root: f.tree.Root()}
	f.tree, _ = f.tree.Append(ledger.LeafHash(ledger.Commitment(salt, body)))
	c := ledger.Checkpoint{Origin: "example.com/log", Size: 301, Root: f.tree.Root()}
	signed, err := c.Sign(s)
	if err != nil {
		t.Fatal(err)
	}
	hs, err := ledger.InclusionProof(c, 300, f.read)
	if err != nil {
		t.Fatal(err)
	}
	extends, err := ledger.ConsistencyProof(c, 300, f.read)
	if err != nil {
		t.Fatal(err)
	}
	by := func(ws ...*peers.Witness) []byte {
		out := signed
		for _, w := range ws {
			n, err := note.Open(signed, note.VerifierList(s.Key))
			if err != nil {
				t.Fatal(err)
			}
			one, err := note.Sign(n, w)
			if err != nil {
				t.Fatal(err)
			}
			out = append(bytes.Clone(out), lines(one)[len(lines(one))-1]...)
		}
		return out
	}
	fork := at
	fork.Root[0] ^= 1
	later := c
	later.Size++
	for _, tc := range []struct {
		name    string
		note    []byte
		from    int64
		extends []ledger.Hash
		last    ledger.Checkpoint
		good    bool
	}{
		{"two of three witnesses, and the log goes on", by(witnesses[0], witnesses[2]), 300, extends, at, true},
		{"all witnesses, and nothing was seen before", by(witnesses...), 0, nil, ledger.Checkpoint{}, true},
		{"one witness is too few", by(witnesses[1]), 300, extends, at, false},
		{"one witness twice is one", by(witnesses[1], witnesses[1]), 300, extends, at, false},
		{"an unknown key is no witness", by(witnesses[1], stranger), 300, extends, at, false},
		{"no witness", signed, 300, extends, at, false},
		{"another log was seen before", by(witnesses...), 300, extends, fork, false},
		{"a longer log was seen before", by(witnesses...), 302, nil, later, false},
		{"a proof from elsewhere", by(witnesses...), 299, extends, at, false},
		{"no proof that it goes on", by(witnesses...), 300, nil, at, false},
		{"what was seen is passed over", by(witnesses...), 0, nil, at, false},
	} {
		l := ledger.NewLoggedJWS("jws", ledger.Proof{Index: 300, Salt: salt, Body: body, Hashes: hs, Checkpoint: tc.note}, tc.from, tc.extends)
		b, err := l.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if l, err = ledger.ParseLoggedJWS(b); err != nil {
			t.Fatal(err)
		}
		p, o, err := l.Verify(tc.last, 2, keys...)
		if (err == nil) != tc.good || tc.good && (o.Checkpoint != c || string(p.Body) != string(body)) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if _, err := ledger.ParseLoggedJWS([]byte(`{"jws":"a","proof":"b","from":0,"more":1}`)); watchword.CodeOf(err) != watchword.CommandUnlogged {
		t.Errorf("an unknown member: %v", err)
	}
}

// The tenants of a server have one log, whose name is that of the default tenant.
func TestTheLogHasOneNameForAllTenants(t *testing.T) {
	for issuer, want := range map[string]string{
		"https://hub.example":              "hub.example/log",
		"https://hub.example:8443/t/other": "hub.example:8443/log",
		"https://hub.example/t/default":    "hub.example/t/default/log",
		"https://hub.example/t/other/more": "hub.example/t/other/more/log",
		"https://hub.example/elsewhere":    "hub.example/elsewhere/log",
	} {
		if got := watchword.LogOrigin(issuer); got != want {
			t.Errorf("%s: %s, want %s", issuer, got, want)
		}
	}
}
