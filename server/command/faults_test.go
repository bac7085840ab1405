package command_test

import (
	"context"
	"errors"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/twin"
)

var errDisk = errors.New("the disk is full")

// faulty fails at one step.
type faulty struct {
	command.Store
	command.Sealer
	at string
}

func (f *faulty) fails(step string) error {
	if f.at == step {
		return errDisk
	}
	return nil
}

func (f *faulty) Handovers(ctx context.Context, t watchword.TenantID, id watchword.CommandID) ([]command.Handover, error) {
	hs, err := f.Store.Handovers(ctx, t, id)
	return hs, errors.Join(err, f.fails("Handovers"))
}

func (f *faulty) Functions(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) ([]twin.Function, error) {
	fs, err := f.Store.Functions(ctx, t, id)
	return fs, errors.Join(err, f.fails("Functions"))
}

func (f *faulty) AddCommand(ctx context.Context, by audit.Actor, r command.Row, i command.Idempotency, b command.Bounds, e audit.EntryOf[command.Row]) (command.Row, bool, error) {
	if err := f.fails("AddCommand"); err != nil {
		return r, false, err
	}
	return f.Store.AddCommand(ctx, by, r, i, b, e)
}

func (f *faulty) ApplyReceipt(ctx context.Context, by audit.Actor, c command.ReceiptUpdate, e audit.EntryOf[command.Row]) (command.Row, bool, error) {
	if err := f.fails("Settle"); err != nil {
		return command.Row{State: watchword.Done}, true, err
	}
	return f.Store.ApplyReceipt(ctx, by, c, e)
}

func (f *faulty) Seal(c string, b []byte) ([]byte, error) {
	out, err := f.Sealer.Seal(c, b)
	return out, errors.Join(err, f.fails("Seal"))
}

func (f *faulty) Open(c string, b []byte) ([]byte, error) {
	out, err := f.Sealer.Open(c, b)
	return out, errors.Join(err, f.fails("Open"))
}

func (f *faulty) Find(context.Context, audit.Query, audit.Page) ([]audit.Record, error) {
	return nil, f.fails("Find")
}

func (f *faulty) WaitCosigned(context.Context, int64) (c ledger.Checkpoint, note []byte, err error) {
	return c, nil, f.fails("CoverSure")
}

func (f *faulty) ProveAt(context.Context, ledger.Checkpoint, []byte, int64) (ledger.Proof, error) {
	return ledger.Proof{}, f.fails("ProveIn")
}

// A failed step fails its operation: nothing is half done, and no waiter is notified.
func TestFailedStepFailsOperation(t *testing.T) {
	f := &faulty{}
	s := newSetup(t, options{
		store: func(st command.Store) command.Store {
			f.Store = st
			return f
		},
		safe: func(sealer command.Sealer) command.Sealer {
			f.Sealer = sealer
			return f
		},
	})
	at := func(step string, do func() error) {
		t.Helper()
		f.at = step
		defer func() { f.at = "" }()
		if err := do(); !errors.Is(err, errDisk) {
			t.Errorf("where %s fails: got %v", step, err)
		}
	}
	order := func() error {
		_, err := s.Order(t.Context(), s.as("alice"), command.Call{Device: "lamp-1", Function: "f"}, "")
		return err
	}
	for _, step := range []string{"Functions", "Seal", "AddCommand"} {
		at(step, order)
	}
	if rows, err := s.List(t.Context(), tenant, command.Filter{}, "", 10); err != nil || len(rows) != 0 {
		t.Errorf("%d commands are there, %v", len(rows), err)
	}
	u := s.handed("")
	l := s.Attach(tenant, "lamp-1")
	defer l.Close()
	take := func(nonce string) func() error {
		return func() error {
			_, _, err := l.Take(t.Context(), 0, nonce, 10)
			return err
		}
	}
	at("Handovers", take(""))
	at("Open", take(""))   // the version of before
	at("Open", take("n1")) // the arguments of a new one
	at("Seal", take("n1"))
	if hs, err := s.store.Handovers(t.Context(), tenant, u.Command.ID); err != nil || len(hs) != 1 {
		t.Errorf("%d versions are kept, %v", len(hs), err)
	}
	old := s.signs["lamp-1"]
	s.rekey("lamp-1")
	w := s.Watch(tenant, u.Command.ID)
	defer w.Close()
	settle := func() error {
		_, err := s.ApplyReceipt(t.Context(), tenant, "lamp-1", watchword.AuthorityVersions{Local: true}, s.receipt(old, u, watchword.StatusDone), "")
		return err
	}
	at("Handovers", settle) // whether the retired key still answers
	at("Seal", settle)
	at("Settle", settle)
	if got := s.state(u.Command.ID); got != watchword.Sent {
		t.Errorf("it is %s", got)
	}
	if got := w.Wait(ended(), command.Row{Tenant: tenant, State: watchword.Sent}); got.State != watchword.Sent {
		t.Errorf("who waits was told %s", got.State)
	}
	must(t, settle())
	row, err := s.Command(t.Context(), tenant, u.Command.ID)
	must(t, err)
	for _, step := range []string{"Open", "Find", "CoverSure", "Handovers"} {
		at(step, func() error {
			_, err := s.Evidence(t.Context(), row, f, f, nil)
			return err
		})
	}
	at("ProveIn", func() error {
		_, err := s.Evidence(t.Context(), row, s.store, f, nil)
		return err
	})
}
