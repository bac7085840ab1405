package audit_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/internal/peers"
	"github.com/watchword-iot/watchword/server/audit"
)

// memoryLog is a log in memory, of less than one tile.
type memoryLog struct {
	mu   sync.Mutex
	tree ledger.Tree
	last audit.SignedCheckpoint
}

func (s *memoryLog) grow() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tree, _ = s.tree.Append(ledger.LeafHash(ledger.Commitment(ledger.NewSalt(), []byte("{}"))))
}

func (s *memoryLog) Sequence(context.Context) error { return nil }

func (s *memoryLog) Tree(context.Context) (ledger.Tree, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tree, nil
}

func (s *memoryLog) Tile(_ context.Context, level int, n int64, width int) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, hs := s.tree.Edge(level)
	if n > 0 || width > len(hs) {
		return nil, watchword.Refuse(watchword.LogInvalid, "no such tile")
	}
	return ledger.AppendTile(nil, hs[:width]...), nil
}

func (s *memoryLog) Commitments(context.Context, int64, int) ([]ledger.Hash, error) { return nil, nil }

func (s *memoryLog) Records(context.Context, int64, int) ([]audit.Record, error) { return nil, nil }

func (s *memoryLog) AddCheckpoint(_ context.Context, c audit.SignedCheckpoint) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = c
	return nil
}

func (s *memoryLog) LastCheckpoint(context.Context) (audit.SignedCheckpoint, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, nil
}

type oneKey struct {
	ledger.Signer
	priv ed25519.PrivateKey
}

func newLogKey(t *testing.T) oneKey {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return oneKey{ledger.Signer{Key: ledger.LogKey("example.com/log", pub), SignFunc: func(m []byte) ([]byte, error) { return ed25519.Sign(priv, m), nil }}, priv}
}

func (k oneKey) LogSigner() ledger.Signer { return k.Signer }

func (k oneKey) LogKeys() []ledger.Key { return []ledger.Key{k.Key} }

// newHTTPWitness is a witness over HTTP that answers as its script says, and then as it should.
func newHTTPWitness(t *testing.T, log oneKey, script ...http.HandlerFunc) *audit.Witness {
	t.Helper()
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer := peers.Find(t).Witness(t, "witness.example", priv)
	vs, err := note.NewVerifier(log.Key.String())
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n < len(script) {
			n++
			script[n-1](w, r)
			return
		}
		body, err := io.ReadAll(r.Body)
		_, signed, ok := strings.Cut(string(body), "\n\n")
		opened, oerr := note.Open([]byte(signed), note.VerifierList(vs))
		if err != nil || !ok || oerr != nil || r.URL.Path != "/w/add-checkpoint" || r.Method != http.MethodPost {
			http.Error(w, "bad", http.StatusBadRequest)
			return
		}
		both, err := note.Sign(opened, signer)
		if err != nil {
			http.Error(w, "bad", http.StatusInternalServerError)
			return
		}
		lines := strings.SplitAfter(strings.TrimSuffix(string(both), "\n"), "\n")
		_, _ = io.WriteString(w, lines[len(lines)-1]+"\n") // to the keeper, which is there
	}))
	t.Cleanup(s.Close)
	w, err := audit.ParseWitness(signer.Verifier() + "  " + s.URL + "/w/")
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// A witness that does not answer, or answers with invalid or too much data, is tried again, also if the log has no new
// entry: a caller may wait for it.
func TestFailingWitnessIsRetried(t *testing.T) {
	say := func(status int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, text) // as above
		}
	}
	for name, script := range map[string][]http.HandlerFunc{
		"is away":              {say(503, ""), say(500, "no")},
		"says nothing":         {say(200, "")},
		"says too much":        {say(200, strings.Repeat("x", 1<<20))},
		"signs something else": {say(200, "— witness.example AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n")},
		"knows a longer log":   {say(409, "1000\n")},
		"knows no number":      {say(409, "many\n")},
		"knows the same size":  {say(409, "0\n")},
		"sends it elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			key := newLogKey(t)
			st := &memoryLog{}
			st.grow()
			var mu sync.Mutex
			clock := time.Now()
			grown := make(chan struct{}, 100)
			k, err := audit.NewCheckpointSigner(t.Context(), st, key, audit.CheckpointOptions{
				Every: 10 * time.Millisecond, Witnesses: []*audit.Witness{newHTTPWitness(t, key, script...)}, Quorum: 1, OnCheckpoint: func([]byte) { grown <- struct{}{} }, Log: slog.New(slog.DiscardHandler),
				Now: func() time.Time {
					mu.Lock()
					defer mu.Unlock()
					clock = clock.Add(10 * time.Minute) // its patience is soon over
					return clock
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- k.Run(ctx) }()
			for {
				<-grown
				if _, note, ok := k.LatestCosigned(1); ok {
					if !strings.Contains(string(note), "— witness.example ") {
						t.Errorf("%s", note)
					}
					break
				}
			}
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if last, err := st.LastCheckpoint(t.Context()); err != nil || !strings.Contains(string(last.Note), "— witness.example ") {
				t.Errorf("kept is %s", last.Note)
			}
		})
	}
}

func TestParseWitness(t *testing.T) {
	key := newLogKey(t)
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := peers.Find(t).Witness(t, "w.example", priv).Verifier()
	for _, line := range []string{
		"", good, key.Key.String() + " https://w.example", good + " http://w.example", good + " ftp://w.example", good + " https://u:p@w.example", good + " https://w.example?x=1", "x https://w.example",
	} {
		if _, err := audit.ParseWitness(line); watchword.CodeOf(err) != watchword.ConfigInvalid {
			t.Errorf("%q: %v", line, err)
		}
	}
	for _, line := range []string{good + " https://w.example", good + "   http://localhost:7380/x/"} {
		if _, err := audit.ParseWitness(line); err != nil {
			t.Error(fmt.Errorf("%q: %w", line, err))
		}
	}
}
