package office

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/token"
)

// Shown is a DPoP proof as a door got it: what stood in the header, and the
// request that it stood in.
type Shown struct {
	Proof  string
	Method string
	Path   string // as it stands in the URL, without query
}

// How long a nonce counts: in the window that it was made in, and in the next.
const nonceWindow = time.Minute

// The most proofs that are remembered for one window, and which part of them one subject
// alone may have, whatever keys its tokens are bound to ([fair.Share]: the less is free, the less
// each may have). Who is over must wait: nothing is forgotten to make room.
const (
	windowProofs = 256 << 10
	proofsPart   = 8
)

// proofs checks DPoP proofs (RFC 9449): each carries a nonce of this process, so
// that none outlives it, and counts once. A nonce is a hash of its window of time:
// nothing is stored until a proof holds.
type proofs struct {
	origins token.Origins
	key     atomic.Pointer[[32]byte]

	mu   sync.Mutex
	seen [2]seen // by window modulo 2
	most int
	part int
}

// bearer is whose token a proof stands beside.
type bearer struct {
	tenant watchword.TenantID
	id     watchword.SubjectID
}

// seen is the proofs of one window.
type seen struct {
	window int64
	jtis   map[spentProof]struct{}
	of     map[bearer]int
}

// spentProof is one proof that was used: its key, and a hash of its jti.
type spentProof struct {
	key watchword.KeyID
	jti [16]byte
}

func newProofs(origins token.Origins) *proofs {
	p := &proofs{origins: origins, most: windowProofs, part: proofsPart}
	p.begin()
	return p
}

// begin makes nonces anew: none that was given out before counts, so nothing that
// was spent need be remembered. It is called with mu held, or before anybody knows p.
func (p *proofs) begin() {
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails
	p.key.Store(&key)
	p.seen = [2]seen{}
}

func window(now time.Time) int64 { return now.Unix() / int64(nonceWindow/time.Second) }

// nonce returns the nonce of one window.
func (p *proofs) nonce(w int64) string {
	h := hmac.New(sha256.New, p.key.Load()[:])
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(w))
	h.Write(b[:])
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:16])
}

// proof is one that holds and is not yet spent.
type proof struct {
	token.DPoP
	window int64
}

// check checks a proof for one request; access is the token beside it, or empty.
// Codes: dpop_invalid, dpop_nonce.
func (p *proofs) check(s Shown, access string, now time.Time) (proof, error) {
	d, err := p.origins.VerifyDPoP(s.Proof, s.Method, s.Path, access, now)
	if err != nil {
		return proof{}, err
	}
	for w, i := window(now), int64(0); i < 2; i++ {
		if subtle.ConstantTimeCompare([]byte(d.Nonce), []byte(p.nonce(w-i))) == 1 {
			return proof{d, w - i}, nil
		}
	}
	return proof{}, watchword.Refuse(watchword.DPoPNonce, "the proof must carry the nonce of the header DPoP-Nonce")
}

// spend makes a proof beside a token of who count no more. It is called last of all
// checks, so that only those whose token counts here fill the memory, each a share of
// it. Codes: dpop_invalid, dpop_nonce, busy.
func (p *proofs) spend(who bearer, d proof, now time.Time) error {
	sum := sha256.Sum256([]byte(d.JTI))
	one := spentProof{d.Key, [16]byte(sum[:])}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.seen {
		if _, again := p.seen[i].jtis[one]; again && p.seen[i].window >= window(now)-1 {
			return watchword.Refuse(watchword.DPoPInvalid, "the DPoP proof does not hold: it was used before")
		}
	}
	s := &p.seen[d.window&1]
	if s.window < d.window {
		*s = seen{window: d.window, jtis: map[spentProof]struct{}{}, of: map[bearer]int{}}
	}
	switch {
	case s.window > d.window: // its place was taken while it was checked
		if s.window > window(now)+1 { // or this clock was ahead: nothing would pass until it is there again
			p.begin()
		}
		return watchword.Refuse(watchword.DPoPNonce, "the proof must carry the nonce of the header DPoP-Nonce")
	case len(s.jtis) >= p.most:
		return &watchword.Error{Code: watchword.Busy, Detail: "more proofs came within a minute than are remembered", RetryAfter: nonceWindow}
	case !fair.Share(s.of[who], len(s.jtis), p.most, p.part):
		return &watchword.Error{Code: watchword.Busy, Detail: "more proofs of this subject came within a minute than are remembered", RetryAfter: nonceWindow}
	}
	s.jtis[one] = struct{}{}
	s.of[who]++
	return nil
}

// proves is check of a proof in its turn. Codes: those of check, busy.
func (o *Office) proves(ctx context.Context, s Shown, access string, now time.Time) (p proof, err error) {
	err = o.room.Do(ctx, func() (err error) {
		p, err = o.proofs.check(s, access, now)
		return err
	})
	return p, err
}

// Nonce returns what a DPoP proof must carry now: for the header DPoP-Nonce.
func (o *Office) Nonce(now time.Time) string { return o.proofs.nonce(window(now)) }
