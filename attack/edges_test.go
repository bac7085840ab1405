package attack_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/token"
)

// edge is a paper whose times lie at an edge.
type edge struct {
	name     string
	iat, exp time.Duration // from now
	want     watchword.Code
}

// edges are those of a kind that lives so long at most.
func edges(life time.Duration) []edge {
	const s = time.Second
	return []edge{
		{"over by one second less than the skew", -100 * s, -59 * s, taken},
		{"over by the skew", -100 * s, -60 * s, watchword.TokenExpired},
		{"over by one second more", -100 * s, -61 * s, watchword.TokenExpired},
		{"over now", -100 * s, 0, taken},
		{"from ahead by one second less than the skew", 59 * s, 100 * s, taken},
		{"from ahead by the skew", 60 * s, 100 * s, taken},
		{"from ahead by one second more", 61 * s, 100 * s, watchword.TokenEarly},
		{"as long as it may live", 0, life, taken},
		{"one second longer", 0, life + s, watchword.TokenLifetime},
		{"over as it begins", 0, 0, watchword.TokenLifetime},
		{"over before it begins", 0, -s, watchword.TokenLifetime},
	}
}

var lives = map[string]time.Duration{
	token.TypAssertion: token.AssertionLife, token.TypEnrollment: token.ProofLife, token.TypRekey: token.RekeyLife, token.TypOrder: token.CommandLife,
	token.TypCommand: token.CommandLife, token.TypConfig: token.ConfigLife, token.TypTrust: token.TrustLife,
}

// Each kind at each door, one second on either side of every edge of its time.
func TestTheEdgesOfTime(t *testing.T) {
	c := newClock()
	c.set(c.now().Truncate(time.Second))
	s := newStreet(t, c.now)
	for _, d := range s.doors {
		life, ok := lives[d.typ]
		if !ok || strings.HasPrefix(d.name, "MQTT 3.1.1") {
			continue
		}
		t.Run(d.name, func(t *testing.T) {
			es := edges(life)
			if d.typ == token.TypRekey { // what passes changes the keys: one does, at the end
				es = append(notTaken(es), es[0])
			}
			for _, e := range es {
				paper := with(d.claims(), "iat", c.now().Add(e.iat).Unix(), "exp", c.now().Add(e.exp).Unix())
				want := e.want
				switch {
				case want == taken:
				case d.typ == token.TypTrust:
					want = watchword.BundleInvalid
				case d.typ == token.TypCommand && want == watchword.TokenExpired:
					want = watchword.CommandExpired
				default:
					want = d.says(want)
				}
				got := d.show(d.make(t, d.typ, paper))
				if got.code != want {
					t.Errorf("%s: got %q, want %q: %s", e.name, got.code, want, got.under)
				}
			}
		})
	}
}

func notTaken(es []edge) []edge {
	var out []edge
	for _, e := range es {
		if e.want != taken {
			out = append(out, e)
		}
	}
	return out
}

func TestTheEdgesOfAProofsAge(t *testing.T) {
	c := newClock()
	c.set(c.now().Truncate(time.Second)) // iat knows no other
	s := newStreet(t, c.now)
	for _, d := range s.doors {
		if d.typ != token.TypDPoP {
			continue
		}
		for off, want := range map[time.Duration]watchword.Code{
			-(token.DPoPLife + token.Skew) + time.Second: taken, -(token.DPoPLife + token.Skew): taken, -(token.DPoPLife + token.Skew) - time.Second: watchword.DPoPInvalid,
			token.Skew - time.Second: taken, token.Skew: taken, token.Skew + time.Second: watchword.DPoPInvalid,
		} {
			if got := d.show(d.make(t, d.typ, with(d.claims(), "iat", c.now().Add(off).Unix()))); got.code != want {
				t.Errorf("made %s from now: got %q, want %q: %s", off, got.code, want, got.under)
			}
		}
	}
}

// Our own access tokens end sharp, at every one of our doors: also where they were
// seen before, and are remembered.
func TestAccessTokensEndSharp(t *testing.T) {
	c := newClock()
	s := newStreet(t, c.now)
	at := func(name string) door {
		for _, d := range s.doors {
			if d.name == name {
				return d
			}
		}
		t.Fatal(name)
		return door{}
	}
	bearer, bound := claims(t, s.token)["exp"].(int64), claims(t, s.bound)["exp"].(int64)
	for _, name := range []string{"HTTP, Bearer", "HTTP, DPoP, the token", "MQTT 5, the password, a token", "MQTT 3.1.1, the password, a token", "MQTT 5, ace", "$watchword/auth, a token"} {
		d := at(name)
		raw, exp := s.token, bearer
		if name == "HTTP, DPoP, the token" {
			raw, exp = s.bound, bound
		}
		want := watchword.TokenExpired
		if strings.HasPrefix(name, "MQTT 3.1.1") {
			want = "not_authorized"
		}
		for _, e := range []struct {
			at   time.Time
			want watchword.Code
		}{
			{time.Unix(exp, 0).Add(-time.Second), taken},
			{time.Unix(exp, 0).Add(-time.Millisecond), taken},
			{time.Unix(exp, 0), want},
			{time.Unix(exp, 0).Add(time.Second), want},
			{time.Unix(exp, 0).Add(token.Skew), want},
		} {
			c.set(e.at)
			s.newNonce()
			if got := d.show(raw); got.code != e.want {
				t.Errorf("%s, %s after its end: got %q, want %q: %s", name, e.at.Sub(time.Unix(exp, 0)), got.code, e.want, got.under)
			}
		}
	}
}

// newNonce asks for the nonce of this moment.
func (s *street) newNonce() {
	_, stranger := newKey(s.t, "P-256")
	s.nonce = s.ask1("POST", "/oauth/token", "", http.Header{"Content-Type": form, "Dpop": {s.dpop(stranger, "POST", "/oauth/token", "")}}).header.Get("DPoP-Nonce")
}
