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
	"time"

	"github.com/watchword-iot/watchword"
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

// The most proofs that are remembered for one window, and of one key. Who is over
// must wait: nothing is forgotten to make room.
const (
	windowProofs = 256 << 10
	keyProofs    = 32 << 10
)

// proofs checks DPoP proofs (RFC 9449): each carries a nonce of this process, so
// that none outlives it, and counts once. A nonce is a hash of its window of time:
// nothing is stored until a proof holds.
type proofs struct {
	origins token.Origins
	key     [32]byte

	mu    sync.Mutex
	seen  [2]seen // by window modulo 2
	most  int
	byKey int
}

// seen is the proofs of one window.
type seen struct {
	window int64
	jtis   map[watchword.KeyID]map[[16]byte]struct{}
	n      int
}

func newProofs(origins token.Origins) *proofs {
	p := &proofs{origins: origins, most: windowProofs, byKey: keyProofs}
	_, _ = rand.Read(p.key[:]) // never fails
	return p
}

func window(now time.Time) int64 { return now.Unix() / int64(nonceWindow/time.Second) }

// nonce returns the nonce of one window.
func (p *proofs) nonce(w int64) string {
	h := hmac.New(sha256.New, p.key[:])
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

// spend makes a proof count no more. It is called last of all checks, so that only
// those who hold a key that counts here fill the memory. Codes: dpop_invalid, busy.
func (p *proofs) spend(d proof, now time.Time) error {
	sum := sha256.Sum256([]byte(d.JTI))
	jti := [16]byte(sum[:])
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.seen {
		if _, again := p.seen[i].jtis[d.Key][jti]; again && p.seen[i].window >= window(now)-1 {
			return watchword.Refuse(watchword.DPoPInvalid, "the DPoP proof does not hold: it was used before")
		}
	}
	s := &p.seen[d.window&1]
	if s.window < d.window {
		*s = seen{window: d.window, jtis: map[watchword.KeyID]map[[16]byte]struct{}{}}
	}
	switch {
	case s.window > d.window: // its place was taken while it was checked
		return watchword.Refuse(watchword.DPoPNonce, "the proof must carry the nonce of the header DPoP-Nonce")
	case s.n >= p.most:
		return &watchword.Error{Code: watchword.Busy, Detail: "more proofs came within a minute than are remembered", RetryAfter: nonceWindow}
	case len(s.jtis[d.Key]) >= p.byKey:
		return &watchword.Error{Code: watchword.Busy, Detail: "more proofs of this key came within a minute than are remembered", RetryAfter: nonceWindow}
	}
	if s.jtis[d.Key] == nil {
		s.jtis[d.Key] = map[[16]byte]struct{}{}
	}
	s.jtis[d.Key][jti] = struct{}{}
	s.n++
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
