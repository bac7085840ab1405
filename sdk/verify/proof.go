package verify

import (
	"crypto/sha256"
	"errors"
	"math"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/token"
)

// errBinding marks a refusal where the proof is good, but is not this token's: to
// OAuth that is an invalid token (RFC 9449 §7.1).
var errBinding = errors.New("the token is not bound to this key")

// prove checks the DPoP proof of a request for a token that was checked (RFC 9449
// §4.3, §7.1), and spends it. Codes: dpop_invalid, dpop_nonce, busy.
func (v *Verifier) prove(r *http.Request, raw string, t *Token, now time.Time) (nonce string, err error) {
	headers := r.Header.Values("DPoP")
	switch {
	case len(v.bases) == 0:
		return "", watchword.Because(errBinding, watchword.DPoPInvalid, "this service takes no DPoP proofs: it does not know its own address")
	case len(headers) != 1:
		return "", watchword.Refuse(watchword.DPoPInvalid, "send one DPoP header with one proof")
	case t.Bound == "":
		return "", watchword.Because(errBinding, watchword.DPoPInvalid, "the token is not bound to a key: send it as Bearer")
	}
	var p token.DPoP
	path := requestPath(r)
	for _, base := range v.bases {
		if p, err = token.VerifyDPoP(headers[0], r.Method, base+path, raw, now); err == nil {
			break
		}
	}
	if err != nil {
		return "", err
	}
	if p.Key != t.Bound {
		return p.Nonce, watchword.Because(errBinding, watchword.DPoPInvalid, "the proof is not of the key that the token is bound to")
	}
	if v.nonces != nil && !v.nonces.holds(p.Nonce, now) {
		return p.Nonce, watchword.Refuse(watchword.DPoPNonce, "sign the proof again with the nonce of this answer's DPoP-Nonce")
	}
	return p.Nonce, v.spent.take(t.Subject, p, now)
}

// requestPath is the path that the client asked for, escaped as it was sent: a mux
// may have cut the request's URL meanwhile, never its request line.
func requestPath(r *http.Request) string {
	target, _, _ := strings.Cut(r.RequestURI, "?")
	if strings.HasPrefix(target, "/") {
		return target
	}
	if u, err := url.Parse(target); err == nil && u.Host != "" { // a proxy's form (RFC 9112 §3.2.2)
		return u.EscapedPath()
	}
	return "/" + strings.TrimPrefix(r.URL.EscapedPath(), "/")
}

// spentPart is which part of the memory one subject alone may fill.
const spentPart = 4

// spent remembers the proofs that were used, until their time is over. It never
// forgets earlier: when it is full, or one subject has its share ([fair.Share]), it refuses.
// An entry takes about 100 bytes. It is safe for concurrent use.
type spent struct {
	most int // in all

	mu    sync.Mutex
	used  map[use]struct{}
	by    map[watchword.SubjectID]*share
	ends  map[int64][]spending // by the time after which they may go, in steps
	swept int64                // the last step that went away; a proof that ended in it or before may have been used
}

// share is what one subject has, whatever keys its tokens are bound to.
type share struct {
	who watchword.SubjectID
	has int
}

// spending is a use, and whose share it takes.
type spending struct {
	use
	of *share
}

// use is one proof: half of the SHA-256 of its key and jti. Whoever finds two alike
// (2^64 tries) has the second of their own refused.
type use [sha256.Size / 2]byte

func useOf(p token.DPoP) use {
	sum := sha256.Sum256([]byte(string(p.Key) + "\x00" + p.JTI)) // no key has a NUL
	return use(sum[:])
}

// step is how many seconds go away at once.
const step = 16

func newSpent(most int) *spent {
	return &spent{most: most, used: map[use]struct{}{}, by: map[watchword.SubjectID]*share{}, ends: map[int64][]spending{}, swept: math.MinInt64}
}

// take spends a proof. Codes: dpop_invalid where it was spent before, or may have been
// (the clock went back), busy.
func (s *spent) take(who watchword.SubjectID, p token.DPoP, now time.Time) error {
	u := useOf(p)
	end := p.Issued.Add(token.DPoPLife+token.Skew).Unix() / step
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep(now.Unix() / step)
	if end <= s.swept {
		return watchword.Refuse(watchword.DPoPInvalid, "the DPoP proof is from before what this service remembers: its clock went back")
	}
	if _, twice := s.used[u]; twice {
		return watchword.Refuse(watchword.DPoPInvalid, "the DPoP proof was used before: sign a new one for each request")
	}
	of := s.by[who]
	if of == nil {
		of = &share{who: who}
	}
	if !fair.Share(of.has, len(s.used), s.most, spentPart) {
		return &watchword.Error{Code: watchword.Busy, Detail: "too many DPoP proofs within two minutes", RetryAfter: step * time.Second}
	}
	s.by[who] = of
	of.has++
	s.used[u] = struct{}{}
	s.ends[end] = append(s.ends[end], spending{u, of})
	return nil
}

// sweep drops what no proof can be accepted for any more.
func (s *spent) sweep(now int64) {
	if now-1 <= s.swept {
		return
	}
	s.swept = now - 1
	for end, uses := range s.ends {
		if end >= now {
			continue
		}
		for _, u := range uses {
			delete(s.used, u.use)
			if u.of.has--; u.of.has == 0 {
				delete(s.by, u.of.who)
			}
		}
		delete(s.ends, end)
	}
}
