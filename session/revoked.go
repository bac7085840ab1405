package session

import (
	"sync"
	"sync/atomic"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/recent"
)

var errRevoked = watchword.Refuse(watchword.TokenRevoked, "this token was revoked")

// revoked is the tokens that were revoked last: for papers that were admitted just
// before. Every later one is refused by the record, so the memory may be short.
type revoked struct {
	some atomic.Bool // so that the usual case costs no lock
	mu   sync.Mutex
	last *recent.Map[revokedKey, struct{}]
}

type revokedKey struct {
	tenant watchword.TenantID
	jti    string
}

// The guard remembers that many revoked tokens at least.
const revokedMemory = 16 << 10

func (r *revoked) add(t watchword.TenantID, jti string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		r.last = recent.New[revokedKey, struct{}](revokedMemory)
	}
	r.last.Put(revokedKey{t, jti}, struct{}{})
	r.some.Store(true)
}

func (r *revoked) has(t watchword.TenantID, jti string) bool {
	if !r.some.Load() {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.last.Get(revokedKey{t, jti})
	return ok
}
