package session

import (
	"sync"
	"sync/atomic"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/cache"
)

var errRevoked = watchword.Refuse(watchword.TokenRevoked, "this token was revoked")

// revokedTokens remembers the tokens that were revoked last, for credentials that were verified
// just before. Later ones are refused by the record in the store, so a small memory is enough.
type revokedTokens struct {
	nonEmpty atomic.Bool // lets the common case skip the lock
	mu       sync.Mutex
	recent   *cache.Map[revokedKey, struct{}]
}

type revokedKey struct {
	tenant watchword.TenantID
	jti    string
}

// revokedCapacity is how many revoked tokens are remembered at least.
const revokedCapacity = 16 << 10

func (r *revokedTokens) add(t watchword.TenantID, jti string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.recent == nil {
		r.recent = cache.New[revokedKey, struct{}](revokedCapacity)
	}
	r.recent.Put(revokedKey{t, jti}, struct{}{})
	r.nonEmpty.Store(true)
}

func (r *revokedTokens) has(t watchword.TenantID, jti string) bool {
	if !r.nonEmpty.Load() {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.recent.Get(revokedKey{t, jti})
	return ok
}
