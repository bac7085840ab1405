package mqtt

import (
	"context"
	"log/slog"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/server/bus"
)

// HandleChange has it asked again which retained messages may be given: of a subject that changed, or of all where policies
// changed. When it returns, none is given any more that its owner may no longer publish.
func (b *Broker) HandleChange(_ context.Context, c watchword.Change) error {
	switch c.Kind {
	case watchword.SubjectChanged, watchword.SubjectDeleted:
		b.authorityChanged(c.Tenant, watchword.SubjectID(c.ID))
	case watchword.PoliciesChanged:
		b.authorityChanged(c.Tenant, "")
	}
	return nil
}

// authorityChanged is of a subject, or of policies where id is empty.
func (b *Broker) authorityChanged(t watchword.TenantID, id watchword.SubjectID) {
	b.mu.Lock()
	tn := b.tenants[t]
	b.mu.Unlock()
	if tn == nil { // no client of this tenant was ever here, and nothing is retained
		return
	}
	b.retainedPurge.enqueue(tn, tn.bus.Retained.OwnerChanged(id))
}

// retainedPurge finds owners that were revoked, deleted or enrolled again, and removes their
// retained messages.
type retainedPurge struct {
	wake chan struct{}

	mu      lockrank.Mutex[purgeLock]
	pending []purgeCandidate // owners to check
}

type purgeCandidate struct {
	tenant *tenant
	owner  *bus.RetainedOwner
}

func (p *retainedPurge) enqueue(tn *tenant, some []*bus.RetainedOwner) {
	if len(some) == 0 {
		return
	}
	p.mu.Lock()
	for _, o := range some {
		p.pending = append(p.pending, purgeCandidate{tn, o})
	}
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *retainedPurge) takePending() []purgeCandidate {
	p.mu.Lock()
	defer p.mu.Unlock()
	asked := p.pending
	p.pending = nil
	return asked
}

// purgeRetained runs until the broker closes.
func (b *Broker) purgeRetained() {
	for {
		select {
		case <-b.retainedPurge.wake:
		case <-b.deps.Bus.OwnersRemoved():
		case <-b.ctx.Done():
			return
		}
		for _, d := range b.retainedPurge.takePending() {
			if err := d.tenant.bus.Retained.CheckOwner(b.ctx, d.owner, b.ownerAuthority(d.tenant.id)); err != nil && b.ctx.Err() == nil {
				b.options.Log.Warn("the owner of retained messages cannot be asked for", slog.String("subject", string(d.owner.Owner().Subject)), slog.Any("err", err))
			}
		}
		for _, tn := range b.allTenants() {
			if tn.bus.Retained.HasRemovedOwners() {
				b.forgetRetained(tn, (*bus.Retained).OwnerRemoved)
			}
		}
	}
}

// enqueueUncheckedOwners enqueues the owners without a decision: at start, after a change of policy, and
// after the store was unavailable.
func (b *Broker) enqueueUncheckedOwners(tn *tenant) {
	b.retainedPurge.enqueue(tn, tn.bus.Retained.UncheckedOwners())
}
