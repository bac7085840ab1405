package storetest

import (
	"fmt"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
)

func handingOver(t *T) {
	t.enrolled("lamp-1")
	t.order(1, "lamp-1")
	t.order(2, "lamp-1")
	t.order(3, "lamp-1")
	t.must(t.handOver(1, "h1"))
	equal(t, "state", t.state(1), watchword.Sent)
	t.must(t.handOver(1, "h1"))
	t.must(t.handOver(1, "h1b"))
	hs, err := t.Handovers(t.ctx, tenant, commandID(1))
	t.must(err)
	if len(hs) != 2 || hs[0].Hash != "h1" || hs[1].Hash != "h1b" || string(hs[0].JWS) != "jws" {
		t.Fatalf("hand-overs: %+v", hs)
	}
	for i := len(hs); i < command.MaxHandovers; i++ {
		t.must(t.handOver(1, fmt.Sprint("more", i)))
	}
	t.wantCode(watchword.Busy, t.handOver(1, "one too many"))
	t.must(t.handOver(1, "h1")) // a known one is still accepted

	rows, err := t.Pending(t.ctx, tenant, "lamp-1", 1, t.now, 10)
	t.must(err)
	equal(t, "pending after 1", len(rows), 2)
	rows, err = t.Pending(t.ctx, tenant, "lamp-1", 0, t.now.Add(2*time.Minute), 10)
	t.must(err)
	equal(t, "pending when all is over", len(rows), 0)

	t.must(t.handOver(2, "h2"))
	for what, a := range map[string]command.Acknowledgement{
		"of another epoch": {Epoch: 2, UpTo: 3, Each: []int64{1, 2, 3}}, "nothing": {Epoch: 1}, "others": {Epoch: 1, Each: []int64{0, 3, 4}},
	} {
		none, err := t.MarkDelivered(t.ctx, tenant, "lamp-1", a, t.now)
		t.must(err)
		equal(t, what, len(none), 0)
	}
	_, err = t.Suspend(t.ctx, tenant, "lamp-1", t.now, t.entry(audit.DeviceSuspend, "lamp-1"))
	t.must(err)
	none, err := t.MarkDelivered(t.ctx, tenant, "lamp-1", command.Acknowledgement{Epoch: 1, UpTo: 3, Each: []int64{2}}, t.now)
	t.must(err)
	equal(t, "delivered while it is suspended", len(none), 0)
	_, err = t.Resume(t.ctx, tenant, "lamp-1", t.now, t.entry(audit.DeviceResume, "lamp-1"))
	t.must(err)
	got, err := t.MarkDelivered(t.ctx, tenant, "lamp-1", command.Acknowledgement{Epoch: 1, Each: []int64{7, 2}}, t.now)
	t.must(err)
	equal(t, "delivered, the second alone", len(got), 1)
	equal(t, "the one before it", t.state(1), watchword.Sent)
	equal(t, "the number", got[0].Seq, 2)
	got, err = t.MarkDelivered(t.ctx, tenant, "lamp-1", command.Acknowledgement{Epoch: 1, UpTo: 3}, t.now)
	t.must(err)
	equal(t, "delivered", len(got), 1)
	equal(t, "state", got[0].State, watchword.Delivered)
	equal(t, "the number", got[0].Seq, 1)
	equal(t, "a queued one stays", t.state(3), watchword.Queued)
	t.wantCode(watchword.Conflict, t.handOver(2, "h2"))
	_, err = t.CancelCommand(t.ctx, tenant, commandID(2), t.now, t.entry(audit.CommandCancel, "x"))
	t.wantCode(watchword.Conflict, err)
	r, err := t.CancelCommand(t.ctx, tenant, commandID(3), t.now, t.entry(audit.CommandCancel, "x"))
	t.must(err)
	equal(t, "state", r.State, watchword.Cancelled)
	t.wantCode(watchword.Conflict, t.handOver(3, "h3"))

	t.order(4, "lamp-1")
	_, err = t.Suspend(t.ctx, tenant, "lamp-1", t.now, t.entry(audit.DeviceSuspend, "x"))
	t.must(err)
	t.wantCode(watchword.SubjectSuspended, t.handOver(4, "h4"))
}

func applyingReceipts(t *T) {
	t.enrolled("lamp-1")
	t.enrolled("lamp-2")
	t.order(1, "lamp-1")
	t.order(2, "lamp-1")
	n := t.log()
	for _, early := range []func() error{
		func() error { _, _, err := t.applyReceipt(1, 1, "h1", watchword.StatusDone); return err }, // never handed over
	} {
		t.wantCode(watchword.ReceiptInvalid, early())
	}
	t.must(t.handOver(1, "h1"))
	t.must(t.handOver(1, "h1")) // the same again is not counted
	t.must(t.handOver(2, "h2"))
	n += 2
	hs, err := t.Handovers(t.ctx, tenant, commandID(2))
	t.must(err)
	t.must(t.Sequence(t.ctx))
	equal(t, "entry of the hand-over", hs[0].Entry, int64(n))
	for what, s := range map[string]command.ReceiptUpdate{
		"another hash":    {Tenant: tenant, Device: "lamp-1", ID: commandID(1), Epoch: 1, Seq: 1, Hash: "h2", Status: watchword.StatusDone},
		"another number":  {Tenant: tenant, Device: "lamp-1", ID: commandID(1), Epoch: 1, Seq: 2, Hash: "h1", Status: watchword.StatusDone},
		"another epoch":   {Tenant: tenant, Device: "lamp-1", ID: commandID(1), Epoch: 2, Seq: 1, Hash: "h1", Status: watchword.StatusDone},
		"another device":  {Tenant: tenant, Device: "lamp-2", ID: commandID(1), Epoch: 1, Seq: 1, Hash: "h1", Status: watchword.StatusDone},
		"another tenant":  {Tenant: otherTenant, Device: "lamp-1", ID: commandID(1), Epoch: 1, Seq: 1, Hash: "h1", Status: watchword.StatusDone},
		"another command": {Tenant: tenant, Device: "lamp-1", ID: commandID(9), Epoch: 1, Seq: 1, Hash: "h1", Status: watchword.StatusDone},
		"no such status":  {Tenant: tenant, Device: "lamp-1", ID: commandID(1), Epoch: 1, Seq: 1, Hash: "h1", Status: "maybe"},
	} {
		s.JWS, s.At = []byte("r"), t.now
		if _, _, err := t.ApplyReceipt(t.ctx, s, t.entry(audit.CommandSettle, "x")); watchword.CodeOf(err) != watchword.ReceiptInvalid {
			t.Fatalf("%s: %v", what, err)
		}
	}
	equal(t, "state", t.state(1), watchword.Sent)
	equal(t, "entries", t.log(), n)
	r, changed, err := t.applyReceipt(1, 1, "h1", watchword.StatusDone)
	t.must(err)
	equal(t, "changed", changed, true)
	equal(t, "state", r.State, watchword.Done)
	equal(t, "receipt", string(r.Receipt), "receipt")
	equal(t, "receipt key", r.ReceiptKey, "lamp-1-sign")
	equal(t, "entries", t.log(), n+1)
	equal(t, "entry of the receipt", r.Entry, int64(n+1))
}

// undelivering: what a device cannot take ends, and only what it has not taken.
func undelivering(t *T) {
	t.enrolled("lamp-1")
	for i := 1; i <= 5; i++ {
		t.order(i, "lamp-1")
	}
	reason := command.Reason{Code: watchword.TooLarge, Detail: "too large", Size: 3000, Max: 2100}
	before := t.now.Add(-time.Second)
	undeliver := func(n int, sent time.Time) (command.Row, bool, error) {
		return t.MarkUndeliverable(t.ctx, command.UndeliverableUpdate{Tenant: tenant, ID: commandID(n), Reason: reason, SentAt: sent, At: t.now}, t.entry(audit.CommandUndeliver, string(commandID(n))))
	}
	n := t.log()
	_, changed, err := undeliver(1, time.Time{})
	t.must(err)
	equal(t, "a queued one", changed, true)
	equal(t, "entries", t.log(), n+1)
	for i := 2; i <= 4; i++ {
		t.must(t.handOver(i, fmt.Sprint("h", i)))
	}
	row, changed, err := undeliver(2, time.Time{})
	t.must(err)
	equal(t, "one that was handed over and not sent", changed, true)
	got, err := t.Command(t.ctx, tenant, commandID(2))
	t.must(err)
	for _, r := range []command.Row{row, got} {
		equal(t, "state", r.State, watchword.Undeliverable)
		equal(t, "why", *r.Reason, reason)
		equal(t, "was sent", r.SentAt.IsZero(), true)
		equal(t, "when it ended", r.SettledAt.Equal(t.now), true)
	}
	row, _, err = undeliver(3, before)
	t.must(err)
	equal(t, "one that was sent before", row.SentAt.Equal(before), true)
	_, err = t.MarkDelivered(t.ctx, tenant, "lamp-1", command.Acknowledgement{Epoch: 1, UpTo: 5}, t.now)
	t.must(err)
	equal(t, "acknowledged after it ended", t.state(3), watchword.Undeliverable)
	n = t.log()
	for _, i := range []int{3, 4} { // ended, delivered
		was := t.state(i)
		row, changed, err = undeliver(i, time.Time{})
		t.must(err)
		equal(t, "changed", changed, false)
		equal(t, "state", row.State, was)
		equal(t, "state", t.state(i), was)
	}
	equal(t, "entries", t.log(), n)
	_, _, err = undeliver(99, time.Time{})
	t.wantCode(watchword.NotFound, err)
	rows, err := t.Pending(t.ctx, tenant, "lamp-1", 0, t.now, 10)
	t.must(err)
	equal(t, "what waits", len(rows), 1)
	equal(t, "what waits", rows[0].Seq, 5)
	// Its device may have had it from an earlier connection, and answers.
	t.wantCode(watchword.Conflict, t.handOver(3, "h3"))
	row, changed, err = t.applyReceipt(3, 3, "h3", watchword.StatusAccepted)
	t.must(err)
	equal(t, "changed", changed, true)
	equal(t, "accepted", row.State, watchword.Accepted)
	row, _, err = t.applyReceipt(2, 2, "h2", watchword.StatusDone)
	t.must(err)
	equal(t, "done", row.State, watchword.Done)
	got, err = t.Command(t.ctx, tenant, commandID(2))
	t.must(err)
	if row.Reason != nil || got.Reason != nil {
		t.Fatal("a reason for what was done")
	}
	_, err = t.ExpireCommands(t.ctx, t.now.Add(time.Hour), 100, func(r, _ command.Row) audit.Entry { return t.entry(audit.CommandExpire, string(r.ID)) })
	t.must(err)
	equal(t, "its end has been", t.state(1), watchword.Undeliverable)
	_, _, err = t.applyReceipt(1, 1, "h1", watchword.StatusDone)
	t.wantCode(watchword.ReceiptInvalid, err) // it was never handed over
}
