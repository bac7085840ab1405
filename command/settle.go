package command

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/internal/wall"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// ReceiptCost is what a receipt counts against limits.control_rate of who hands it in, over HTTP and MQTT: its signature
// is checked, and it is written.
const ReceiptCost = 1

// TakeReceipt verifies a receipt that device handed in and settles its command.
// The same receipt again changes nothing and is no error. b is what the device's right to hand it in
// was decided on: run it in [session.Session.Act]. trace is the request's.
//
// Codes: those of [token.VerifyReceipt]; receipt_invalid where it fits nothing
// that was handed over; conflict where the command was settled otherwise.
func (d *Desk) TakeReceipt(ctx context.Context, t watchword.TenantID, device watchword.SubjectID, b watchword.Basis, raw, trace string) (Row, error) {
	now := d.o.Now()
	who, err := d.directory.Principal(ctx, t, device)
	if err != nil {
		return Row{}, err
	}
	keys, err := who.Keys.Signed() // a retired key may have signed before it was replaced
	if err != nil {
		return Row{}, err
	}
	r, key, err := token.VerifyReceipt(raw, keys, device, d.o.Issuer)
	if err != nil {
		return Row{}, err
	}
	if err := d.inTime(ctx, who.Subject, key, r); err != nil {
		return Row{}, err
	}
	sealed, err := d.safe.Seal(receiptAtRest(r.Command), []byte(raw))
	if err != nil {
		return Row{}, err
	}
	kind := audit.CommandSettle
	if r.Status == watchword.StConflict {
		kind = audit.CommandConflict
		slog.ErrorContext(ctx, "device saw two commands with one number",
			slog.String("device", string(device)), slog.String("command", string(r.Command)), slog.Int64("seq", r.Seq))
	}
	by := audit.Actor{Tenant: t, Subject: device, Key: key, Trace: trace, Basis: b}
	row, changed, err := d.store.Settle(ctx, by, Settlement{
		Tenant: t, Device: device, ID: r.Command, Epoch: r.Epoch, Seq: r.Seq, Hash: r.Hash, Status: r.Status, Key: key, JWS: sealed, At: now,
	}, audit.Always[Row](by.Did(kind, string(r.Command), now, map[string]string{
		"st": string(r.Status), "ch": r.Hash, "epoch": strconv.FormatInt(r.Epoch, 10), "seq": strconv.FormatInt(r.Seq, 10), "receipt": jose.HashOf(raw),
	})))
	if err == nil && changed {
		d.tell(row)
	}
	return row, err
}

// inTime refuses a receipt by a retired key for what was handed over after it was
// replaced: whoever finds an old key answers for nothing new. What was handed over
// before may have been answered before. Code: receipt_invalid.
func (d *Desk) inTime(ctx context.Context, s *watchword.Subject, key watchword.KeyID, r token.Receipt) error {
	i := slices.IndexFunc(s.Keys, func(k watchword.Key) bool { return k.ID == key })
	if i < 0 || s.Keys[i].State == watchword.KeyActive {
		return nil
	}
	hs, err := d.store.Handovers(ctx, s.Tenant, r.Command)
	if err != nil {
		return err
	}
	for _, h := range hs {
		if h.Hash == r.Hash && !h.At.After(s.Keys[i].Retired) {
			return nil
		}
	}
	return watchword.Refuse(watchword.ReceiptInvalid, "the key was replaced before this command was handed over")
}

// expireBatch is how many commands end in one transaction.
const expireBatch = 500

// Run ends commands on time until ctx ends.
func (d *Desk) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	ahead := wall.Start(d.o.Now, d.lookAgain) // the timer counts monotonic time
	defer ahead.Stop()
	for {
		select {
		case <-timer.C:
			if err := d.expire(ctx); err != nil && ctx.Err() == nil {
				slog.ErrorContext(ctx, "commands not expired", slog.Any("err", err))
			}
		case <-d.soon:
		case <-ctx.Done():
			return nil
		}
		next, err := d.store.NextExpiry(ctx)
		if err != nil {
			next = d.o.Now().Add(time.Second) // the store is asked again soon; what is over is not handed out meanwhile
		}
		d.mu.Lock()
		d.nextEnd = next
		d.mu.Unlock()
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(max(next.Sub(d.o.Now()), time.Millisecond))
		}
	}
}

// expire ends what is over.
func (d *Desk) expire(ctx context.Context) error {
	for {
		now := d.o.Now()
		rows, err := d.store.ExpireCommands(ctx, now, expireBatch, func(r, _ Row) audit.Entry {
			return audit.Actor{Tenant: r.Tenant}.Did(audit.CommandExpire, string(r.ID), now, map[string]string{"before": string(r.State), "device": string(r.Device)})
		})
		if err != nil {
			return err
		}
		for _, r := range rows {
			d.tell(r)
		}
		if len(rows) < expireBatch {
			return nil
		}
	}
}

// hurry tells Run of a new end, if it is nearer than the one Run waits for.
func (d *Desk) hurry(end time.Time) {
	d.mu.Lock()
	nearer := d.nextEnd.IsZero() || end.Before(d.nextEnd)
	if nearer {
		d.nextEnd = end
	}
	d.mu.Unlock()
	if nearer {
		d.lookAgain()
	}
}

// lookAgain has Run ask for the next end.
func (d *Desk) lookAgain() {
	select {
	case d.soon <- struct{}{}:
	default:
	}
}
