package storetest

import (
	"fmt"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
)

func queueBound(t *T) {
	t.enrolled("lamp-1")
	e := t.entry(audit.CommandOrder, "x")
	errs := race(command.MaxQueued+20, func(i int) error {
		_, _, err := t.AddCommand(t.ctx, t.row(i, "lamp-1"), command.Idempotency{}, unbounded, e)
		return err
	})
	c := count(errs)
	equal(t, "taken", c[""], command.MaxQueued)
	equal(t, "busy", c[watchword.Busy], 20)
}

// wantUnfinished fails unless by has n unfinished commands and all have all of them: one more is
// refused at these bounds and passes above them. lamp-9 must be there.
func (t *T) wantUnfinished(what string, by watchword.SubjectID, n, all int64) {
	t.Helper()
	probe := func(b command.Bounds) error {
		r := t.row(100_000+t.log(), "lamp-9")
		r.By = by
		_, _, err := t.AddCommand(t.ctx, r, command.Idempotency{}, b, t.entry(audit.CommandOrder, "probe"))
		if err == nil {
			_, err := t.CancelCommand(t.ctx, tenant, r.ID, t.now, t.entry(audit.CommandCancel, "probe"))
			t.must(err)
		}
		return err
	}
	refused := func(b command.Bounds, says string) {
		t.Helper()
		before := t.log()
		err := probe(b)
		if watchword.CodeOf(err) != watchword.Busy || !strings.Contains(err.Error(), says) || strings.Count(err.Error(), "limits.") != 1 {
			t.Fatalf("%s: one more of %s at %+v: %v, want busy %s", what, by, b, err, says)
		}
		equal(t, "entries of a refusal", t.log(), before)
	}
	if n > 0 {
		refused(command.Bounds{PerOrderer: n}, "(limits.subject_commands)")
	}
	if all > 0 {
		refused(command.Bounds{PerOrderer: n + 1, Total: all}, "(limits.commands)")
	}
	if err := probe(command.Bounds{PerOrderer: n + 1, Total: all + 1}); err != nil {
		t.Fatalf("%s: %s has more than %d unfinished commands, or all have more than %d: %v", what, by, n, all, err)
	}
}

func unfinished(t *T) {
	for _, d := range []watchword.SubjectID{"lamp-1", "lamp-2", "lamp-3", "lamp-9"} {
		t.enrolled(d)
	}
	t.wantUnfinished("before any", "operator", 0, 0)
	order := func(n int, device, by watchword.SubjectID) {
		t.Helper()
		r := t.row(n, device)
		r.By = by
		_, _, err := t.AddCommand(t.ctx, r, command.Idempotency{}, unbounded, t.entry(audit.CommandOrder, "x"))
		t.must(err)
	}
	for i := 1; i <= 6; i++ {
		order(i, "lamp-1", "operator")
	}
	order(7, "lamp-2", "operator")
	order(8, "lamp-2", "bob")
	order(9, "lamp-3", "bob")
	t.wantUnfinished("ordered", "operator", 7, 9)
	t.wantUnfinished("ordered", "bob", 2, 9)
	t.wantUnfinished("who ordered nothing", "carol", 0, 9)

	for i := 1; i <= 5; i++ {
		t.must(t.handOver(i, fmt.Sprint("h", i)))
	}
	_, err := t.MarkDelivered(t.ctx, tenant, "lamp-1", command.Acknowledgement{Epoch: 1, UpTo: 1}, t.now)
	t.must(err)
	_, _, err = t.applyReceipt(2, 2, "h2", watchword.StatusAccepted)
	t.must(err)
	t.wantUnfinished("sent, delivered, accepted", "operator", 7, 9)
	_, _, err = t.applyReceipt(1, 1, "h1", watchword.StatusDone)
	t.must(err)
	_, _, err = t.applyReceipt(1, 1, "h1", watchword.StatusDone)
	t.must(err)
	t.wantUnfinished("done, and told so twice", "operator", 6, 8)
	_, _, err = t.applyReceipt(2, 2, "h2", watchword.StatusFailed)
	t.must(err)
	t.wantUnfinished("failed", "operator", 5, 7)
	_, _, err = t.MarkUndeliverable(t.ctx, command.UndeliverableUpdate{Tenant: tenant, ID: commandID(3), Reason: command.Reason{Code: watchword.TooLarge}, At: t.now}, t.entry(audit.CommandUndeliver, "x"))
	t.must(err)
	t.wantUnfinished("undeliverable", "operator", 4, 6)
	_, _, err = t.applyReceipt(3, 3, "h3", watchword.StatusAccepted)
	t.must(err)
	t.wantUnfinished("accepted after all", "operator", 5, 7)
	_, err = t.CancelCommand(t.ctx, tenant, commandID(6), t.now, t.entry(audit.CommandCancel, "x"))
	t.must(err)
	t.wantUnfinished("cancelled", "operator", 4, 6)
	_, err = t.Revoke(t.ctx, tenant, "lamp-2", t.now, t.entry(audit.DeviceRevoke, "lamp-2"))
	t.must(err)
	t.wantUnfinished("its device is revoked", "operator", 3, 4)
	t.wantUnfinished("its device is revoked", "bob", 1, 4)
	t.must(t.DeleteSubject(t.ctx, tenant, "lamp-3", t.now, t.entry(audit.DeviceDelete, "lamp-3")))
	t.wantUnfinished("its device is deleted", "bob", 0, 3)
	_, err = t.ExpireCommands(t.ctx, t.now.Add(time.Hour), 100, func(r, _ command.Row) audit.Entry { return t.entry(audit.CommandExpire, string(r.ID)) })
	t.must(err)
	t.wantUnfinished("expired", "operator", 0, 0)
	_, _, err = t.applyReceipt(4, 4, "h4", watchword.StatusDone)
	t.must(err)
	t.wantUnfinished("done after its end", "operator", 0, 0)

	// What was asked for before needs no room.
	r, idem := t.row(10, "lamp-1"), command.Idempotency{Caller: "operator", Key: "k"}
	_, _, err = t.AddCommand(t.ctx, r, idem, command.Bounds{PerOrderer: 1, Total: 1}, t.entry(audit.CommandOrder, "x"))
	t.must(err)
	_, replay, err := t.AddCommand(t.ctx, r, idem, command.Bounds{PerOrderer: 1, Total: 1}, t.entry(audit.CommandOrder, "x"))
	t.must(err)
	equal(t, "replay", replay, true)
	// A refusal takes no number of the device.
	seq := t.order(11, "lamp-1").Seq
	_, _, err = t.AddCommand(t.ctx, t.row(12, "lamp-1"), command.Idempotency{}, command.Bounds{PerOrderer: 2}, t.entry(audit.CommandOrder, "x"))
	t.wantCode(watchword.Busy, err)
	equal(t, "the next number", t.order(13, "lamp-1").Seq, seq+1)
}

func unfinishedRace(t *T) {
	const devices, most = 8, 20
	for d := range devices {
		t.enrolled(watchword.SubjectID(fmt.Sprint("lamp-", d)))
	}
	errs := race(3*most, func(i int) error {
		r := t.row(i, watchword.SubjectID(fmt.Sprint("lamp-", i%devices)))
		_, _, err := t.AddCommand(t.ctx, r, command.Idempotency{}, command.Bounds{PerOrderer: most}, t.entry(audit.CommandOrder, "x"))
		return err
	})
	c := count(errs)
	equal(t, "taken", c[""], most)
	equal(t, "busy", c[watchword.Busy], 2*most)
}
