package authn

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/token"
)

// DPoPRequest is a DPoP proof as an endpoint got it: what stood in the header, and the
// request that it stood in.
type DPoPRequest struct {
	Proof  string
	Method string
	Path   string // of the URL, escaped as it was sent, without query
}

// How long a nonce is valid: in the window that it was made in, and in the next.
const nonceWindow = time.Minute

// The most proofs that are remembered for one window, and which part of them one subject
// alone may have, whatever keys its tokens are bound to ([fair.Share]: the less is free, the less
// each may have). A subject that exceeds its share is refused (busy): no proof is forgotten to make room.
const (
	maxProofsPerWindow = 256 << 10
	subjectShare       = 8
)

// dpopVerifier checks DPoP proofs (RFC 9449): each carries a nonce of this process, so
// that none is valid after a restart, and is accepted once. A nonce is a hash of its window of time:
// nothing is stored until a proof holds.
type dpopVerifier struct {
	origins token.Origins // beside the issuers
	issuers watchword.IssuerSource
	key     atomic.Pointer[[32]byte]

	mu    sync.Mutex
	used  [2]usedProofs // by window modulo 2
	max   int
	share int
}

// subjectRef is the subject of the token that a proof belongs to.
type subjectRef struct {
	tenant watchword.TenantID
	id     watchword.SubjectID
}

// usedProofs is the proofs of one window.
type usedProofs struct {
	window    int64
	proofs    map[proofID]struct{}
	bySubject map[subjectRef]int
}

// proofID is one proof that was used: the tenant that it was used in, its key, and a hash of its jti.
type proofID struct {
	tenant watchword.TenantID
	key    watchword.KeyID
	jti    [16]byte
}

func newDPoPVerifier(origins token.Origins, issuers watchword.IssuerSource) *dpopVerifier {
	p := &dpopVerifier{origins: origins, issuers: issuers, max: maxProofsPerWindow, share: subjectShare}
	p.reset()
	return p
}

// reset replaces the nonce key: no earlier nonce is accepted, so no used proof need be remembered. It is called with mu
// held, or before p is shared.
func (p *dpopVerifier) reset() {
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails
	p.key.Store(&key)
	p.used = [2]usedProofs{}
}

func window(now time.Time) int64 { return now.Unix() / int64(nonceWindow/time.Second) }

// nonceForWindow returns the nonce of one window.
func (p *dpopVerifier) nonceForWindow(w int64) string {
	h := hmac.New(sha256.New, p.key.Load()[:])
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(w))
	h.Write(b[:])
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:16])
}

// dpopProof is one that holds and is not yet spent.
type dpopProof struct {
	token.DPoP
	window int64
}

// verify checks a proof for one request; access is the token beside it, or empty.
// Codes: dpop_invalid, dpop_nonce.
func (p *dpopVerifier) verify(s DPoPRequest, access string, now time.Time) (dpopProof, error) {
	origins := token.NewOrigins(p.issuers().URLs(now)...)
	maps.Copy(origins, p.origins)
	d, err := origins.VerifyDPoP(s.Proof, s.Method, s.Path, access, now)
	if err != nil {
		return dpopProof{}, err
	}
	w, err := p.checkNonce(d.Nonce, now)
	if err != nil {
		return dpopProof{}, err
	}
	return dpopProof{d, w}, nil
}

// checkNonce returns the window of a nonce, which is the present one or the one before. Code: dpop_nonce.
func (p *dpopVerifier) checkNonce(nonce string, now time.Time) (int64, error) {
	for w, i := window(now), int64(0); i < 2; i++ {
		if subtle.ConstantTimeCompare([]byte(nonce), []byte(p.nonceForWindow(w-i))) == 1 {
			return w - i, nil
		}
	}
	return 0, watchword.Refuse(watchword.DPoPNonce, "nonce must be the value of the response header DPoP-Nonce; see docs/errors.md")
}

// consume marks a proof as used by the subject of its token. It is called after all other checks, so that only subjects with a
// valid token fill the memory, each its share of it. Codes: dpop_invalid, dpop_nonce, busy.
func (p *dpopVerifier) consume(who subjectRef, d dpopProof, now time.Time) error {
	sum := sha256.Sum256([]byte(d.JTI))
	one := proofID{who.tenant, d.Key, [16]byte(sum[:])}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.used {
		if _, again := p.used[i].proofs[one]; again && p.used[i].window >= window(now)-1 {
			return watchword.Refuse(watchword.DPoPInvalid, "the DPoP proof is not valid: jti was used before; see docs/errors.md")
		}
	}
	s := &p.used[d.window&1]
	if s.window < d.window {
		*s = usedProofs{window: d.window, proofs: map[proofID]struct{}{}, bySubject: map[subjectRef]int{}}
	}
	switch {
	case s.window > d.window: // its place was taken while it was checked
		if s.window > window(now)+1 { // or this clock was ahead: nothing would pass until it is there again
			p.reset()
		}
		return watchword.Refuse(watchword.DPoPNonce, "nonce must be the value of the response header DPoP-Nonce; see docs/errors.md")
	case len(s.proofs) >= p.max:
		return &watchword.Error{Code: watchword.Busy, Detail: "too many DPoP proofs within a minute", RetryAfter: nonceWindow}
	case !fair.Share(s.bySubject[who], len(s.proofs), p.max, p.share):
		return &watchword.Error{Code: watchword.Busy, Detail: "too many DPoP proofs of this subject within a minute", RetryAfter: nonceWindow}
	}
	s.proofs[one] = struct{}{}
	s.bySubject[who]++
	return nil
}

// checkDPoP is check of a proof within the concurrency limit. Codes: those of check, busy.
func (svc *Service) checkDPoP(ctx context.Context, s DPoPRequest, access string, now time.Time) (p dpopProof, err error) {
	err = svc.semaphore.Do(ctx, func() (err error) {
		p, err = svc.dpop.verify(s, access, now)
		return err
	})
	return p, err
}

// DPoPNonce returns what a DPoP proof must carry now: for the header DPoP-Nonce.
func (svc *Service) DPoPNonce(now time.Time) string { return svc.dpop.nonceForWindow(window(now)) }
