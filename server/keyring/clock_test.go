package keyring_test

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/token"
)

// untrusted is a clock that is not trusted while it has an error.
type untrusted struct{ err error }

func (u *untrusted) Check() error { return u.err }

func (u *untrusted) set(bad bool) {
	u.err = nil
	if bad {
		u.err = watchword.Refuse(watchword.ClockUntrusted, "it is wrong")
	}
}

// Each role either signs while the clock is not trusted or does not, in each way in which it signs.
func TestWhatSignsAsksTheClock(t *testing.T) {
	h := newRingFixture(t)
	c := &untrusted{}
	h.clock = c
	h.restart()
	signer, leaves := map[keyring.Role]func() error{}, h.ring.CertSource(func() []string { return []string{"one.example"} }, func() time.Time { return h.now })
	for _, role := range keyring.Roles {
		s := h.ring.Signer(role) // taken while the clock is trusted: the act asks, not the taking
		signer[role] = func() error {
			if _, err := s.SignBytes([]byte("x")); err != nil {
				return err
			}
			_, err := s.Sign("x", []byte("{}"))
			return err
		}
	}
	signer[keyring.CA] = func() error { // it signs certificates alone
		_, err := h.ring.CertSource(func() []string { return []string{"two.example"} }, func() time.Time { return h.now }).GetCertificate(nil)
		return err
	}
	first, err := leaves.GetCertificate(nil)
	h.must(err)
	for _, bad := range []bool{false, true, false} {
		c.set(bad)
		for _, role := range keyring.Roles {
			states, listed := keyring.StatesTime[role]
			if !listed {
				t.Fatalf("%s: does it sign what states the time?", role)
			}
			want := watchword.Code("")
			if bad && states {
				want = watchword.ClockUntrusted
			}
			if got := watchword.CodeOf(signer[role]()); got != want {
				t.Errorf("%s, clock wrong: %v: got %q, want %q", role, bad, got, want)
			}
		}
	}
	c.set(true)
	for _, role := range keyring.Roles {
		_, err := h.k.Rotate(h.Context(), by, role, true, h.now)
		h.wants(watchword.ClockUntrusted, err) // each turn signs a bundle
	}
	h.wants(watchword.ClockUntrusted, h.k.Step(h.Context(), h.now))
	h.now = h.now.Add(70 * 24 * time.Hour)
	if same, err := leaves.GetCertificate(nil); err != nil || same != first {
		t.Errorf("a leaf that is to be renewed soon, while the clock is not trusted: %v; want the last one", err)
	}
	h.now = start
	h.restart() // does not fail
	h.wants(watchword.ClockUntrusted, keyring.Initialize(h.Context(), h.st, keyring.InitOptions{Issuer: issuer, KEK: h.kek, Now: h.now, Clock: c, Operator: watchword.Subject{}}))
}

// A certificate of an own authority that is not valid now is replaced in the next step, and leaves with it.
func TestAnAuthorityThatIsNotValidIsReplaced(t *testing.T) {
	for _, tc := range []struct {
		name string
		to   time.Duration
		same bool
	}{
		{"an hour back", -time.Hour, true},
		{"an hour and a second back: not valid yet", -time.Hour - time.Second, false},
		{"400 days back", -400 * 24 * time.Hour, false},
		{"56 years ahead: over", 56 * 365 * 24 * time.Hour, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newRingFixture(t)
			leaves := h.ring.CertSource(func() []string { return []string{"server.example"} }, func() time.Time { return h.now })
			old, err := leaves.GetCertificate(nil)
			h.must(err)
			before := h.ring.CAPEM()
			version := h.bundle().Version
			h.at(tc.to)
			if same := slices.Equal(h.ring.CAPEM(), before); same != tc.same {
				t.Errorf("the authority is the same: %v, want %v", same, tc.same)
			}
			leaf, err := leaves.GetCertificate(nil)
			h.must(err)
			if same := leaf == old; same != tc.same {
				t.Errorf("the leaf is the same: %v, want %v", same, tc.same)
			}
			validates(t, leaf, h.bundle(), h.now)
			if got := h.bundle().Version; !tc.same && got <= version {
				t.Errorf("the bundle has version %d, and had %d", got, version)
			}
			at := h.ring.CAPEM()
			h.at(tc.to + time.Minute)
			if !slices.Equal(h.ring.CAPEM(), at) {
				t.Error("a minute later it is another one again")
			}
		})
	}
}

// validates fails unless a verifier with the bundle accepts the certificate.
func validates(t *testing.T, c *tls.Certificate, b token.Trust, now time.Time) {
	t.Helper()
	pool := x509.NewCertPool()
	for _, der := range b.CAs {
		ca, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		pool.AddCert(ca)
	}
	if _, err := c.Leaf.Verify(x509.VerifyOptions{DNSName: "server.example", Roots: pool, CurrentTime: now}); err != nil {
		t.Errorf("at %s: %v", now, err)
	}
}

// A leaf that was made while the clock was ahead is replaced without a restart.
func TestALeafThatIsNotValidYetIsReplaced(t *testing.T) {
	h := newRingFixture(t)
	leaves := h.ring.CertSource(func() []string { return []string{"server.example"} }, func() time.Time { return h.now })
	h.now = start.Add(29 * 24 * time.Hour)
	ahead, err := leaves.GetCertificate(nil)
	h.must(err)
	h.now = start
	now, err := leaves.GetCertificate(nil)
	h.must(err)
	if ahead == now {
		t.Fatal("it is the one of the future")
	}
	validates(t, now, h.bundle(), h.now)
}

// After a clock that was ahead the next bundle has a higher version than every one of the future: who has one of those takes it.
func TestABundleOfTheFutureIsSucceeded(t *testing.T) {
	h := newRingFixture(t)
	first := h.bundle()
	h.at(70 * 24 * time.Hour) // the bundle is renewed
	ahead := h.bundle()
	if ahead.Version <= first.Version {
		t.Fatal("it was not renewed")
	}
	for _, restart := range []bool{false, true} {
		h.now = start.Add(time.Minute)
		if restart {
			h.restart()
		} else {
			h.at(time.Minute)
		}
		now := h.bundle()
		if now.Version <= ahead.Version || !now.Issued.Equal(h.now) {
			t.Errorf("after the clock went back (restart: %v) the bundle has version %d of %s, after version %d", restart, now.Version, now.Issued, ahead.Version)
		}
		version := now.Version
		h.at(2 * time.Minute)
		if got := h.bundle().Version; got != version {
			t.Errorf("it was signed again: %d, after %d", got, version)
		}
		h.at(70 * 24 * time.Hour)
		ahead = h.bundle()
	}
}
