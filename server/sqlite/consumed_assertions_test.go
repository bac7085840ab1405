package sqlite

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/enroll"
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

// The set in memory is read from the tables at start, for tokens and for other credentials, and expired elements are
// removed.
func TestConsumedAssertionsSurviveRestart(t *testing.T) {
	ctx, now := t.Context(), time.Now().Truncate(time.Millisecond)
	path := filepath.Join(t.TempDir(), "db")
	s := opened(t, path)
	e := audit.Actor{Tenant: here}.DoneEntry(audit.DeviceEnroll, "", now, nil)
	key := func(id watchword.KeyID, p watchword.Purpose) watchword.Key {
		return watchword.Key{ID: id, Purpose: p, JWK: []byte("{}"), State: watchword.KeyActive, Added: now}
	}
	code := enroll.Code{Tenant: here, Hash: token.CodeDigest("code"), Subject: "lamp-1", Expires: now.Add(time.Hour)}
	if err := s.CreateSubject(ctx, watchword.Subject{Tenant: here, ID: "lamp-1", Kind: watchword.Device, State: watchword.New, Created: now, Changed: now}, &code, e); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.RedeemCode(ctx, enroll.Redemption{Tenant: here, Hash: code.Hash, Sign: key("sign", watchword.Sign), Seal: key("seal", watchword.Seal)}, watchword.AuthorityVersions{}, now, audit.FixedEntry[watchword.Subject](e)); err != nil {
		t.Fatal(err)
	}
	issue := func(jti, spent string) error {
		return s.IssueToken(ctx, token.Record{Tenant: here, JTI: jti, Subject: "lamp-1", Incarnation: 1, Key: "sign", Issued: now, Expires: now.Add(10 * time.Minute)},
			token.SingleUse{JTI: spent, Expires: now.Add(time.Minute)}, e)
	}
	other := func(spent string, end time.Duration) error {
		return s.ConsumeAssertion(ctx, here, "lamp-1", token.SingleUse{JTI: spent, Expires: now.Add(end)})
	}
	wants(t, "a token", issue("tok_1", "a"), "")
	wants(t, "another assertion", other("b", time.Minute), "")
	for range 2 {
		wants(t, "its assertion again", issue("tok_2", "a"), watchword.TokenReplayed)
		wants(t, "its assertion for something else", other("a", time.Minute), watchword.TokenReplayed)
		wants(t, "with another end", other("a", 20*time.Minute), watchword.TokenReplayed)
		wants(t, "the other assertion for a token", issue("tok_3", "b"), watchword.TokenReplayed)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = opened(t, path)
	}
	t.Cleanup(func() { _ = s.Close() })
	if _, err := s.DeleteExpired(ctx, now.Add(time.Hour), 100); err != nil {
		t.Fatal(err)
	}
	if n := s.w.tx.consumed.count; n != 0 {
		t.Errorf("%d assertions are remembered after they expired", n)
	}
}

// A credential counts once, but what was rolled back did not count.
func TestRolledBackAssertionIsNotConsumed(t *testing.T) {
	ctx, now := t.Context(), time.Now()
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	t.Cleanup(func() { _ = s.Close() })
	credential := token.SingleUse{JTI: "a", Expires: now.Add(time.Minute)}
	refused := watchword.Refuse(watchword.Conflict, "the step after it")
	broken := errors.New("the disk")
	for _, reason := range []error{refused, broken} {
		err := s.w.do(ctx, func(t *tx) error {
			if err := t.consumeAssertion(here, "lamp-1", credential); err != nil {
				return err
			}
			return reason
		})
		if err == nil {
			t.Fatal("it went through")
		}
	}
	// In one group: the first holds the transaction until the second has joined it.
	joined := make(chan error, 1)
	err := s.w.do(ctx, func(t *tx) error {
		_, err := t.exec(`UPDATE instance SET one = one`)
		go func() {
			joined <- s.w.do(ctx, func(t *tx) error {
				if err := t.consumeAssertion(here, "lamp-1", credential); err != nil {
					return err
				}
				return refused
			})
		}()
		return err
	})
	wants(t, "the first of the group", err, "")
	wants(t, "the one that is refused", <-joined, watchword.Conflict)
	wants(t, "the assertion after all that", s.ConsumeAssertion(ctx, here, "lamp-1", credential), "")
	wants(t, "and again", s.ConsumeAssertion(ctx, here, "lamp-1", credential), watchword.TokenReplayed)
}

func TestConsumedAssertionsAreBounded(t *testing.T) {
	ctx, now := t.Context(), time.Now()
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	t.Cleanup(func() { _ = s.Close() })
	s.w.tx.consumed.max = 2
	for _, c := range []struct {
		jti  string
		want watchword.Code
	}{{"a", ""}, {"b", ""}, {"c", watchword.Busy}, {"a", watchword.TokenReplayed}} {
		wants(t, c.jti, s.ConsumeAssertion(ctx, here, "lamp-1", token.SingleUse{JTI: c.jti, Expires: now.Add(time.Minute)}), c.want)
	}
	if _, err := s.DeleteExpired(ctx, now.Add(time.Hour), 100); err != nil {
		t.Fatal(err)
	}
	wants(t, "c, once the others are over", s.ConsumeAssertion(ctx, here, "lamp-1", token.SingleUse{JTI: "c", Expires: now.Add(2 * time.Hour)}), "")
}

// A start reads the tokens whose assertions may still be accepted, not the older ones: also where the clock is ahead at the start, and goes
// back later.
func TestAStartReadsNoOldTokens(t *testing.T) {
	ctx, now := t.Context(), time.Now().Truncate(time.Millisecond)
	path := filepath.Join(t.TempDir(), "db")
	s := opened(t, path)
	e := audit.Actor{Tenant: here}.DoneEntry(audit.DeviceEnroll, "", now, nil)
	sub := watchword.Subject{Tenant: here, ID: "lamp-1", Kind: watchword.Device, State: watchword.New, Created: now, Changed: now}
	code := enroll.Code{Tenant: here, Hash: token.CodeDigest("code"), Subject: "lamp-1", Expires: now.Add(time.Hour)}
	key := func(id watchword.KeyID, p watchword.Purpose) watchword.Key {
		return watchword.Key{ID: id, Purpose: p, JWK: []byte("{}"), State: watchword.KeyActive, Added: now}
	}
	err := s.CreateSubject(ctx, sub, &code, e)
	if err == nil {
		_, _, err = s.RedeemCode(ctx, enroll.Redemption{Tenant: here, Hash: code.Hash, Sign: key("sign", watchword.Sign), Seal: key("seal", watchword.Seal)}, watchword.AuthorityVersions{}, now, audit.FixedEntry[watchword.Subject](e))
	}
	if err != nil {
		t.Fatal(err)
	}
	issue := func(spent string, at time.Time) error {
		return s.IssueToken(ctx, token.Record{Tenant: here, JTI: watchword.NewID("tok_", at), Subject: "lamp-1", Incarnation: 1, Key: "sign", Issued: at, Expires: at.Add(10 * time.Hour)},
			token.SingleUse{JTI: spent, Expires: at.Add(assertionMemory)}, e)
	}
	const old = 50
	for i := range old {
		wants(t, "an old token", issue(fmt.Sprint("old-", i), now.Add(-time.Hour)), "")
	}
	earliest := now.Add(-assertionMemory) // its assertion ends now
	wants(t, "the oldest that counts", issue("earliest", earliest), "")
	wants(t, "a token", issue("new", now), "")
	read := map[string]int64{}
	for name, clock := range map[string]time.Time{"right": now, "ahead": now.Add(1000 * time.Hour), "behind": now.Add(-1000 * time.Hour)} {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if s, err = Open(ctx, path, Options{Now: func() time.Time { return clock }}); err != nil {
			t.Fatal(err)
		}
		_, read[name] = s.Reads()
		for _, spent := range []string{"earliest", "new"} {
			wants(t, "the clock is "+name+": the assertion "+spent, issue(spent, now), watchword.TokenReplayed)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if all := read["behind"]; read["right"] != all-old || read["ahead"] != all-old {
		t.Errorf("rows that the starts read: %v, want %d less where the clock is not behind", read, old)
	}
}
