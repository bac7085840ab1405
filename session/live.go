package session

import (
	"context"
	"errors"
	"sync"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/recent"
)

// Receiver is a part of the server that remembers what authority depends on, or acts under it.
type Receiver interface {
	// Receive returns when nothing of the receiver goes on under what was before c. It reads the store for what stands
	// now and takes from c only what has changed, so the same change may come again, a change may be missing before it,
	// and a later one may have come first. Where the store cannot be read it withholds what it does not know. Only [Live]
	// calls it. It is safe for concurrent use.
	Receive(ctx context.Context, c watchword.Change) error
}

// Live takes each change of authority to all receivers of this process. It is safe for concurrent use.
type Live struct {
	receivers []Receiver

	mu   sync.Mutex
	past *recent.Sized[object, int64] // the version that all receivers are past
}

// object is what a change is of: its versions are in order.
type object struct {
	tenant watchword.TenantID
	kind   watchword.ChangeKind
	id     string
}

// pastBytes bounds the memory of versions. Of an object that was forgotten a late change is read again.
const pastBytes = 4 << 20

// NewLive returns a Live without receivers. Call [Live.Register] once, before the first change.
func NewLive() *Live {
	return &Live{past: recent.NewSized[object, int64](pastBytes)}
}

// Register says who receives changes, in this order: a receiver that others ask (the server's keys, the directory) comes
// before them.
func (l *Live) Register(receivers ...Receiver) {
	if l.receivers != nil {
		panic("session: the receivers of changes are registered once")
	}
	l.receivers = receivers
}

// Apply takes a change that is in the store to every receiver, one after the other, and returns when all are past it. It
// does not end with ctx: the change stands, though whoever ordered it may have gone. A change that is older than one of the
// same object that all are past does nothing; the same version is read again. Where a receiver reports an error the others
// are told all the same, and the error is returned: the receiver withholds what it does not know, and the change may be
// applied again.
func (l *Live) Apply(ctx context.Context, c watchword.Change) error {
	o := object{c.Tenant, c.Kind, c.ID}
	l.mu.Lock()
	past, known := l.past.Get(o)
	l.mu.Unlock()
	if known && c.Version < past {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for _, r := range l.receivers {
		errs = append(errs, r.Receive(ctx, c))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if past, known := l.past.Get(o); !known || past < c.Version {
		const overhead = 160 // the pair's share of its map
		l.past.Put(o, c.Version, overhead+len(o.tenant)+len(o.id))
	}
	return nil
}
