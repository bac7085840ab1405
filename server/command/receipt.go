package command

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/token"
)

// ReceiptCost is the cost of a receipt in limits.control_rate of the device that sends it, over HTTP and MQTT: its
// signature is verified, and it is written.
const ReceiptCost = 1

// ApplyReceipt verifies a receipt that device handed in and settles its command.
// The same receipt again changes nothing and is not an error. b is what the device's right to hand it in
// was decided on: run it in [session.Session.RunAuthorized]. trace is the request's.
//
// Codes: receipt_invalid where the receipt does not verify or matches nothing that was delivered, so
// that its fault is not taken for one of the caller's token; too_large; conflict where the command was
// settled otherwise.
func (svc *Service) ApplyReceipt(ctx context.Context, t watchword.TenantID, device watchword.SubjectID, b watchword.AuthorityVersions, raw, trace string) (Row, error) {
	now := svc.opts.Now()
	who, err := svc.directory.Principal(ctx, t, device)
	if err != nil {
		return Row{}, err
	}
	keys, err := who.Keys.VerificationKeys(now) // a retired key may have signed before it was replaced
	if err != nil {
		return Row{}, err
	}
	r, key, err := token.VerifyReceipt(raw, keys, device, token.ClaimedIssuer(raw, svc.opts.Issuers().Accepted(t, now)))
	switch {
	case watchword.CodeOf(err) == watchword.TooLarge:
		return Row{}, err
	case err != nil:
		return Row{}, watchword.WrapRefusal(err, watchword.ReceiptInvalid, "the receipt is not valid")
	}
	if err := svc.checkRetiredKey(ctx, who.Subject, key, r, now); err != nil {
		return Row{}, err
	}
	sealed, err := svc.sealer.Seal(receiptContext(r.Command), []byte(raw))
	if err != nil {
		return Row{}, err
	}
	kind := audit.CommandSettle
	if r.Status == watchword.StatusConflict {
		kind = audit.CommandConflict
		slog.ErrorContext(ctx, "device saw two commands with one number",
			slog.String("device", string(device)), slog.String("command", string(r.Command)), slog.Int64("seq", r.Seq))
	}
	by := audit.Actor{Tenant: t, Subject: device, Key: key, Trace: trace, Versions: b}
	row, changed, err := svc.store.ApplyReceipt(ctx, by, ReceiptUpdate{
		Tenant: t, Device: device, ID: r.Command, Epoch: r.Epoch, Seq: r.Seq, Hash: r.Hash, Status: r.Status, Key: key, JWS: sealed, At: now,
	}, audit.FixedEntry[Row](by.DoneEntry(kind, string(r.Command), now, map[string]string{
		"st": string(r.Status), "ch": r.Hash, "epoch": strconv.FormatInt(r.Epoch, 10), "seq": strconv.FormatInt(r.Seq, 10), "receipt": jose.HashString(raw),
	})))
	if err == nil && changed {
		svc.notify(row)
	}
	return row, err
}

// checkRetiredKey refuses a receipt by a retired key for a command that was handed over after the key was replaced, so that
// a stolen old key cannot answer new commands. A command that was handed over before may have been answered before. Code:
// receipt_invalid.
func (svc *Service) checkRetiredKey(ctx context.Context, s *watchword.Subject, key watchword.KeyID, r token.Receipt, now time.Time) error {
	i := slices.IndexFunc(s.Keys, func(k watchword.Key) bool { return k.ID == key })
	if i < 0 || s.Keys[i].ValidAt(now) {
		return nil
	}
	hs, err := svc.store.Handovers(ctx, s.Tenant, r.Command)
	if err != nil {
		return err
	}
	for _, h := range hs {
		if h.Hash == r.Hash && !h.At.After(s.Keys[i].Retired) {
			return nil
		}
	}
	return watchword.Refuse(watchword.ReceiptInvalid, "the receipt must be signed by the key that the device had when the command was delivered")
}
