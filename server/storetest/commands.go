package storetest

import (
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
)

// unbounded lets a subject have any number of unfinished commands.
var unbounded command.Bounds

// commandID returns ids that grow with n, as real ones do with time.
func commandID(n int) watchword.CommandID { return watchword.CommandID(fmt.Sprintf("cmd_%06d", n)) }

func (t *T) row(n int, device watchword.SubjectID) command.Row {
	return command.Row{
		Tenant: tenant, ID: commandID(n), Device: device, Epoch: 1, Function: "lamp.set", Args: []byte("sealed"), ArgsHash: "hash",
		By: "operator", ByKey: "op", State: watchword.Queued, Created: t.now, Expires: t.now.Add(2 * time.Minute),
	}
}

func (t *T) order(n int, device watchword.SubjectID) command.Row {
	t.Helper()
	r, _, err := t.AddCommand(t.ctx, t.row(n, device), command.Idempotency{}, unbounded, t.entry(audit.CommandOrder, string(commandID(n))))
	t.must(err)
	return r
}

func (t *T) handOver(n int, hash string) error {
	_, _, err := t.AddHandover(t.ctx, tenant, commandID(n), command.Handover{Hash: hash, JWS: []byte("jws"), At: t.now}, t.entry(audit.CommandHandOver, string(commandID(n))))
	return err
}

func (t *T) applyReceipt(n int, seq int64, hash string, st watchword.ReceiptStatus) (command.Row, bool, error) {
	return t.ApplyReceipt(t.ctx, command.ReceiptUpdate{
		Tenant: tenant, Device: "lamp-1", ID: commandID(n), Epoch: 1, Seq: seq, Hash: hash, Status: st, Key: "lamp-1-sign", JWS: []byte("receipt"), At: t.now,
	}, t.entry(audit.CommandSettle, string(commandID(n))))
}

func (t *T) state(n int) watchword.CommandState {
	t.Helper()
	r, err := t.Command(t.ctx, tenant, commandID(n))
	t.must(err)
	return r.State
}

func sequenceNumbers(t *T) {
	t.enrolled("lamp-1")
	t.enrolled("lamp-2")
	n := t.log()
	for i := range 3 {
		r := t.order(i, "lamp-1")
		equal(t, "number", r.Seq, int64(i+1))
		equal(t, "incarnation", r.Incarnation, 1)
	}
	equal(t, "another device's number", t.order(10, "lamp-2").Seq, 1)
	equal(t, "entries", t.log(), n+4)
	got, err := t.Command(t.ctx, tenant, commandID(1))
	t.must(err)
	want := t.row(1, "lamp-1")
	equal(t, "function", got.Function, want.Function)
	equal(t, "args", string(got.Args), "sealed")
	equal(t, "ends", got.Expires.Equal(want.Expires), true)
	equal(t, "sent at", got.SentAt.IsZero(), true)
	if got.Receipt != nil {
		t.Fatal("a receipt before there is one")
	}
	_, err = t.Command(t.ctx, tenant, commandID(99))
	t.wantCode(watchword.NotFound, err)
	_, _, err = t.AddCommand(t.ctx, t.row(20, "nobody"), command.Idempotency{}, unbounded, t.entry(audit.CommandOrder, "x"))
	t.wantCode(watchword.NotFound, err)
	t.add("lamp-3", nil)
	equal(t, "a new one may be ordered to", t.order(30, "lamp-3").Seq, 1)
	_, err = t.Revoke(t.ctx, tenant, "lamp-3", t.now, t.entry(audit.DeviceRevoke, "lamp-3"))
	t.must(err)
	_, _, err = t.AddCommand(t.ctx, t.row(31, "lamp-3"), command.Idempotency{}, unbounded, t.entry(audit.CommandOrder, "x"))
	t.wantCode(watchword.SubjectRevoked, err)
	op := watchword.Subject{Tenant: tenant, ID: "alice", Kind: watchword.Operator, State: watchword.New}
	t.must(t.CreateSubject(t.ctx, op, nil, t.entry(audit.KindFor(watchword.Operator, audit.DeviceCreate), "alice")))
	_, _, err = t.AddCommand(t.ctx, t.row(32, "alice"), command.Idempotency{}, unbounded, t.entry(audit.CommandOrder, "x"))
	t.wantCode(watchword.NotFound, err)
}

func sequenceNumbersRace(t *T) {
	t.enrolled("lamp-1")
	const n = 64
	for _, err := range race(n, func(i int) error {
		_, _, err := t.AddCommand(t.ctx, t.row(i, "lamp-1"), command.Idempotency{}, unbounded, t.entry(audit.CommandOrder, "x"))
		return err
	}) {
		t.must(err)
	}
	rows, err := t.Pending(t.ctx, tenant, "lamp-1", 0, t.now, 1000)
	t.must(err)
	equal(t, "pending", len(rows), n)
	for i, r := range rows {
		equal(t, "number", r.Seq, int64(i+1))
	}
}

func idempotent(t *T) {
	t.enrolled("lamp-1")
	idem := func(key, body string) command.Idempotency {
		return command.Idempotency{Caller: "operator", Key: key, Hash: sha256.Sum256([]byte(body))}
	}
	e := t.entry(audit.CommandOrder, "x")
	first, replay, err := t.AddCommand(t.ctx, t.row(1, "lamp-1"), idem("k", "b"), unbounded, e)
	t.must(err)
	equal(t, "replay", replay, false)
	n := t.log()
	again, replay, err := t.AddCommand(t.ctx, t.row(2, "lamp-1"), idem("k", "b"), unbounded, e)
	t.must(err)
	equal(t, "replay", replay, true)
	equal(t, "the row of the first time", again.ID, first.ID)
	equal(t, "entries", t.log(), n)
	_, _, err = t.AddCommand(t.ctx, t.row(3, "lamp-1"), idem("k", "another"), unbounded, e)
	t.wantCode(watchword.Conflict, err)
	other := idem("k", "b")
	other.Caller = "bob"
	_, replay, err = t.AddCommand(t.ctx, t.row(4, "lamp-1"), other, unbounded, e)
	t.must(err)
	equal(t, "another caller's key", replay, false)
	errs := race(8, func(i int) error {
		_, _, err := t.AddCommand(t.ctx, t.row(100+i, "lamp-1"), idem("race", "b"), unbounded, e)
		return err
	})
	equal(t, "all get an answer", count(errs)[""], 8)
	rows, err := t.Pending(t.ctx, tenant, "lamp-1", 0, t.now, 100)
	t.must(err)
	equal(t, "commands that there are", len(rows), 3)
}

func commandLists(t *T) {
	t.enrolled("lamp-1")
	t.enrolled("lamp-2")
	for i := range 10 {
		r := t.row(i, []watchword.SubjectID{"lamp-1", "lamp-2"}[i%2])
		if i >= 8 {
			r.By = "bob"
		}
		_, _, err := t.AddCommand(t.ctx, r, command.Idempotency{}, unbounded, t.entry(audit.CommandOrder, "x"))
		t.must(err)
	}
	_, err := t.CancelCommand(t.ctx, tenant, commandID(9), t.now, t.entry(audit.CommandCancel, "x"))
	t.must(err)
	for _, q := range []struct {
		f      command.Filter
		before watchword.CommandID
		limit  int
		want   string
	}{
		{command.Filter{}, "", 3, "[9 8 7]"},
		{command.Filter{}, commandID(7), 2, "[6 5]"},
		{command.Filter{Device: "lamp-1"}, "", 10, "[8 6 4 2 0]"},
		{command.Filter{By: "bob"}, "", 10, "[9 8]"},
		{command.Filter{State: watchword.Cancelled}, "", 10, "[9]"},
		{command.Filter{Device: "lamp-1", By: "bob", State: watchword.Queued}, "", 10, "[8]"},
	} {
		rows, err := t.Commands(t.ctx, tenant, q.f, q.before, q.limit)
		t.must(err)
		var got []int
		for _, r := range rows {
			var n int
			if _, err := fmt.Sscanf(string(r.ID), "cmd_%d", &n); err != nil {
				t.Fatal(err)
			}
			got = append(got, n)
		}
		equal(t, fmt.Sprintf("%+v", q.f), fmt.Sprint(got), q.want)
	}
}
