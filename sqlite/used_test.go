package sqlite

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/enroll"
	"github.com/watchword-iot/watchword/token"
)

const here = watchword.DefaultTenant

func opened(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func wants(t *testing.T, what string, err error, code watchword.Code) {
	t.Helper()
	if got := watchword.CodeOf(err); got != code {
		t.Errorf("%s: got %q (%v), want %q", what, got, err, code)
	}
}

// What is in memory alone is read from the tables at start, for tokens and for
// other papers, and forgotten when it is over.
func TestWhatWasUsedIsKnownAfterARestart(t *testing.T) {
	ctx, now := t.Context(), time.Now().Truncate(time.Millisecond)
	path := filepath.Join(t.TempDir(), "db")
	s := opened(t, path)
	e := audit.Actor{Tenant: here}.Did(audit.DeviceEnroll, "", now, nil)
	key := func(id watchword.KeyID, p watchword.Purpose) watchword.Key {
		return watchword.Key{ID: id, Purpose: p, JWK: []byte("{}"), State: watchword.KeyActive, Added: now}
	}
	code := enroll.Code{Tenant: here, Hash: token.HashCode("code"), Subject: "lamp-1", Expires: now.Add(time.Hour)}
	if err := s.CreateSubject(ctx, watchword.Subject{Tenant: here, ID: "lamp-1", Kind: watchword.Device, State: watchword.New, Created: now, Changed: now}, &code, e); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.RedeemCode(ctx, enroll.Redemption{Tenant: here, Hash: code.Hash, Sign: key("sign", watchword.Sign), Seal: key("seal", watchword.Seal)}, now, audit.Always[watchword.Subject](e)); err != nil {
		t.Fatal(err)
	}
	issue := func(jti, spent string) error {
		return s.IssueToken(ctx, token.Record{Tenant: here, JTI: jti, Subject: "lamp-1", Incarnation: 1, Key: "sign", Issued: now, Expires: now.Add(10 * time.Minute)},
			token.Spent{JTI: spent, Expires: now.Add(time.Minute)}, e)
	}
	other := func(spent string, end time.Duration) error {
		return s.SpendAssertion(ctx, here, "lamp-1", token.Spent{JTI: spent, Expires: now.Add(end)})
	}
	wants(t, "a token", issue("tok_1", "a"), "")
	wants(t, "another paper", other("b", time.Minute), "")
	for range 2 {
		wants(t, "its assertion again", issue("tok_2", "a"), watchword.TokenReplayed)
		wants(t, "its assertion for something else", other("a", time.Minute), watchword.TokenReplayed)
		wants(t, "with another end", other("a", 20*time.Minute), watchword.TokenReplayed)
		wants(t, "the other paper for a token", issue("tok_3", "b"), watchword.TokenReplayed)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = opened(t, path)
	}
	t.Cleanup(func() { _ = s.Close() })
	if _, err := s.Prune(ctx, now.Add(time.Hour), 100); err != nil {
		t.Fatal(err)
	}
	if n := s.w.tx.used.n; n != 0 {
		t.Errorf("%d papers are remembered after their end", n)
	}
}

// A paper counts once, but what was rolled back did not count.
func TestWhatIsRolledBackWasNotUsed(t *testing.T) {
	ctx, now := t.Context(), time.Now()
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	t.Cleanup(func() { _ = s.Close() })
	paper := token.Spent{JTI: "a", Expires: now.Add(time.Minute)}
	refused := watchword.Refuse(watchword.Conflict, "the step after it")
	broken := errors.New("the disk")
	for _, why := range []error{refused, broken} {
		err := s.w.do(ctx, func(t *tx) error {
			if err := t.spend(here, "lamp-1", paper); err != nil {
				return err
			}
			return why
		})
		if err == nil {
			t.Fatal("it went through")
		}
	}
	// In one group: the first holds the transaction until the second has joined it.
	joined := make(chan error, 1)
	err := s.w.do(ctx, func(t *tx) error {
		_, err := t.exec(`UPDATE house SET one = one`)
		go func() {
			joined <- s.w.do(ctx, func(t *tx) error {
				if err := t.spend(here, "lamp-1", paper); err != nil {
					return err
				}
				return refused
			})
		}()
		return err
	})
	wants(t, "the first of the group", err, "")
	wants(t, "the one that is refused", <-joined, watchword.Conflict)
	wants(t, "the paper after all that", s.SpendAssertion(ctx, here, "lamp-1", paper), "")
	wants(t, "and again", s.SpendAssertion(ctx, here, "lamp-1", paper), watchword.TokenReplayed)
}

func TestTheMemoryOfUsedPapersHasABound(t *testing.T) {
	ctx, now := t.Context(), time.Now()
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	t.Cleanup(func() { _ = s.Close() })
	s.w.tx.used.most = 2
	for _, c := range []struct {
		jti  string
		want watchword.Code
	}{{"a", ""}, {"b", ""}, {"c", watchword.Busy}, {"a", watchword.TokenReplayed}} {
		wants(t, c.jti, s.SpendAssertion(ctx, here, "lamp-1", token.Spent{JTI: c.jti, Expires: now.Add(time.Minute)}), c.want)
	}
	if _, err := s.Prune(ctx, now.Add(time.Hour), 100); err != nil {
		t.Fatal(err)
	}
	wants(t, "c, once the others are over", s.SpendAssertion(ctx, here, "lamp-1", token.Spent{JTI: "c", Expires: now.Add(2 * time.Hour)}), "")
}
