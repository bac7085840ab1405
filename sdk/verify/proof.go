package verify

import (
	"crypto/sha256"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
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

// spent remembers the proofs that were used, until their time is over. It never
// forgets earlier: when it is full, or one subject has more than its share, it refuses.
// It is safe for concurrent use.
type spent struct {
	most int // in all
	each int // of one subject, whatever keys its tokens are bound to

	mu   sync.Mutex
	used map[use]struct{}
	by   map[watchword.SubjectID]int
	ends map[int64][]spending // by the time after which they may go, in steps
}

// spending is a use, and whose share it takes.
type spending struct {
	use
	who watchword.SubjectID
}

// use is one proof: the SHA-256 of its jti under its key.
type use struct {
	key watchword.KeyID
	jti [sha256.Size]byte
}

// step is how many seconds go away at once.
const step = 16

func newSpent(most int) *spent {
	return &spent{most: most, each: max(1, most/4), used: map[use]struct{}{}, by: map[watchword.SubjectID]int{}, ends: map[int64][]spending{}}
}

// take spends a proof. Codes: dpop_invalid where it was spent before, busy.
func (s *spent) take(who watchword.SubjectID, p token.DPoP, now time.Time) error {
	u := use{p.Key, sha256.Sum256([]byte(p.JTI))}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep(now.Unix() / step)
	if _, twice := s.used[u]; twice {
		return watchword.Refuse(watchword.DPoPInvalid, "the DPoP proof was used before: sign a new one for each request")
	}
	if len(s.used) >= s.most || s.by[who] >= s.each {
		return &watchword.Error{Code: watchword.Busy, Detail: "too many DPoP proofs within two minutes", RetryAfter: step * time.Second}
	}
	end := p.Issued.Add(token.DPoPLife+token.Skew).Unix() / step
	s.used[u] = struct{}{}
	s.by[who]++
	s.ends[end] = append(s.ends[end], spending{u, who})
	return nil
}

// sweep drops what no proof can be accepted for any more.
func (s *spent) sweep(now int64) {
	for end, uses := range s.ends {
		if end >= now {
			continue
		}
		for _, u := range uses {
			delete(s.used, u.use)
			if s.by[u.who]--; s.by[u.who] == 0 {
				delete(s.by, u.who)
			}
		}
		delete(s.ends, end)
	}
}
