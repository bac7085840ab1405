package twin

import (
	"context"
	"sync"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
)

// document is one of the two documents of a device.
type document struct {
	tenant watchword.TenantID
	device watchword.SubjectID
	field  string
}

// documentLocks are the locks of the documents that are being replaced. One is held while the document is stored and
// published, so that the last one published is the one stored.
type documentLocks struct {
	mu    sync.Mutex
	locks map[document]*documentLock
}

type documentLock struct {
	held  chan struct{} // has a value while the lock is held
	users int           // holders of the lock and waiters for it; under documentLocks.mu
}

// do calls f while it holds the lock of d. It returns early where ctx ends before f runs.
func (l *documentLocks) do(ctx context.Context, d document, f func() error) error {
	lock := l.use(d)
	defer l.release(d, lock)
	lockrank.Block()
	select {
	case lock.held <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-lock.held }()
	return f()
}

func (l *documentLocks) use(d document) *documentLock {
	l.mu.Lock()
	defer l.mu.Unlock()
	lock := l.locks[d]
	if lock == nil {
		lock = &documentLock{held: make(chan struct{}, 1)}
		if l.locks == nil {
			l.locks = map[document]*documentLock{}
		}
		l.locks[d] = lock
	}
	lock.users++
	return lock
}

func (l *documentLocks) release(d document, lock *documentLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lock.users--; lock.users == 0 {
		delete(l.locks, d)
	}
}
