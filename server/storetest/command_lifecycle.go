package storetest

import (
	"fmt"
	"reflect"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/twin"
)

// storedWhole compares the command that each step returns with the command that is read afterwards.
func storedWhole(t *T) {
	t.enrolled("lamp-1")
	stored := func(step string, r command.Row, err error) {
		t.Helper()
		t.must(err)
		got, err := t.Command(t.ctx, tenant, r.ID)
		t.must(err)
		if !reflect.DeepEqual(got, r) {
			t.Errorf("%s: returned\n%+v\nand stored\n%+v", step, r, got)
		}
	}
	t.now = t.now.Add(1500 * time.Microsecond) // more precise than what is stored
	for i := 1; i <= 4; i++ {
		r, _, err := t.AddCommand(t.ctx, t.row(i, "lamp-1"), command.Idempotency{}, unbounded, t.entry(audit.CommandOrder, "x"))
		stored("ordered", r, err)
	}
	r, err := t.CancelCommand(t.ctx, tenant, commandID(4), t.now, t.entry(audit.CommandCancel, "x"))
	stored("cancelled", r, err)
	for i := 1; i <= 3; i++ {
		r, _, err := t.AddHandover(t.ctx, tenant, commandID(i), command.Handover{Hash: fmt.Sprint("h", i), JWS: []byte("jws"), At: t.now}, t.entry(audit.CommandHandOver, "x"))
		stored("sent", r, err)
	}
	r, _, err = t.MarkUndeliverable(t.ctx, command.UndeliverableUpdate{
		Tenant: tenant, ID: commandID(3), Reason: command.Reason{Code: watchword.TooLarge, Detail: "too large", Size: 2, Max: 1}, SentAt: t.now, At: t.now,
	}, t.entry(audit.CommandUndeliver, "x"))
	stored("undeliverable", r, err)
	rows, err := t.MarkDelivered(t.ctx, tenant, "lamp-1", command.Acknowledgement{Epoch: 1, UpTo: 1}, t.now)
	t.must(err)
	stored("delivered", rows[0], nil)
	due := t.now.Add(2 * time.Minute)
	rows, err = t.ExpireCommands(t.ctx, due, 100, func(r, _ command.Row) audit.Entry { return t.entry(audit.CommandExpire, string(r.ID)) })
	t.must(err)
	equal(t, "expired", len(rows), 2)
	for _, r := range rows {
		stored("expired", r, nil)
	}
	r, _, err = t.applyReceipt(3, 3, "h3", watchword.StatusAccepted) // open again: no time of its end, no reason
	stored("accepted", r, err)
	equal(t, "settled at", r.SettledAt.IsZero() && r.Reason == nil, true)
	r, _, err = t.applyReceipt(3, 3, "h3", watchword.StatusDone)
	stored("done", r, err)
	n := t.log()
	_, changed, err := t.applyReceipt(3, 3, "h3", watchword.StatusDone)
	t.must(err)
	equal(t, "the same receipt again", changed, false)
	_, _, err = t.applyReceipt(3, 3, "h3", watchword.StatusFailed)
	t.wantCode(watchword.Conflict, err)
	stored("after a receipt that was refused", r, nil)
	equal(t, "entries", t.log(), n)
}

func expiring(t *T) {
	t.enrolled("lamp-1")
	at, err := t.NextExpiry(t.ctx)
	t.must(err)
	equal(t, "next end of nothing", at.IsZero(), true)
	for i := 1; i <= 4; i++ {
		r := t.row(i, "lamp-1")
		r.Expires = t.now.Add(time.Duration(i) * time.Minute)
		_, _, err := t.AddCommand(t.ctx, r, command.Idempotency{}, unbounded, t.entry(audit.CommandOrder, "x"))
		t.must(err)
	}
	at, err = t.NextExpiry(t.ctx)
	t.must(err)
	equal(t, "next end", at.Equal(t.now.Add(time.Minute)), true)
	n := t.log()
	var was []watchword.CommandState
	rows, err := t.ExpireCommands(t.ctx, t.now.Add(3*time.Minute), 2, func(r, _ command.Row) audit.Entry {
		was = append(was, r.State)
		return t.entry(audit.CommandExpire, string(r.ID))
	})
	t.must(err)
	equal(t, "at most the limit", len(rows), 2)
	equal(t, "the entry sees the state before", was[0], watchword.Queued)
	equal(t, "the row the one after", rows[0].State, watchword.Expired)
	equal(t, "entries", t.log(), n+2)
	rows, err = t.ExpireCommands(t.ctx, t.now.Add(3*time.Minute), 2, func(_, _ command.Row) audit.Entry { return t.entry(audit.CommandExpire, "x") })
	t.must(err)
	equal(t, "the rest", len(rows), 1)
	equal(t, "one goes on", t.state(4), watchword.Queued)
	// The clock goes back so far that this end is later than any command may have.
	back := t.now.Add(4*time.Minute - command.LatestEnd(t.now).Sub(t.now))
	_, err = t.ExpireCommands(t.ctx, back, 2, func(_, _ command.Row) audit.Entry { return t.entry(audit.CommandExpire, "x") })
	t.must(err)
	equal(t, "the latest end that there can be", t.state(4), watchword.Queued)
	_, err = t.ExpireCommands(t.ctx, back.Add(-time.Millisecond), 2, func(_, _ command.Row) audit.Entry { return t.entry(audit.CommandExpire, "x") })
	t.must(err)
	equal(t, "a later end", t.state(4), watchword.Expired)
}

func incarnations(t *T) {
	t.enrolled("lamp-1")
	e := t.entry(audit.DeviceRevoke, "lamp-1")
	t.order(1, "lamp-1")
	t.order(2, "lamp-1")
	t.must(t.handOver(2, "h2"))
	t.order(3, "lamp-1")
	t.must(t.handOver(3, "h3"))
	_, _, err := t.applyReceipt(3, 3, "h3", watchword.StatusAccepted)
	t.must(err)
	t.must(t.SetFunctions(t.ctx, tenant, watchword.AuthorityVersions{}, "lamp-1", []twin.Function{{Name: "f"}}, t.now))
	t.must(t.ReportState(t.ctx, tenant, watchword.AuthorityVersions{}, "lamp-1", []byte("s"), t.now))
	_, err = t.Revoke(t.ctx, tenant, "lamp-1", t.now, e)
	t.must(err)
	equal(t, "queued", t.state(1), watchword.Cancelled)
	equal(t, "sent", t.state(2), watchword.Cancelled)
	equal(t, "accepted", t.state(3), watchword.Unknown)
	fs, err := t.Functions(t.ctx, tenant, "lamp-1")
	t.must(err)
	equal(t, "functions", len(fs), 0)
	s := t.enroll("lamp-1", "second-life")
	equal(t, "incarnation", s.Incarnation, 2)
	w, err := t.Twin(t.ctx, tenant, "lamp-1")
	t.must(err)
	if w.State != nil {
		t.Fatal("an earlier life's state")
	}
	_, _, err = t.applyReceipt(3, 3, "h3", watchword.StatusDone)
	t.wantCode(watchword.ReceiptInvalid, err)
	equal(t, "numbers go on", t.order(4, "lamp-1").Seq, 4)
	rows, err := t.Pending(t.ctx, tenant, "lamp-1", 0, t.now, 10)
	t.must(err)
	equal(t, "pending in the new life", len(rows), 1)
}
