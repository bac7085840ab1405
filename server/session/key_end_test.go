package session_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/session"
)

// A session ends when its token expires or when its key ends, whichever comes first, at that instant.
func TestSessionEndsWithItsKey(t *testing.T) {
	const life = 10 * time.Minute
	for _, c := range []struct {
		name string
		end  time.Duration // of the key, from now; 0: none
		at   time.Duration // when the session ends
		want watchword.Code
	}{
		{"the key has no end", 0, life, watchword.TokenExpired},
		{"the key ends first", time.Minute, time.Minute, watchword.TokenRevoked},
		{"the token expires first", life + time.Second, life, watchword.TokenExpired},
		{"both end together", life, life, watchword.TokenExpired},
	} {
		synctest.Test(t, func(t *testing.T) {
			d := newDirectory(t)
			if c.end > 0 {
				d.subject.Keys[0].Ends = time.Now().Add(c.end)
			}
			g := session.NewGuard(d, session.GuardOptions{})
			p := credentials(t, life)
			s, err := g.Open(context.Background(), p, session.Options{})
			wantCode(t, err, "")
			if got := s.Authority().Expires(); !got.Equal(time.Now().Add(c.at)) {
				t.Errorf("%s: it says that it ends at %s", c.name, got)
			}
			time.Sleep(c.at - time.Nanosecond)
			synctest.Wait()
			if s.Ended() {
				t.Errorf("%s: ended early: %v", c.name, s.Cause())
			}
			if _, err := g.Check(context.Background(), p); err != nil {
				t.Errorf("%s: refused early: %v", c.name, err)
			}
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			if got := watchword.CodeOf(s.Cause()); !s.Ended() || got != c.want {
				t.Errorf("%s: ended %v with %v", c.name, s.Ended(), s.Cause())
			}
			_, err = g.Check(context.Background(), p)
			wantCode(t, err, c.want)
		})
	}
}

// The end of the key moves with the subject: another end changes the session's, in either direction, and a fresh token does not
// carry a session past it.
func TestSessionFollowsTheEndOfItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDirectory(t)
		g := session.NewGuard(d, session.GuardOptions{})
		s, err := g.Open(context.Background(), credentials(t, 10*time.Minute), session.Options{})
		wantCode(t, err, "")
		setEnd := func(end time.Time) {
			d.edit(func(d *fakeDirectory) {
				d.subject.Keys = []watchword.Key{{ID: "k1", Purpose: watchword.Sign, State: watchword.KeyActive, Ends: end}}
			})
			if err := g.HandleChange(context.Background(), watchword.Change{Tenant: watchword.DefaultTenant, Kind: watchword.SubjectChanged, ID: "lamp-7"}); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		setEnd(start.Add(time.Minute))
		setEnd(start.Add(5 * time.Minute))
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if s.Ended() {
			t.Fatalf("ended at the earlier end: %v", s.Cause())
		}
		if err := s.Refresh(context.Background(), credentials(t, 10*time.Minute)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3*time.Minute - time.Nanosecond)
		synctest.Wait()
		if s.Ended() {
			t.Fatalf("ended early: %v", s.Cause())
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if !s.Ended() || watchword.CodeOf(s.Cause()) != watchword.TokenRevoked {
			t.Errorf("a fresh token carried the session past the end of its key: %v", s.Cause())
		}
	})
}

// A key past its end verifies nothing, a retired one what it signed before, a revoked one nothing.
func TestVerificationKeysEnd(t *testing.T) {
	now := time.Now()
	var stored []watchword.Key
	for _, k := range []watchword.Key{{State: watchword.KeyActive}, {State: watchword.KeyActive, Ends: now}, {State: watchword.KeyRetired}, {State: watchword.KeyRetired, Ends: now}, {State: watchword.KeyRevoked}} {
		private, err := jose.GenerateKey(jose.P256)
		wantCode(t, err, "")
		k.ID, k.JWK, k.Purpose = private.Public().ID(), private.Public().JWK(), watchword.Sign
		stored = append(stored, k)
	}
	keys := session.NewKeys(stored)
	for _, c := range []struct {
		at                time.Time
		active, verifying []int // of stored
	}{
		{now.Add(-1), []int{0, 1}, []int{0, 1, 2, 3}},
		{now, []int{0}, []int{0, 2}},
		{now.Add(-1), []int{0, 1}, []int{0, 1, 2, 3}}, // a clock that was set back
	} {
		active, err := keys.ActiveSigningKeys(c.at)
		wantCode(t, err, "")
		verifying, err := keys.VerificationKeys(c.at)
		wantCode(t, err, "")
		for name, got := range map[string]map[watchword.KeyID]*jose.PublicKey{"active": active, "verifying": verifying} {
			want := map[string][]int{"active": c.active, "verifying": c.verifying}[name]
			for i, k := range stored {
				if _, has := got[k.ID]; has != slices.Contains(want, i) {
					t.Errorf("%s %s: key %d is %v", name, c.at.Sub(now), i, has)
				}
			}
		}
	}
}

// State that outlives a connection, and that depends on the key that the connection was opened with, is withdrawn once the key has
// ended and was retired.
func TestOfflineSessionEndsWithItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDirectory(t)
		d.subject.Keys[0].Ends = time.Now().Add(time.Minute)
		g := session.NewGuard(d, session.GuardOptions{})
		var withdrawn error
		s := g.OpenOffline(context.Background(), credentials(t, time.Hour), session.Options{Withdrawn: func(err error) { withdrawn = err }})
		defer s.End(nil)
		changed := watchword.Change{Tenant: watchword.DefaultTenant, Kind: watchword.SubjectChanged, ID: "lamp-7"}
		time.Sleep(time.Minute - time.Nanosecond)
		if err := g.HandleChange(context.Background(), changed); err != nil || withdrawn != nil {
			t.Fatalf("withdrawn before the end: %v, %v", withdrawn, err)
		}
		time.Sleep(time.Nanosecond)
		if err := g.HandleChange(context.Background(), changed); err != nil || watchword.CodeOf(withdrawn) != watchword.TokenRevoked {
			t.Errorf("after the end: %v, %v", withdrawn, err)
		}
	})
}
