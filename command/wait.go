package command

import (
	"context"

	"github.com/watchword-iot/watchword"
)

// watchers is who waits for one command: changed is closed, and replaced, at
// each change.
type watchers struct {
	waiting int
	changed chan struct{}
	row     *Row // how it stands since the last change; nil before the first
}

// Wait returns the command as soon as it is final, or as it stands when ctx
// ends: then with no error. Code: not_found.
func (d *Desk) Wait(ctx context.Context, t watchword.TenantID, id watchword.CommandID) (Row, error) {
	w := d.Watch(id)
	defer w.Close()
	row, err := d.store.Command(context.WithoutCancel(ctx), t, id)
	if err != nil {
		return row, err
	}
	return w.Wait(ctx, row), nil
}

// Watch is somebody who waits for one command: from before they knew how it
// stands, so that they miss nothing.
type Watch struct {
	desk *Desk
	id   watchword.CommandID
	w    *watchers
}

// Watch begins to watch a command, which need not be there yet. Close the watch.
func (d *Desk) Watch(id watchword.CommandID) *Watch { return &Watch{d, id, d.join(id)} }

// Close ends the watch.
func (w *Watch) Close() { w.desk.part(w.id, w.w) }

// Wait returns the command as soon as it is final, or as it stands when ctx ends.
// row is how it stood at some moment since the watch began.
func (w *Watch) Wait(ctx context.Context, row Row) Row {
	for {
		w.desk.mu.Lock()
		changed := w.w.changed
		if now := w.w.row; now != nil && now.Tenant == row.Tenant {
			row = *now
		}
		w.desk.mu.Unlock()
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

func (d *Desk) join(id watchword.CommandID) *watchers {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.watch[id]
	if w == nil {
		w = &watchers{changed: make(chan struct{})}
		d.watch[id] = w
	}
	w.waiting++
	return w
}

func (d *Desk) part(id watchword.CommandID, w *watchers) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if w.waiting--; w.waiting == 0 {
		delete(d.watch, id)
	}
}

// tell wakes those who wait for r. What was told of its end stays, if news of
// before comes after.
func (d *Desk) tell(r Row) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if w := d.watch[r.ID]; w != nil {
		if w.row == nil || r.State.Final() || !w.row.State.Final() {
			now := r // here, so that nothing is copied where nobody waits
			w.row = &now
		}
		close(w.changed)
		w.changed = make(chan struct{})
	}
}
