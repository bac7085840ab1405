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
	device  deviceRef // whose command it is; zero while nobody has said
	changed chan struct{}
	row     *Row // its state after the last change; nil before the first
}

// Wait returns the command as soon as it is final, or in its state when ctx
// ends: then with no error. Code: not_found.
func (svc *Service) Wait(ctx context.Context, t watchword.TenantID, id watchword.CommandID) (Row, error) {
	w := svc.Watch(id)
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
	id  watchword.CommandID
	w   *waiters
}

// Watch begins to watch a command, which need not be there yet. Close the watch.
func (svc *Service) Watch(id watchword.CommandID) *Watcher {
	return &Watcher{svc, id, svc.addWaiter(id)}
}

// Close ends the watch.
func (w *Watcher) Close() { w.svc.removeWaiter(w.id, w.w) }

// Wait returns the command as soon as it is final, or in its state when ctx ends.
// row is how it stood at some moment since the watch began.
func (w *Watcher) Wait(ctx context.Context, row Row) Row {
	for {
		w.svc.mu.Lock()
		changed := w.w.changed
		w.w.device = deviceRef{row.Tenant, row.Device}
		if now := w.w.row; now != nil && now.Tenant == row.Tenant {
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

func (svc *Service) addWaiter(id watchword.CommandID) *waiters {
	svc.mu.Lock()
	defer svc.mu.Unlock()
	w := svc.waiters[id]
	if w == nil {
		w = &waiters{changed: make(chan struct{})}
		svc.waiters[id] = w
	}
	w.count++
	return w
}

func (svc *Service) removeWaiter(id watchword.CommandID, w *waiters) {
	svc.mu.Lock()
	defer svc.mu.Unlock()
	if w.count--; w.count == 0 {
		delete(svc.waiters, id)
	}
}

// Receive tells those who wait for a command of a device that has changed how the command stands now: the end of a
// device ends its commands. Code: unavailable where the store cannot be read.
func (svc *Service) Receive(ctx context.Context, c watchword.Change) error {
	if c.Kind != watchword.SubjectChanged && c.Kind != watchword.SubjectDeleted {
		return nil
	}
	var ids []watchword.CommandID
	svc.mu.Lock()
	for id, w := range svc.waiters {
		if of := (deviceRef{c.Tenant, watchword.SubjectID(c.ID)}); w.device == of || w.device == (deviceRef{}) {
			ids = append(ids, id)
		}
	}
	svc.mu.Unlock()
	var errs []error
	for _, id := range ids {
		row, err := svc.store.Command(ctx, c.Tenant, id)
		switch {
		case err == nil && row.Device == watchword.SubjectID(c.ID) && row.State.Final():
			svc.notify(row)
		case err != nil && watchword.CodeOf(err) != watchword.NotFound: // of another tenant, or not there yet
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// notify wakes those who wait for r. What was told of its end stays, if news of
// before comes after.
func (svc *Service) notify(r Row) {
	svc.mu.Lock()
	defer svc.mu.Unlock()
	if w := svc.waiters[r.ID]; w != nil {
		if w.row == nil || r.State.Final() || !w.row.State.Final() {
			now := r // here, so that nothing is copied where nobody waits
			w.row = &now
		}
		close(w.changed)
		w.changed = make(chan struct{})
	}
}
