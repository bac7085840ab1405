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

// errKeyNotBound marks a refusal where the proof is good, but is not this token's: to
// OAuth that is an invalid token (RFC 9449 §7.1).
var errKeyNotBound = errors.New("the token is not bound to this key")

// verifyProof checks the DPoP proof of a request for a token that was checked (RFC 9449
// §4.3, §7.1), and spends it. Codes: dpop_invalid, dpop_nonce, busy.
func (v *Verifier) verifyProof(r *http.Request, raw string, t *Token, now time.Time) (nonce string, err error) {
	headers := r.Header.Values("DPoP")
	switch {
	case len(v.bases) == 0:
		return "", watchword.Wrap(errKeyNotBound, watchword.DPoPInvalid, "this service takes no DPoP proofs: it does not know its own address")
	case len(headers) != 1:
		return "", watchword.Refuse(watchword.DPoPInvalid, "send one DPoP header with one proof")
	case t.Bound == "":
		return "", watchword.Wrap(errKeyNotBound, watchword.DPoPInvalid, "the token is not bound to a key: send it as Bearer")
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
		return p.Nonce, watchword.Wrap(errKeyNotBound, watchword.DPoPInvalid, "the proof is not of the key that the token is bound to")
	}
	if v.nonces != nil && !v.nonces.valid(p.Nonce, now) {
		return p.Nonce, watchword.Refuse(watchword.DPoPNonce, "sign the proof again with the nonce of this answer's DPoP-Nonce")
	}
	return p.Nonce, v.usedProofs.consume(t.Subject, p, now)
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

// maxSubjectShare is which part of the memory one subject alone may fill.
const maxSubjectShare = 4

// usedProofs remembers the proofs that were used, until their time is over. It never
// forgets earlier: when it is full, or one subject has its share ([fair.Share]), it refuses.
// An entry takes about 100 bytes. It is safe for concurrent use.
type usedProofs struct {
	max int // in all

	mu        sync.Mutex
	used      map[proofID]struct{}
	bySubject map[watchword.SubjectID]*subjectShare
	byExpiry  map[int64][]usedProof // by the time after which they may go, in steps
	swept     int64                 // the last step that went away; a proof that ended in it or before may have been used
}

// subjectShare is what one subject has, whatever keys its tokens are bound to.
type subjectShare struct {
	subject watchword.SubjectID
	count   int
}

// usedProof is a use, and whose share it takes.
type usedProof struct {
	proofID
	share *subjectShare
}

// proofID is one proof: half of the SHA-256 of its key and jti. A caller that finds two alike
// (2^64 tries) has the second of their own refused.
type proofID [sha256.Size / 2]byte

func proofIDOf(p token.DPoP) proofID {
	sum := sha256.Sum256([]byte(string(p.Key) + "\x00" + p.JTI)) // no key has a NUL
	return proofID(sum[:])
}

// expiryStep is how many seconds go away at once.
const expiryStep = 16

func newUsedProofs(limit int) *usedProofs {
	return &usedProofs{max: limit, used: map[proofID]struct{}{}, bySubject: map[watchword.SubjectID]*subjectShare{}, byExpiry: map[int64][]usedProof{}, swept: math.MinInt64}
}

// consume spends a proof. Codes: dpop_invalid where it was spent before, or may have been
// (the clock went back), busy.
func (s *usedProofs) consume(who watchword.SubjectID, p token.DPoP, now time.Time) error {
	u := proofIDOf(p)
	end := p.Issued.Add(token.DPoPLifetime+token.Skew).Unix() / expiryStep
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep(now.Unix() / expiryStep)
	if end <= s.swept {
		return watchword.Refuse(watchword.DPoPInvalid, "the DPoP proof is from before what this service remembers: its clock went back")
	}
	if _, twice := s.used[u]; twice {
		return watchword.Refuse(watchword.DPoPInvalid, "the DPoP proof was used before: sign a new one for each request")
	}
	of := s.bySubject[who]
	if of == nil {
		of = &subjectShare{subject: who}
	}
	if !fair.Share(of.count, len(s.used), s.max, maxSubjectShare) {
		return &watchword.Error{Code: watchword.Busy, Detail: "too many DPoP proofs within two minutes", RetryAfter: expiryStep * time.Second}
	}
	s.bySubject[who] = of
	of.count++
	s.used[u] = struct{}{}
	s.byExpiry[end] = append(s.byExpiry[end], usedProof{u, of})
	return nil
}

// sweep drops what no proof can be accepted for any more.
func (s *usedProofs) sweep(now int64) {
	if now-1 <= s.swept {
		return
	}
	s.swept = now - 1
	for end, uses := range s.byExpiry {
		if end >= now {
			continue
		}
		for _, u := range uses {
			delete(s.used, u.proofID)
			if u.share.count--; u.share.count == 0 {
				delete(s.bySubject, u.share.subject)
			}
		}
		delete(s.byExpiry, end)
	}
}
