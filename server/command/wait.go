package command

import (
	"context"
	"errors"

	"github.com/watchword-iot/watchword"
)

// waiters is the callers that wait for one command: changed is closed, and replaced, at
// each change.
type waiters struct {
	count   int
	device  watchword.SubjectID // whose command it is; empty until a watcher has read it
	changed chan struct{}
	row     *Row // its state after the last change; nil before the first
}

// Wait returns the command as soon as it is final, or in its state when ctx
// ends: then with no error. Code: not_found.
func (svc *Service) Wait(ctx context.Context, t watchword.TenantID, id watchword.CommandID) (Row, error) {
	w := svc.Watch(t, id)
	defer w.Close()
	row, err := svc.store.Command(context.WithoutCancel(ctx), t, id)
	if err != nil {
		return row, err
	}
	return w.Wait(ctx, row), nil
}

// Watcher waits for one command: it is created before the state is
// read, so that no change is missed.
type Watcher struct {
	svc *Service
	key commandRef
	w   *waiters
}

// commandRef is a command of a tenant.
type commandRef struct {
	tenant watchword.TenantID
	id     watchword.CommandID
}

// Watch begins to watch a command, which need not be there yet. Close the watch.
func (svc *Service) Watch(t watchword.TenantID, id watchword.CommandID) *Watcher {
	k := commandRef{t, id}
	return &Watcher{svc, k, svc.addWaiter(k)}
}

// Close ends the watch.
func (w *Watcher) Close() { w.svc.removeWaiter(w.key, w.w) }

// Wait returns the command as soon as it is final, or in its state when ctx ends.
// row is how it stood at some moment since the watch began.
func (w *Watcher) Wait(ctx context.Context, row Row) Row {
	for {
		w.svc.mu.Lock()
		changed := w.w.changed
		w.w.device = row.Device
		if now := w.w.row; now != nil {
			row = *now
		}
		w.svc.mu.Unlock()
		if row.State.Final() {
			return row
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return row
		}
	}
}

func (svc *Service) addWaiter(k commandRef) *waiters {
	svc.mu.Lock()
	defer svc.mu.Unlock()
	w := svc.waiters[k]
	if w == nil {
		w = &waiters{changed: make(chan struct{})}
		svc.waiters[k] = w
	}
	w.count++
	return w
}

func (svc *Service) removeWaiter(k commandRef, w *waiters) {
	svc.mu.Lock()
	defer svc.mu.Unlock()
	if w.count--; w.count == 0 {
		delete(svc.waiters, k)
	}
}

// HandleChange notifies the requests that wait for a command of a device that has changed of the command's current state:
// the end of a device ends its commands. Code: unavailable if the store cannot be read.
func (svc *Service) HandleChange(ctx context.Context, c watchword.Change) error {
	if c.Kind != watchword.SubjectChanged && c.Kind != watchword.SubjectDeleted {
		return nil
	}
	var ids []watchword.CommandID
	svc.mu.Lock()
	for k, w := range svc.waiters {
		if k.tenant == c.Tenant && (w.device == watchword.SubjectID(c.ID) || w.device == "") {
			ids = append(ids, k.id)
		}
	}
	svc.mu.Unlock()
	var errs []error
	for _, id := range ids {
		row, err := svc.store.Command(ctx, c.Tenant, id)
		switch {
		case err == nil && row.Device == watchword.SubjectID(c.ID) && row.State.Final():
			svc.notify(row)
		case err != nil && watchword.CodeOf(err) != watchword.NotFound: // not stored yet
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// notify wakes the requests that wait for r. A notified final state stays, if an earlier state arrives after it.
func (svc *Service) notify(r Row) {
	svc.observe(r)
	svc.mu.Lock()
	defer svc.mu.Unlock()
	if w := svc.waiters[commandRef{r.Tenant, r.ID}]; w != nil {
		if w.row == nil || r.State.Final() || !w.row.State.Final() {
			now := r // here, so that nothing is copied if no request waits
			w.row = &now
		}
		close(w.changed)
		w.changed = make(chan struct{})
	}
}

// observe reports a command that entered a state.
func (svc *Service) observe(r Row) {
	if svc.opts.Observe != nil {
		svc.opts.Observe(r)
	}
}
