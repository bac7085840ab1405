package peers

import (
	"crypto/ed25519"
	"strings"
	"testing"
)

// Checkpoint returns what torchwood reads in the text of a checkpoint (C2SP tlog-checkpoint).
func (p *Peers) Checkpoint(t testing.TB, text string) (origin string, size int64, root []byte, err error) {
	t.Helper()
	a, err := p.ask(t, request{Op: "checkpoint", Raw: text})
	return a.Text, a.N, a.Data, err
}

// TilePath returns the path of a tile by torchwood (C2SP tlog-tiles). width is at most 256.
func (p *Peers) TilePath(t testing.TB, level int, n int64, width int) string {
	t.Helper()
	a, err := p.ask(t, request{Op: "tile", Level: level, N: n, Width: width})
	if err != nil {
		t.Fatal(err)
	}
	return a.Text
}

// Witness is a witness by torchwood (C2SP tlog-cosignature). It is a note.Signer (golang.org/x/mod/sumdb/note).
type Witness struct {
	p        *Peers
	t        testing.TB
	seed     []byte
	verifier string
	hash     uint32
}

// Witness returns the witness of a name and key. It serves the test of t.
func (p *Peers) Witness(t testing.TB, name string, key ed25519.PrivateKey) *Witness {
	t.Helper()
	a, err := p.ask(t, request{Op: "cosigner", Name: name, Seed: key.Seed()})
	if err != nil {
		t.Fatal(err)
	}
	return &Witness{p, t, key.Seed(), a.Text, a.Hash}
}

// Verifier returns the verifier key of the witness as text.
func (w *Witness) Verifier() string { return w.verifier }

// Name returns the name of the witness.
func (w *Witness) Name() string {
	name, _, _ := strings.Cut(w.verifier, "+")
	return name
}

// KeyHash returns the hash in the verifier key.
func (w *Witness) KeyHash() uint32 { return w.hash }

// Sign returns the cosignature of the text of a note, with the time of now.
func (w *Witness) Sign(msg []byte) ([]byte, error) {
	a, err := w.p.ask(w.t, request{Op: "cosign", Name: w.Name(), Seed: w.seed, Data: msg})
	return a.Data, err
}

// Agent serves an SSH agent with a key on a Unix socket, until the test binary ends, and returns the key's fingerprint.
func (p *Peers) Agent(t testing.TB, socket string, key ed25519.PrivateKey) string {
	t.Helper()
	a, err := p.ask(t, request{Op: "ssh-agent", Name: socket, Seed: key.Seed()})
	if err != nil {
		t.Fatal(err)
	}
	return a.Text
}
