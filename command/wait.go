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
func (d *Desk) Wait(ctx context.Context, t watchword.TenantID, id watchword.CommandID) (row Row, err error) {
	w := d.join(id)
	defer d.part(id, w)
	for {
		d.mu.Lock()
		changed, now := w.changed, w.row
		d.mu.Unlock()
		if now != nil && now.Tenant == t {
			row = *now
		} else if row, err = d.store.Command(context.WithoutCancel(ctx), t, id); err != nil {
			return row, err
		}
		if row.State.Final() {
			return row, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return row, nil
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
			w.row = &r
		}
		close(w.changed)
		w.changed = make(chan struct{})
	}
}
