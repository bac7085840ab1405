package mqtt

import (
	"maps"
	"slices"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/internal/sorted"
)

// tenant holds the sessions, subscriptions and retained messages of one tenant.
type tenant struct {
	id  watchword.TenantID
	bus *bus.Tenant

	mu         lockrank.Mutex[tenantLock]
	clients    map[string]*sessionState // by client identifier
	persistent map[watchword.SubjectID]int

	offline offlineList
}

// tenant returns the state of a tenant.
func (b *Broker) tenant(t watchword.TenantID) *tenant {
	b.mu.Lock()
	defer b.mu.Unlock()
	tn := b.tenants[t]
	if tn == nil {
		tn = &tenant{id: t, bus: b.deps.Bus.Tenant(t), clients: map[string]*sessionState{}, persistent: map[watchword.SubjectID]int{}, offline: offlineList{all: sorted.NewSet(compareOffline)}}
		b.tenants[t] = tn
	}
	return tn
}

func (b *Broker) allTenants() []*tenant {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Collect(maps.Values(b.tenants))
}

// client returns the session of a client identifier; nil if there is none.
func (tn *tenant) client(id string) *sessionState {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	return tn.clients[id]
}

// putClient registers st under its client identifier. mu is held.
func (tn *tenant) putClient(st *sessionState) {
	tn.clients[st.id] = st
	if st.persistent != nil {
		st.counted = true
		tn.persistent[st.owner.subject]++
	}
}

// removeClient removes an ended session; a newer one of the same identifier stays.
func (tn *tenant) removeClient(st *sessionState) {
	st.mu.Lock()
	over := st.removed
	st.mu.Unlock()
	if !over {
		return
	}
	tn.mu.Lock()
	defer tn.mu.Unlock()
	if tn.clients[st.id] == st {
		delete(tn.clients, st.id)
	}
	if st.counted {
		st.counted = false
		if tn.persistent[st.owner.subject]--; tn.persistent[st.owner.subject] == 0 {
			delete(tn.persistent, st.owner.subject)
		}
	}
}
