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

// errKeyNotBound marks a refusal of a valid proof by another key than the token's, which OAuth reports as an invalid token
// (RFC 9449 §7.1).
var errKeyNotBound = errors.New("the token is not bound to this key")

// verifyProof verifies the DPoP proof of a request for a verified token (RFC 9449 §4.3, §7.1), and marks it used. Codes:
// dpop_invalid, dpop_nonce, busy.
func (v *Verifier) verifyProof(r *http.Request, raw string, t *Token, now time.Time) (nonce string, err error) {
	headers := r.Header.Values("DPoP")
	switch {
	case len(v.bases) == 0:
		return "", watchword.Wrap(errKeyNotBound, watchword.DPoPInvalid, "this service does not accept DPoP proofs, since verify.PublicURL is not set")
	case len(headers) != 1:
		return "", watchword.Refuse(watchword.DPoPInvalid, "exactly one DPoP header with one proof is required")
	case t.Bound == "":
		return "", watchword.Wrap(errKeyNotBound, watchword.DPoPInvalid, "the token is a bearer token (no cnf): send it as Bearer, not as DPoP")
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
		return p.Nonce, watchword.Wrap(errKeyNotBound, watchword.DPoPInvalid, "cnf.jkt of the token must be the key that signed the DPoP proof")
	}
	if v.nonces != nil && !v.nonces.valid(p.Nonce, now) {
		return p.Nonce, watchword.Refuse(watchword.DPoPNonce, "nonce must be the value of the response header DPoP-Nonce")
	}
	return p.Nonce, v.usedProofs.consume(t.Subject, p, now)
}

// requestPath returns the path of the request line, escaped as it was sent: a mux may have shortened the request's URL, but
// does not change its request line.
func requestPath(r *http.Request) string {
	target, _, _ := strings.Cut(r.RequestURI, "?")
	if strings.HasPrefix(target, "/") {
		return target
	}
	if u, err := url.Parse(target); err == nil && u.Host != "" { // absolute form (RFC 9112 §3.2.2)
		return u.EscapedPath()
	}
	return "/" + strings.TrimPrefix(r.URL.EscapedPath(), "/")
}

// maxSubjectShare is the divisor of the memory that gives the maximum share of one subject.
const maxSubjectShare = 4

// usedProofs is the set of used proofs that have not expired. It never drops a proof earlier: when it is full, or a subject
// has reached its share ([fair.Share]), it refuses. An entry takes about 100 bytes. It is safe for concurrent use.
type usedProofs struct {
	max int // of all subjects

	mu        sync.Mutex
	used      map[proofID]struct{}
	bySubject map[watchword.SubjectID]*subjectShare
	byExpiry  map[int64][]usedProof // by expiry, in steps
	swept     int64                 // the last step that was removed; a proof that expired in it or before may have been used
}

// subjectShare is the number of proofs of one subject, whatever keys its tokens are bound to.
type subjectShare struct {
	subject watchword.SubjectID
	count   int
}

// usedProof is a used proof and the subject to whose share it counts.
type usedProof struct {
	proofID
	share *subjectShare
}

// proofID identifies a proof: half of the SHA-256 of its key and jti. A client that finds a collision (2^64 tries) gains
// nothing: its second proof is refused.
type proofID [sha256.Size / 2]byte

func proofIDOf(p token.DPoP) proofID {
	sum := sha256.Sum256([]byte(string(p.Key) + "\x00" + p.JTI)) // no key contains NUL
	return proofID(sum[:])
}

// expiryStep is the interval in seconds in which expired proofs are removed together.
const expiryStep = 16

func newUsedProofs(limit int) *usedProofs {
	return &usedProofs{max: limit, used: map[proofID]struct{}{}, bySubject: map[watchword.SubjectID]*subjectShare{}, byExpiry: map[int64][]usedProof{}, swept: math.MinInt64}
}

// consume marks a proof used. Codes: dpop_invalid if it was used before, or may have been (the clock was set back), busy.
func (s *usedProofs) consume(who watchword.SubjectID, p token.DPoP, now time.Time) error {
	u := proofIDOf(p)
	end := p.Issued.Add(token.DPoPLifetime+token.Skew).Unix() / expiryStep
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep(now.Unix() / expiryStep)
	if end <= s.swept {
		return watchword.Refuse(watchword.DPoPInvalid, "iat of the DPoP proof is older than what this service remembers: its clock was set back")
	}
	if _, twice := s.used[u]; twice {
		return watchword.Refuse(watchword.DPoPInvalid, "jti of the DPoP proof was used before: sign a new proof for each request")
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

// sweep removes the proofs that have expired.
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
