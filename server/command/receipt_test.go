package command_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/token"
)

// handed orders a command and hands it to lamp-1.
func (s *setup) handed(nonce string) unsealed {
	s.t.Helper()
	row := s.order(command.Call{TTL: time.Hour})
	l := s.Attach(tenant, "lamp-1")
	defer l.Close()
	for _, u := range s.next(l, 0, nonce) {
		if u.Command.ID == row.ID {
			return u
		}
	}
	s.t.Fatal("it was not handed over")
	return unsealed{}
}

func TestApplyReceipt(t *testing.T) {
	s := newSetup(t, options{})
	for name, c := range map[string]struct {
		status watchword.ReceiptStatus
		edit   func(r *token.Receipt)
		by     func(s *setup) *jose.Signer
		code   watchword.Code
		why    watchword.Code // of the verification that failed
		state  watchword.CommandState
	}{
		"done":            {status: watchword.StatusDone, state: watchword.Done},
		"accepted":        {status: watchword.StatusAccepted, state: watchword.Accepted},
		"refused":         {status: watchword.StatusRefused, state: watchword.Refused},
		"failed":          {status: watchword.StatusFailed, state: watchword.Failed},
		"interrupted":     {status: watchword.StatusInterrupted, state: watchword.Interrupted},
		"a conflict":      {status: watchword.StatusConflict, state: watchword.Failed},
		"another status":  {status: "well", code: watchword.ReceiptInvalid, why: watchword.TokenMalformed, state: watchword.Sent},
		"another epoch":   {status: watchword.StatusDone, edit: func(r *token.Receipt) { r.Epoch = 2 }, code: watchword.ReceiptInvalid, state: watchword.Sent},
		"another number":  {status: watchword.StatusDone, edit: func(r *token.Receipt) { r.Seq++ }, code: watchword.ReceiptInvalid, state: watchword.Sent},
		"another command": {status: watchword.StatusDone, edit: func(r *token.Receipt) { r.Command = "cmd_other" }, code: watchword.ReceiptInvalid, state: watchword.Sent},
		"another version": {status: watchword.StatusDone, edit: func(r *token.Receipt) { r.Hash = jose.HashString("x") }, code: watchword.ReceiptInvalid, state: watchword.Sent},
		"another device":  {status: watchword.StatusDone, edit: func(r *token.Receipt) { r.Device = "lamp-2" }, code: watchword.ReceiptInvalid, why: watchword.IssuerMismatch, state: watchword.Sent},
		"another issuer":  {status: watchword.StatusDone, edit: func(r *token.Receipt) { r.Issuer = "https://other.example" }, code: watchword.ReceiptInvalid, why: watchword.AudienceMismatch, state: watchword.Sent},
		"a foreign key":   {status: watchword.StatusDone, by: func(s *setup) *jose.Signer { return signer(s.t, jose.P256) }, code: watchword.ReceiptInvalid, why: watchword.KeyUnknown, state: watchword.Sent},
		"the orderer's":   {status: watchword.StatusDone, by: func(s *setup) *jose.Signer { return s.signs["alice"] }, code: watchword.ReceiptInvalid, why: watchword.KeyUnknown, state: watchword.Sent},
	} {
		t.Run(name, func(t *testing.T) {
			u := s.handed("")
			seq := fmt.Sprint(u.Command.Seq)
			w := s.Watch(tenant, u.Command.ID)
			defer w.Close()
			by := s.signs["lamp-1"]
			if c.by != nil {
				by = c.by(s)
			}
			edit := c.edit
			if edit == nil {
				edit = func(*token.Receipt) {}
			}
			raw := ""
			if c.why == watchword.TokenMalformed { // none that our own signs
				var err error
				raw, err = by.Sign(token.TypReceipt, fmt.Appendf(nil, `{"iss":"lamp-1","aud":%q,"jti":"j","iat":1,"epoch":1,"seq":%s,"cid":%q,"ch":%q,"st":%q}`,
					issuer, seq, u.Command.ID, jose.HashString(u.jws), c.status))
				must(t, err)
			} else {
				raw = s.receipt(by, u, c.status, edit)
			}
			row, err := s.ApplyReceipt(t.Context(), tenant, "lamp-1", watchword.AuthorityVersions{Local: true}, raw, "trace")
			wantCode(t, "the receipt", err, c.code)
			if e, ok := err.(*watchword.Error); c.why != "" && (!ok || !strings.HasPrefix(e.Detail, "the receipt is not valid: "+string(c.why)+": ")) {
				t.Errorf("got %v, want it to say %s", err, c.why)
			}
			if got := s.state(u.Command.ID); got != c.state {
				t.Errorf("it is %s, want %s", got, c.state)
			}
			if c.code != "" {
				return
			}
			if told := w.Wait(ended(), command.Row{Tenant: tenant, State: watchword.Sent}); told.State != c.state {
				t.Errorf("who waits was told %s", told.State)
			}
			if kept, err := s.Receipt(row); err != nil || kept != raw || row.ReceiptKey != by.Public().ID() {
				t.Errorf("kept under %s: %v\n%s", row.ReceiptKey, err, kept)
			}
			kind := audit.CommandSettle
			if c.status == watchword.StatusConflict {
				kind = audit.CommandConflict
			}
			e := s.last(kind)
			if e.Object != string(u.Command.ID) || e.Actor != "lamp-1" || e.Key != by.Public().ID() || e.Trace != "trace" || e.Data["st"] != string(c.status) ||
				e.Data["ch"] != jose.HashString(u.jws) || e.Data["epoch"] != "1" || e.Data["seq"] != seq || e.Data["receipt"] != jose.HashString(raw) {
				t.Errorf("the log says %+v", e)
			}
			again, err := s.ApplyReceipt(t.Context(), tenant, "lamp-1", watchword.AuthorityVersions{Local: true}, raw, "")
			if err != nil || again.State != c.state {
				t.Errorf("the same again: %s, %v", again.State, err)
			}
			if n := s.last(kind).Seq; n != e.Seq {
				t.Error("the same again is in the log again")
			}
		})
	}
	_, err := s.ApplyReceipt(t.Context(), tenant, "nobody", watchword.AuthorityVersions{Local: true}, "x", "")
	wantCode(t, "of no subject", err, watchword.NotFound)
	if none, err := s.Receipt(s.order(command.Call{})); none != "" || err != nil {
		t.Errorf("a receipt before there is one: %q, %v", none, err)
	}
}

// A key that was replaced answers for what was handed over before, and for nothing after.
func TestReceiptsUnderAReplacedKey(t *testing.T) {
	s := newSetup(t, options{})
	before, atOnce := s.handed(""), unsealed{}
	old := s.signs["lamp-1"]
	s.pass(time.Minute)
	atOnce = s.handed("")
	s.rekey("lamp-1") // at the very moment of the second hand-over
	s.pass(time.Millisecond)
	after := s.handed("")
	for _, c := range []struct {
		name string
		by   *jose.Signer
		of   unsealed
		code watchword.Code
	}{
		{"the old key for what came before", old, before, ""},
		{"the old key for what came at its end", old, atOnce, ""},
		{"the old key for what came after", old, after, watchword.ReceiptInvalid},
		{"the new key for what came after", s.signs["lamp-1"], after, ""},
	} {
		_, err := s.ApplyReceipt(t.Context(), tenant, "lamp-1", watchword.AuthorityVersions{Local: true}, s.receipt(c.by, c.of, watchword.StatusDone), "")
		wantCode(t, c.name, err, c.code)
	}
	// By the version that it answers, not by another of the same command.
	s = newSetup(t, options{})
	early := s.handed("")
	old = s.signs["lamp-1"]
	s.pass(time.Minute)
	s.rekey("lamp-1")
	s.pass(time.Minute)
	l := s.Attach(tenant, "lamp-1")
	defer l.Close()
	late := s.next(l, 0, "n1")[0]
	_, err := s.ApplyReceipt(t.Context(), tenant, "lamp-1", watchword.AuthorityVersions{Local: true}, s.receipt(old, late, watchword.StatusDone), "")
	wantCode(t, "the old key for the later version", err, watchword.ReceiptInvalid)
	_, err = s.ApplyReceipt(t.Context(), tenant, "lamp-1", watchword.AuthorityVersions{Local: true}, s.receipt(old, early, watchword.StatusDone), "")
	wantCode(t, "the old key for the version of before", err, "")
}

func TestReceiptsUnderARevokedKey(t *testing.T) {
	s := newSetup(t, options{})
	u := s.handed("")
	_, err := s.store.Revoke(t.Context(), audit.Actor{Tenant: tenant}, "lamp-1", s.now(), audit.FixedEntry[watchword.Subject](s.entry(audit.DeviceRevoke, "lamp-1", nil)))
	must(t, err)
	s.changed("lamp-1")
	_, err = s.ApplyReceipt(t.Context(), tenant, "lamp-1", watchword.AuthorityVersions{Local: true}, s.receipt(s.signs["lamp-1"], u, watchword.StatusDone), "")
	wantCode(t, "a revoked device", err, watchword.ReceiptInvalid)
}

// storeHooks runs something between what the store did and what the service makes of it.
type storeHooks struct {
	command.Store
	delivered, settled func()
}

func (b *storeHooks) MarkDelivered(ctx context.Context, t watchword.TenantID, device watchword.SubjectID, a command.Acknowledgement, now time.Time) ([]command.Row, error) {
	rows, err := b.Store.MarkDelivered(ctx, t, device, a, now)
	if b.delivered != nil {
		b.delivered()
	}
	return rows, err
}

func (b *storeHooks) ApplyReceipt(ctx context.Context, by audit.Actor, c command.ReceiptUpdate, e audit.EntryOf[command.Row]) (command.Row, bool, error) {
	row, changed, err := b.Store.ApplyReceipt(ctx, by, c, e)
	if b.settled != nil {
		b.settled()
	}
	return row, changed, err
}

// Changes may arrive late: a notified final state stays, and a later final state replaces it.
func TestALateChangeDoesNotUndoAFinalState(t *testing.T) {
	b := &storeHooks{}
	s := newSetup(t, options{store: func(st command.Store) command.Store {
		b.Store = st
		return b
	}})
	u := s.handed("")
	id := u.Command.ID
	w := s.Watch(tenant, id)
	defer w.Close()
	row, err := s.Command(t.Context(), tenant, id)
	must(t, err)
	settle := func(st watchword.ReceiptStatus) {
		t.Helper()
		_, err := s.ApplyReceipt(t.Context(), tenant, "lamp-1", watchword.AuthorityVersions{Local: true}, s.receipt(s.signs["lamp-1"], u, st), "")
		must(t, err)
	}
	b.delivered = func() { settle(watchword.StatusDone) } // notified before "delivered" is
	l := s.Attach(tenant, "lamp-1")
	defer l.Close()
	if _, err := l.AcknowledgeUpTo(t.Context(), 1, u.Command.Seq); err != nil {
		t.Fatal(err)
	}
	if got := w.Wait(ended(), row); got.State != watchword.Done {
		t.Errorf("late news of %s stands over the end", got.State)
	}

	// A command without a final state follows the changes as they arrive.
	b.delivered = nil
	u = s.handed("")
	w2 := s.Watch(tenant, u.Command.ID)
	defer w2.Close()
	row, err = s.Command(t.Context(), tenant, u.Command.ID)
	must(t, err)
	if _, err := l.AcknowledgeUpTo(t.Context(), 1, u.Command.Seq); err != nil {
		t.Fatal(err)
	}
	if got := w2.Wait(ended(), row); got.State != watchword.Delivered {
		t.Errorf("told %s, want delivered", got.State)
	}
	settle(watchword.StatusAccepted)
	if got := w2.Wait(ended(), row); got.State != watchword.Accepted {
		t.Errorf("told %s, want accepted", got.State)
	}
	settle(watchword.StatusFailed)
	if got := w2.Wait(ended(), row); got.State != watchword.Failed {
		t.Errorf("told %s, want failed", got.State)
	}

	// One end after another: expired, and then answered after all.
	u = s.handed("")
	w3 := s.Watch(tenant, u.Command.ID)
	defer w3.Close()
	row, err = s.Command(t.Context(), tenant, u.Command.ID)
	must(t, err)
	s.pass(2 * time.Hour)
	s.expire()
	if got := w3.Wait(ended(), row); got.State != watchword.Expired {
		t.Errorf("told %s, want expired", got.State)
	}
	settle(watchword.StatusDone)
	if got := w3.Wait(ended(), row); got.State != watchword.Done {
		t.Errorf("told %s, want done", got.State)
	}
}

// expire lets the service end what has expired by now.
func (s *setup) expire() {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	deadline := time.After(10 * time.Second)
	for {
		next, err := s.store.NextExpiry(s.t.Context())
		must(s.t, err)
		if next.IsZero() || next.After(s.now()) {
			break
		}
		select {
		case <-deadline:
			s.t.Fatal("10 s passed, and something is over that has not ended")
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	if err := testwait.For(s.t, "the end of Run", done); err != nil {
		s.t.Error(err)
	}
}

func TestWaiting(t *testing.T) {
	s := newSetup(t, options{})
	_, err := s.Wait(t.Context(), tenant, "cmd_other")
	wantCode(t, "what is not there", err, watchword.NotFound)
	u := s.handed("")
	_, err = s.Wait(t.Context(), "other", u.Command.ID)
	wantCode(t, "another tenant's", err, watchword.NotFound)
	if row, err := s.Wait(ended(), tenant, u.Command.ID); err != nil || row.State != watchword.Sent {
		t.Errorf("after its context: %s, %v", row.State, err)
	}
	got := make(chan command.Row, 2)
	for range 2 {
		w := s.Watch(tenant, u.Command.ID)
		go func() {
			defer w.Close()
			got <- w.Wait(short(t), command.Row{Tenant: tenant, State: watchword.Sent})
		}()
	}
	answer := func(st watchword.ReceiptStatus) {
		t.Helper()
		_, err := s.ApplyReceipt(t.Context(), tenant, "lamp-1", watchword.AuthorityVersions{Local: true}, s.receipt(s.signs["lamp-1"], u, st), "")
		must(t, err)
	}
	answer(watchword.StatusAccepted) // which is no end
	answer(watchword.StatusDone)
	for range 2 {
		if row := testwait.For(t, "the end of the command", got); row.State != watchword.Done || row.ID != u.Command.ID {
			t.Errorf("got %s of %q", row.State, row.ID)
		}
	}
	if row, err := s.Wait(short(t), tenant, u.Command.ID); err != nil || row.State != watchword.Done {
		t.Errorf("what has ended: %s, %v", row.State, err)
	}
	// A change of another tenant's command of that name has no effect on this one.
	w := s.Watch(tenant, u.Command.ID)
	defer w.Close()
	u = s.handed("")
	v := s.Watch("other", u.Command.ID)
	defer v.Close()
	answer(watchword.StatusDone)
	if row := v.Wait(ended(), command.Row{Tenant: "other", State: watchword.Queued}); row.State != watchword.Queued {
		t.Errorf("another tenant was told %s", row.State)
	}
}

// many is a store whose ends come in full batches, or not at all.
type many struct {
	command.Store
	batches []int
	fails   int
	calls   chan int
	next    atomic.Int64  // seconds; 0: none
	asked   chan struct{} // if not nil, gets a value for each query of the next expiry
	nextErr error
}

func (m *many) ExpireCommands(_ context.Context, now time.Time, limit int, entry audit.EntryOf[command.Row]) (out []command.Row, err error) {
	m.calls <- limit
	if m.fails > 0 {
		m.fails--
		return nil, errors.New("the disk is full")
	}
	if len(m.batches) == 0 {
		return nil, nil
	}
	n := m.batches[0]
	m.batches = m.batches[1:]
	for i := range n {
		r := command.Row{Tenant: tenant, ID: watchword.CommandID(fmt.Sprint("cmd_", i)), Device: "lamp-1", State: watchword.Delivered}
		if e := entry(r, r); e.Kind != audit.CommandExpire || e.Object != string(r.ID) || e.Data["before"] != "delivered" || e.Data["device"] != "lamp-1" || e.Tenant != tenant || !e.At.Equal(now) {
			return nil, fmt.Errorf("the entry is %+v", e)
		}
		r.State = watchword.Unknown
		out = append(out, r)
	}
	return out, nil
}

func (m *many) NextExpiry(context.Context) (next time.Time, err error) {
	if n := m.next.Load(); n != 0 {
		next = time.Unix(n, 0)
	}
	if m.asked != nil {
		m.asked <- struct{}{}
	}
	return next, m.nextErr
}

// Expiries are handled in batches: a full one is followed by another at once, and each waiter is notified.
func TestExpiryRunsInBatches(t *testing.T) {
	m := &many{batches: []int{500, 500, 499}, calls: make(chan int, 10)}
	s := newSetup(t, options{store: func(st command.Store) command.Store {
		m.Store = st
		return m
	}})
	w := s.Watch(tenant, "cmd_499") // of the first two batches
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	if row := w.Wait(short(t), command.Row{Tenant: tenant, State: watchword.Delivered}); row.State != watchword.Unknown {
		t.Errorf("told %s", row.State)
	}
	for i := range 3 {
		select {
		case limit := <-m.calls:
			if limit != 500 {
				t.Errorf("asked for %d", limit)
			}
		case <-short(t).Done():
			t.Fatalf("only %d batches after 10 s", i)
		}
	}
	cancel()
	if err := testwait.For(t, "the end of Run", done); err != nil {
		t.Error(err)
	}
	if n := len(m.calls); n != 0 {
		t.Errorf("asked %d times more, after a batch that was not full", n)
	}
}

// A failed step is tried again within a second, and an earlier expiry is noticed.
func TestRunRetriesAndSeesEarlierExpiry(t *testing.T) {
	m := &many{fails: 1, calls: make(chan int, 10), nextErr: errors.New("the disk is full")}
	s := newSetup(t, options{store: func(st command.Store) command.Store {
		m.Store = st
		return m
	}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for _, what := range []string{"a first", "a second, after a failure"} {
		select {
		case <-m.calls:
		case <-short(t).Done():
			t.Fatalf("10 s passed without %s look at what is over", what)
		}
	}
	cancel()
	if err := testwait.For(t, "the end of Run", done); err != nil {
		t.Error(err)
	}

	// Run waits for an expiry an hour away, which its first query returns.
	m = &many{calls: make(chan int, 10), asked: make(chan struct{}, 10)}
	m.next.Store(at.Add(time.Hour).Unix())
	s = newSetup(t, options{store: func(st command.Store) command.Store {
		m.Store = st
		return m
	}})
	ctx, cancel2 := context.WithCancel(t.Context())
	defer cancel2()
	go func() { done <- s.Run(ctx) }()
	until(t, "a first look for the next end", m.asked)
	testwait.For(t, "a first look at what is over", m.calls)
	s.order(command.Call{TTL: 2 * time.Hour}) // does not wake Run
	m.next.Store(at.Unix())                   // the result of Run's next query: now
	s.order(command.Call{TTL: time.Minute})
	select {
	case <-m.calls:
	case <-short(t).Done():
		t.Fatal("10 s passed without a look, though a nearer end was ordered")
	}
	cancel2()
	if err := testwait.For(t, "the end of Run", done); err != nil {
		t.Error(err)
	}
}

// A caller that waited, or had a line, leaves nothing behind.
func TestClosedDeliveriesAndWaitersReleaseMemory(t *testing.T) {
	s := newSetup(t, options{service: command.Options{Log: &logOf{}}})
	row := s.order(command.Call{})
	if _, err := s.Wait(ended(), tenant, row.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Wait(ended(), tenant, "cmd_other"); err == nil {
		t.Error("no error")
	}
	a, b := s.Watch(tenant, row.ID), s.Watch(tenant, row.ID)
	a.Close()
	if watched, _, _ := s.Remaining(); watched != 1 {
		t.Errorf("%d commands are watched by one of two, want 1", watched)
	}
	if _, err := s.Cancel(t.Context(), audit.Actor{Tenant: tenant}, row.ID); err != nil {
		t.Fatal(err)
	}
	if got := b.Wait(ended(), row); got.State != watchword.Cancelled {
		t.Errorf("who still watches was told %s", got.State)
	}
	b.Close()
	s.order(command.Call{})
	l := s.AttachFunc(tenant, "lamp-1", func() {})
	l.RequireLogProofs(0, 0)
	if _, _, err := l.Take(t.Context(), 0, "", 10); err != nil {
		t.Fatal(err)
	}
	if _, deliveries, covers := s.Remaining(); deliveries != 1 || covers != 1 {
		t.Errorf("%d lines, %d wait for a checkpoint", deliveries, covers)
	}
	l.Close()
	if watched, deliveries, covers := s.Remaining(); watched != 0 || deliveries != 0 || covers != 0 {
		t.Errorf("%d commands are watched, %d devices have lines, %d wait for a checkpoint, after all have gone", watched, deliveries, covers)
	}
}

func TestAReceiptTooLargeIsRefusedAsSuch(t *testing.T) {
	s := newSetup(t, options{})
	_, err := s.ApplyReceipt(t.Context(), tenant, "lamp-1", watchword.AuthorityVersions{Local: true}, strings.Repeat("x", watchword.MaxDocument+1), "")
	wantCode(t, "a receipt over the limit", err, watchword.TooLarge)
}
