package mqtt

import (
	"cmp"

	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/server/internal/sorted"
	"github.com/watchword-iot/watchword/server/session"
)

// offlineList holds the sessions of a tenant whose clients are not connected, in order of subject and of client identifier,
// so that a page of all or of one subject is read without looking at others. A session is in it exactly while it has persistent
// state and no connection; add and remove are called with its mu held, where that changes.
type offlineList struct {
	mu  lockrank.Mutex[offlineLock]
	all *sorted.Set[*sessionState]
}

func compareOffline(a, b *sessionState) int {
	return cmp.Or(cmp.Compare(a.owner.subject, b.owner.subject), cmp.Compare(a.id, b.id), cmp.Compare(a.number, b.number))
}

func (l *offlineList) add(st *sessionState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all.Add(st)
}

func (l *offlineList) remove(st *sessionState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all.Remove(st)
}

// page returns at most n sessions from a place on; of its subject alone if only is set.
func (l *offlineList) page(from session.OfflinePlace, only bool, n int) []*sessionState {
	l.mu.Lock()
	defer l.mu.Unlock()
	page := l.all.Page(func(st *sessionState) bool {
		return cmp.Or(cmp.Compare(st.owner.subject, from.Subject), cmp.Compare(st.id, from.Client)) < 0
	}, n)
	for i, st := range page {
		if only && st.owner.subject != from.Subject {
			return page[:i]
		}
	}
	return page
}
