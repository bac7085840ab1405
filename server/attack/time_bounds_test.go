package attack_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/token"
)

// timeBound is a credential whose times lie at an edge.
type timeBound struct {
	name     string
	iat, exp time.Duration // from now
	want     watchword.Code
}

// timeBounds are those of a kind that lives so long at most.
func timeBounds(life time.Duration) []timeBound {
	const s = time.Second
	return []timeBound{
		{"over by one second less than the skew", -100 * s, -59 * s, accepted},
		{"over by the skew", -100 * s, -60 * s, watchword.TokenExpired},
		{"over by one second more", -100 * s, -61 * s, watchword.TokenExpired},
		{"over now", -100 * s, 0, accepted},
		{"from ahead by one second less than the skew", 59 * s, 100 * s, accepted},
		{"from ahead by the skew", 60 * s, 100 * s, accepted},
		{"from ahead by one second more", 61 * s, 100 * s, watchword.TokenEarly},
		{"as long as it may live", 0, life, accepted},
		{"one second longer", 0, life + s, watchword.TokenLifetime},
		{"over as it begins", 0, 0, watchword.TokenLifetime},
		{"over before it begins", 0, -s, watchword.TokenLifetime},
	}
}

var maxLifetimes = map[string]time.Duration{
	token.TypAssertion: token.AssertionLifetime, token.TypEnrollment: token.ProofLifetime, token.TypLogin: token.ProofLifetime, token.TypRekey: token.RekeyLifetime, token.TypOrder: token.CommandLifetime,
	token.TypCommand: token.CommandLifetime, token.TypConfig: token.ConfigLifetime, token.TypTrust: token.TrustLifetime,
}

// Each kind at each endpoint, one second on either side of every edge of its time.
func TestTimeLimits(t *testing.T) {
	c := newClock()
	c.set(c.now().Truncate(time.Second))
	ep := newEndpoints(t, c.now)
	for _, d := range ep.endpoints {
		life, ok := maxLifetimes[d.typ]
		if !ok || strings.HasPrefix(d.name, "MQTT 3.1.1") {
			continue
		}
		t.Run(d.name, func(t *testing.T) {
			es := timeBounds(life)
			if d.typ == token.TypRekey { // what passes changes the keys: one does, at the end
				es = append(rejected(es), es[0])
			}
			for _, e := range es {
				credential := with(d.claims(), "iat", c.now().Add(e.iat).Unix(), "exp", c.now().Add(e.exp).Unix())
				want := e.want
				switch {
				case want == accepted:
				case d.typ == token.TypTrust:
					want = watchword.BundleInvalid
				case d.typ == token.TypCommand && want == watchword.TokenExpired:
					want = watchword.CommandExpired
				default:
					want = d.codeFor(want)
				}
				got := d.present(d.sign(t, d.typ, credential))
				if got.code != want {
					t.Errorf("%s: got %q, want %q: %s", e.name, got.code, want, got.text)
				}
			}
		})
	}
}

func rejected(es []timeBound) []timeBound {
	var out []timeBound
	for _, e := range es {
		if e.want != accepted {
			out = append(out, e)
		}
	}
	return out
}

func TestProofAgeLimits(t *testing.T) {
	c := newClock()
	c.set(c.now().Truncate(time.Second)) // iat knows no other
	ep := newEndpoints(t, c.now)
	for _, d := range ep.endpoints {
		if d.typ != token.TypDPoP {
			continue
		}
		for off, want := range map[time.Duration]watchword.Code{
			-(token.DPoPLifetime + token.Skew) + time.Second: accepted, -(token.DPoPLifetime + token.Skew): accepted, -(token.DPoPLifetime + token.Skew) - time.Second: watchword.DPoPInvalid,
			token.Skew - time.Second: accepted, token.Skew: accepted, token.Skew + time.Second: watchword.DPoPInvalid,
		} {
			if got := d.present(d.sign(t, d.typ, with(d.claims(), "iat", c.now().Add(off).Unix()))); got.code != want {
				t.Errorf("made %s from now: got %q, want %q: %s", off, got.code, want, got.text)
			}
		}
	}
}

// Our own access tokens end sharp, at every one of our endpoints: also where they were
// seen before, and are remembered.
func TestAccessTokensExpireExactly(t *testing.T) {
	c := newClock()
	ep := newEndpoints(t, c.now)
	at := func(name string) endpoint {
		for _, d := range ep.endpoints {
			if d.name == name {
				return d
			}
		}
		t.Fatal(name)
		return endpoint{}
	}
	bearer, bound := claims(t, ep.token)["exp"].(int64), claims(t, ep.boundToken)["exp"].(int64)
	for _, name := range []string{"HTTP, Bearer", "HTTP, DPoP, the token", "MQTT 5, the password, a token", "MQTT 3.1.1, the password, a token", "MQTT 5, ace", "$watchword/auth, a token"} {
		d := at(name)
		raw, exp := ep.token, bearer
		if name == "HTTP, DPoP, the token" {
			raw, exp = ep.boundToken, bound
		}
		want := watchword.TokenExpired
		if strings.HasPrefix(name, "MQTT 3.1.1") {
			want = "not_authorized"
		}
		for _, e := range []struct {
			at   time.Time
			want watchword.Code
		}{
			{time.Unix(exp, 0).Add(-time.Second), accepted},
			{time.Unix(exp, 0).Add(-time.Millisecond), accepted},
			{time.Unix(exp, 0), want},
			{time.Unix(exp, 0).Add(time.Second), want},
			{time.Unix(exp, 0).Add(token.Skew), want},
		} {
			c.set(e.at)
			ep.newNonce()
			if got := d.present(raw); got.code != e.want {
				t.Errorf("%s, %s after its end: got %q, want %q: %s", name, e.at.Sub(time.Unix(exp, 0)), got.code, e.want, got.text)
			}
		}
	}
}

// newNonce requests the current nonce.
func (ep *endpointFixture) newNonce() {
	_, unknown := newKey(ep.t, "P-256")
	ep.nonce = ep.requestOnce("POST", "/oauth/token", "", http.Header{"Content-Type": form, "Dpop": {ep.dpop(unknown, "POST", "/oauth/token", "")}}).header.Get("DPoP-Nonce")
}
