package authn

import (
	"fmt"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

const home = "https://watchword.example"

func signer(t *testing.T) *jose.Signer {
	t.Helper()
	k, err := jose.GenerateKey(jose.Ed)
	if err != nil {
		t.Fatal(err)
	}
	s, err := k.Signer()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func shown(t *testing.T, s *jose.Signer, nonce string, at time.Time) DPoPRequest {
	t.Helper()
	raw, err := token.SignDPoP(s, "GET", home+"/a", nonce, "tok", at)
	if err != nil {
		t.Fatal(err)
	}
	return DPoPRequest{raw, "GET", "/a"}
}

var lamp = subjectRef{id: "lamp-1"}

func TestDPoPNonceIsValidForTwoWindows(t *testing.T) {
	p, s := newDPoPVerifier(nil, watchword.FixedIssuer(home)), signer(t)
	start := time.Unix(6000*60, 0)
	nonce := p.nonceForWindow(window(start))
	for after, want := range map[time.Duration]watchword.Code{
		0: "", 59 * time.Second: "", 60 * time.Second: "", 119 * time.Second: "",
		120 * time.Second: watchword.DPoPNonce, time.Hour: watchword.DPoPNonce, -time.Second: watchword.DPoPNonce,
	} {
		now := start.Add(after)
		if _, err := p.verify(shown(t, s, nonce, now), "tok", now); watchword.CodeOf(err) != want {
			t.Errorf("after %s: %v, want %q", after, err, want)
		}
	}
	other := newDPoPVerifier(nil, watchword.FixedIssuer(home))
	if _, err := other.verify(shown(t, s, nonce, start), "tok", start); watchword.CodeOf(err) != watchword.DPoPNonce {
		t.Errorf("of another process: %v", err)
	}
}

// Whatever the clock does, a used proof is never accepted again while its nonce is valid.
func TestDPoPProofIsUsedOnce(t *testing.T) {
	p, s := newDPoPVerifier(nil, watchword.FixedIssuer(home)), signer(t)
	start := time.Unix(6000*60, 0)
	for w := range 6 {
		made := start.Add(time.Duration(w)*time.Minute + 10*time.Second)
		one := shown(t, s, p.nonceForWindow(window(made)), made)
		for i, after := range []time.Duration{0, time.Second, 49 * time.Second, 50 * time.Second, 100 * time.Second} {
			d, err := p.verify(one, "tok", made.Add(after))
			if err != nil {
				t.Fatal(err)
			}
			err = p.consume(lamp, d, made.Add(after))
			if want := map[bool]watchword.Code{true: "", false: watchword.DPoPInvalid}[i == 0]; watchword.CodeOf(err) != want {
				t.Errorf("window %d after %s: %v, want %q", w, after, err, want)
			}
		}
	}
	// The same jti under another nonce is the same proof to anyone who reads RFC 9449 §11.1.
	d := dpopProof{token.DPoP{Key: "k", JTI: "j"}, window(start)}
	later := start.Add(time.Minute)
	if err := p.consume(lamp, d, start); watchword.CodeOf(err) != watchword.DPoPNonce {
		t.Errorf("in a window that has ended: %v", err)
	}
	fresh := newDPoPVerifier(nil, watchword.FixedIssuer(home))
	if err := fresh.consume(lamp, d, start); err != nil {
		t.Fatal(err)
	}
	d.window++
	if err := fresh.consume(lamp, d, later); watchword.CodeOf(err) != watchword.DPoPInvalid {
		t.Errorf("the same jti in the next window: %v", err)
	}
}

// A clock that was ahead for a while, and was set right, costs one more answer.
func TestDPoPProofsAfterClockWasAhead(t *testing.T) {
	p, s := newDPoPVerifier(nil, watchword.FixedIssuer(home)), signer(t)
	now := time.Unix(6000*60, 0)
	use := func(at time.Time, sh DPoPRequest) error {
		d, err := p.verify(sh, "tok", at)
		if err == nil {
			err = p.consume(lamp, d, at)
		}
		return err
	}
	first := shown(t, s, p.nonceForWindow(window(now)), now)
	if err := use(now, first); err != nil {
		t.Fatal(err)
	}
	ahead := now.Add(24 * time.Hour)
	if err := use(ahead, shown(t, s, p.nonceForWindow(window(ahead)), ahead)); err != nil {
		t.Fatal(err)
	}
	second := shown(t, s, p.nonceForWindow(window(now)), now)
	if err := use(now, second); watchword.CodeOf(err) != watchword.DPoPNonce {
		t.Fatalf("got %v, want another nonce to be asked for", err)
	}
	for _, old := range []DPoPRequest{first, second} {
		if err := use(now, old); watchword.CodeOf(err) != watchword.DPoPNonce {
			t.Errorf("a proof from before: %v", err)
		}
	}
	if err := use(now, shown(t, s, p.nonceForWindow(window(now)), now)); err != nil {
		t.Errorf("under the new nonce: %v", err)
	}
}

func TestUsedProofsAreBounded(t *testing.T) {
	p := newDPoPVerifier(nil, watchword.FixedIssuer(home))
	p.max, p.share = 40, 4
	now := time.Unix(6000*60, 0)
	n := 0
	spend := func(who string) watchword.Code {
		n++
		return watchword.CodeOf(p.consume(subjectRef{id: watchword.SubjectID(who)}, dpopProof{token.DPoP{Key: watchword.KeyID(fmt.Sprint("k", n)), JTI: fmt.Sprint(n)}, window(now)}, now))
	}
	fill := func(who string) (times int) {
		for spend(who) == "" {
			times++
		}
		return times
	}
	if got := fill("greedy"); got != 10 {
		t.Errorf("one subject, a key for each, has %d of 40", got)
	}
	// However many take all that they can, another finds room.
	for i := range 7 {
		fill(fmt.Sprint("flood", i))
		if c := spend(fmt.Sprint("quiet", i)); c != "" {
			t.Errorf("beside %d subjects: %s", i+2, c)
		}
	}
	for i := 0; spend(fmt.Sprint("one each", i)) == ""; i++ {
	}
	if got := len(p.used[window(now)&1].proofs); got != 40 {
		t.Errorf("it is full with %d", got)
	}
	if err := p.consume(subjectRef{id: "greedy"}, dpopProof{token.DPoP{Key: "k1", JTI: "1"}, window(now)}, now); watchword.CodeOf(err) != watchword.DPoPInvalid {
		t.Errorf("a full memory forgot: %v", err)
	}
	next := now.Add(2 * time.Minute)
	if err := p.consume(subjectRef{id: "greedy"}, dpopProof{token.DPoP{Key: "k9", JTI: "9"}, window(next)}, next); err != nil {
		t.Errorf("two windows on there is room again: %v", err)
	}
}
