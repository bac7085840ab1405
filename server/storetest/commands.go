package storetest

import (
	"crypto/sha256"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/twin"
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

func twins(t *T) {
	t.enrolled("lamp-1")
	e := t.entry(audit.ConfigSet, "lamp-1")
	w, err := t.Twin(t.ctx, tenant, "lamp-1")
	t.must(err)
	if w.Config != nil || w.State != nil || w.ConfigVersion != 0 || w.StateVersion != 0 {
		t.Fatalf("an empty twin: %+v", w)
	}
	_, err = t.Twin(t.ctx, tenant, "nobody")
	t.wantCode(watchword.NotFound, err)
	w, err = t.SetConfig(t.ctx, tenant, "lamp-1", []byte("c1"), 0, t.now, e)
	t.must(err)
	equal(t, "version", w.ConfigVersion, 1)
	_, err = t.SetConfig(t.ctx, tenant, "lamp-1", []byte("c2"), 0, t.now, e)
	t.wantCode(watchword.PreconditionFailed, err)
	w, err = t.SetConfig(t.ctx, tenant, "lamp-1", []byte("c2"), -1, t.now, e)
	t.must(err)
	equal(t, "version", w.ConfigVersion, 2)
	t.must(t.ReportState(t.ctx, tenant, watchword.AuthorityVersions{}, "lamp-1", []byte("s1"), t.now))
	_, err = t.Revoke(t.ctx, tenant, "lamp-1", t.now, t.entry(audit.DeviceRevoke, "lamp-1"))
	t.must(err)
	t.enroll("lamp-1", "lamp-1 again")
	_, err = t.SetConfig(t.ctx, tenant, "lamp-1", []byte("c1"), -1, t.now, t.entry(audit.ConfigSet, "lamp-1"))
	t.must(err)
	_, err = t.SetConfig(t.ctx, tenant, "lamp-1", []byte("c2"), -1, t.now, t.entry(audit.ConfigSet, "lamp-1"))
	t.must(err)
	t.must(t.ReportState(t.ctx, tenant, watchword.AuthorityVersions{}, "lamp-1", []byte("s1"), t.now))
	t.must(t.ReportState(t.ctx, tenant, t.versions("lamp-1"), "lamp-1", []byte("s2"), t.now))
	w, err = t.Twin(t.ctx, tenant, "lamp-1")
	t.must(err)
	equal(t, "reporter", w.ReportedBy, "lamp-1")
	equal(t, "its incarnation", w.ReportedByIncarnation, 2)
	all, err := t.ReportedStates(t.ctx, tenant, "", 1)
	t.must(err)
	equal(t, "reporter in the list", fmt.Sprint(all[0].ReportedBy, " ", all[0].ReportedByIncarnation), "lamp-1 2")
	equal(t, "config", string(w.Config), "c2")
	equal(t, "state", string(w.State), "s2")
	equal(t, "reports", w.StateVersion, 2)
	t.enrolled("lamp-2")
	t.enrolled("lamp-3") // says nothing
	t.must(t.ReportState(t.ctx, tenant, watchword.AuthorityVersions{}, "lamp-2", []byte("s3"), t.now))
	for _, c := range []struct {
		tenant watchword.TenantID
		after  watchword.SubjectID
		limit  int
		want   string
	}{{tenant, "", 10, "lamp-1=s2 lamp-2=s3 "}, {tenant, "", 1, "lamp-1=s2 "}, {tenant, "lamp-1", 10, "lamp-2=s3 "}, {tenant, "lamp-2", 10, ""}, {otherTenant, "", 10, ""}} {
		ws, err := t.ReportedStates(t.ctx, c.tenant, c.after, c.limit)
		t.must(err)
		got := ""
		for _, w := range ws {
			got += string(w.Device) + "=" + string(w.State) + " "
		}
		equal(t, "states", got, c.want)
	}
	t.wantCode(watchword.NotFound, t.ReportState(t.ctx, tenant, watchword.AuthorityVersions{}, "nobody", []byte("s"), t.now))
	_, err = t.SetConfig(t.ctx, tenant, "nobody", []byte("c"), -1, t.now, e)
	t.wantCode(watchword.NotFound, err)

	t.must(t.SetFunctions(t.ctx, tenant, watchword.AuthorityVersions{}, "lamp-1", []twin.Function{{Name: "b", Schema: []byte("{}")}, {Name: "a"}}, t.now))
	fs, err := t.Functions(t.ctx, tenant, "lamp-1")
	t.must(err)
	if len(fs) != 2 || fs[0].Name != "a" || fs[0].Schema != nil || string(fs[1].Schema) != "{}" {
		t.Fatalf("functions: %+v", fs)
	}
	t.must(t.SetFunctions(t.ctx, tenant, watchword.AuthorityVersions{}, "lamp-1", nil, t.now))
	fs, err = t.Functions(t.ctx, tenant, "lamp-1")
	t.must(err)
	equal(t, "functions", len(fs), 0)
	t.wantCode(watchword.NotFound, t.SetFunctions(t.ctx, tenant, watchword.AuthorityVersions{}, "nobody", nil, t.now))
}

func tenantIsolation(t *T) {
	t.enrolled("lamp-1")
	e := t.entry(audit.DeviceCreate, "x")
	t.order(1, "lamp-1")
	t.must(t.IssueToken(t.ctx, t.record("tok_1", "lamp-1"), t.spend("a"), e))
	_, _, err := t.PutPolicy(t.ctx, tenant, "p", []byte("x"), -1, t.now, e)
	t.must(err)

	twinOf := watchword.Subject{Tenant: otherTenant, ID: "lamp-1", Kind: watchword.Device, State: watchword.New, Created: t.now, Changed: t.now}
	_, err = t.Subject(t.ctx, otherTenant, "lamp-1")
	t.wantCode(watchword.NotFound, err)
	_, err = t.Revoke(t.ctx, otherTenant, "lamp-1", t.now, e)
	t.wantCode(watchword.NotFound, err)
	_, err = t.Command(t.ctx, otherTenant, commandID(1))
	t.wantCode(watchword.NotFound, err)
	_, err = t.CancelCommand(t.ctx, otherTenant, commandID(1), t.now, e)
	t.wantCode(watchword.NotFound, err)
	_, err = t.TokenRecord(t.ctx, otherTenant, "tok_1")
	t.wantCode(watchword.NotFound, err)
	_, err = t.Twin(t.ctx, otherTenant, "lamp-1")
	t.wantCode(watchword.NotFound, err)
	_, err = t.DeletePolicy(t.ctx, otherTenant, "p", -1, t.now, e)
	t.wantCode(watchword.NotFound, err)
	r := t.redemption("code of lamp-1", "x")
	r.Tenant = otherTenant
	_, _, err = t.RedeemCode(t.ctx, r, t.now, e)
	t.wantCode(watchword.CodeInvalid, err)
	t.must(t.CreateSubject(t.ctx, twinOf, nil, e)) // the same id in another tenant is another subject
	ss, err := t.Subjects(t.ctx, otherTenant, "", "", nil, "", 10)
	t.must(err)
	equal(t, "subjects over there", len(ss), 1)
	rows, err := t.Commands(t.ctx, otherTenant, command.Filter{}, "", 10)
	t.must(err)
	equal(t, "commands over there", len(rows), 0)
	ps, err := t.Policies(t.ctx, otherTenant)
	t.must(err)
	equal(t, "policies over there", len(ps), 0)
}

func entries(t *T) {
	const n = 40
	for _, err := range race(n, func(i int) error {
		return t.AddEntry(t.ctx, t.entry(audit.RequestRefuse, fmt.Sprint(i)))
	}) {
		t.must(err)
	}
	var seq int64
	for {
		es, err := t.Entries(seq, 7)
		t.must(err)
		if len(es) == 0 {
			break
		}
		for _, e := range es {
			seq++
			equal(t, "number", e.Seq, seq)
			equal(t, "time", e.At.Equal(t.now), true)
			equal(t, "data", e.Data["why"], "test")
		}
	}
	equal(t, "entries", seq, n)
}

// refusedLeavesNothing mixes steps that are refused in the middle into the same
// commits as steps that pass.
func refusedLeavesNothing(t *T) {
	t.enrolled("lamp-1")
	n := t.log()
	errs := race(60, func(i int) error {
		e := t.entry(audit.CommandOrder, "x")
		switch i % 3 {
		case 0:
			_, _, err := t.AddCommand(t.ctx, t.row(i, "lamp-1"), command.Idempotency{}, unbounded, e)
			return err
		case 1: // the number is taken, then the id is found to exist
			r := t.row(0, "lamp-1")
			r.ID = "cmd_double"
			_, _, err := t.AddCommand(t.ctx, r, command.Idempotency{}, unbounded, e)
			return err
		default:
			return t.IssueToken(t.ctx, t.record(fmt.Sprint("tok_", i), "nobody"), t.spend("a"), e)
		}
	})
	ok := count(errs)[""]
	equal(t, "steps that passed", ok, 21)
	equal(t, "entries", t.log(), n+ok)
	rows, err := t.Pending(t.ctx, tenant, "lamp-1", 0, t.now, 1000)
	t.must(err)
	equal(t, "commands", len(rows), ok)
	equal(t, "the last number", rows[len(rows)-1].Seq, int64(ok))
	t.must(t.Ping(t.ctx))
}
