package session

import (
	"context"
	"errors"
	"sync"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/cache"
)

// ChangeHandler is a part of the server that remembers what authority depends on, or acts under it.
type ChangeHandler interface {
	// HandleChange returns when nothing of the receiver continues under the state before c. It reads the current state from
	// the store and takes from c only which object has changed, so the same change may arrive again, a change may be
	// missing before it, and a later one may have arrived first. If the store cannot be read it withholds what it does not
	// know. Only [Live] calls it. It is safe for concurrent use.
	HandleChange(ctx context.Context, c watchword.Change) error
}

// Live takes each change of authority to all receivers of this process. It is safe for concurrent use.
type Live struct {
	handlers []ChangeHandler

	mu      sync.Mutex
	applied *cache.Sized[changeKey, int64] // the version that all receivers are past
}

// changeKey is what a change is of: its versions are in order.
type changeKey struct {
	tenant watchword.TenantID
	kind   watchword.ChangeKind
	id     string
}

// appliedBytes bounds the memory of versions. Of an object that was forgotten a late change is read again.
const appliedBytes = 4 << 20

// NewLive returns a Live without receivers. Call [Live.Register] once, before the first change.
func NewLive() *Live {
	return &Live{applied: cache.NewSized[changeKey, int64](appliedBytes)}
}

// Register sets the receivers of changes, in this order: a receiver that others query (the server's keys, the directory)
// precedes them.
func (l *Live) Register(handlers ...ChangeHandler) {
	if l.handlers != nil {
		panic("session: the receivers of changes are registered once")
	}
	l.handlers = handlers
}

// Apply passes a change that is in the store to every receiver, one after the other, and returns when all have processed
// it. It does not end with ctx: the change is effective, though its caller may have gone away. A change that is older than
// one of the same object that all have processed does nothing; the same version is read again. If a receiver reports an
// error the others are called nevertheless, and the error is returned: the receiver withholds what it does not know, and
// the change may be applied again.
func (l *Live) Apply(ctx context.Context, c watchword.Change) error {
	o := changeKey{c.Tenant, c.Kind, c.ID}
	l.mu.Lock()
	past, known := l.applied.Get(o)
	l.mu.Unlock()
	if known && c.Version < past {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for _, r := range l.handlers {
		errs = append(errs, r.HandleChange(ctx, c))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if past, known := l.applied.Get(o); !known || past < c.Version {
		const overhead = 160 // the pair's share of its map
		l.applied.Put(o, c.Version, overhead+len(o.tenant)+len(o.id))
	}
	return nil
}
