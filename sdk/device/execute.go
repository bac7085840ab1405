package device

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"syscall"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// Execute verifies one encrypted command, executes it, and returns the signed receipt, which is already on the disk. Only
// applications with a transport of their own need it: [Device.Run] calls it for the built-in transports. A command that was
// executed before is not executed again: its earlier receipt is returned. One command is executed at a time.
//
// An error means that there is no receipt, because the command cannot be authenticated, or because it arrived too late:
// command_unsealed, signature_invalid, token_malformed, token_kind, algorithm_invalid, key_unknown, issuer_mismatch,
// audience_mismatch, command_expired, token_early, nonce_mismatch, command_stale, bundle_invalid, command_unlogged (with
// [Options.RequireLogProof]), too_large (with [Options.MaxCommand]), unavailable if neither the journal nor the counters can be
// written. If only the journal cannot be, as on a full disk, the receipt is a refusal with the code unavailable.
func (d *Device) Execute(ctx context.Context, jwe string) (receipt string, err error) {
	if d.identity == nil {
		return "", errNotEnrolled()
	}
	d.executeMu.Lock()
	defer d.executeMu.Unlock()
	t, err := d.begin(jwe)
	if err != nil || t.receipt != "" {
		return t.receipt, err
	}
	return d.finish(ctx, t)
}

// startedCommand is a verified command before its receipt.
type startedCommand struct {
	command token.Command
	hash    string
	receipt string // set if the receipt is already known
}

// begin verifies a command and stores its number. The caller holds executeMu.
func (d *Device) begin(jwe string) (startedCommand, error) {
	d.stateMu.Lock()
	defer d.stateMu.Unlock()
	unstored := d.journal.ready()
	if unstored != nil && d.journal.counters == nil {
		return startedCommand{}, unstored
	}
	c, hash, err := d.verifyCommand(jwe)
	if err != nil {
		return startedCommand{}, err
	}
	t := startedCommand{command: c, hash: hash}
	p := position{c.Epoch, c.Seq}
	if !p.after(d.journal.last) {
		return d.handleKnown(t, p)
	}
	if d.journal.last.Epoch == p.Epoch && p.Seq > d.journal.last.Seq+1 && d.journal.last.Seq > 0 {
		d.opts.Log.Info("numbers were passed over", slog.Int64("from", d.journal.last.Seq+1), slog.Int64("to", p.Seq-1))
	}
	for tries := 0; unstored == nil; tries++ {
		err := d.journal.write(journalRecord{"begin", execution{position: p, ID: c.ID, Hash: hash}}, true)
		if err == nil {
			return t, nil
		}
		if unstored = d.journal.ready(); unstored == nil && tries > 0 { // it can be rewritten, and no record added
			unstored = err
		}
	}
	return d.refuseUnstored(t, p, unstored)
}

// refuseUnstored answers a new command that the journal cannot store, as on a full disk, with a signed refusal: it is not
// executed, also if the server sends it again. If the counters cannot be written either, there is no answer, and the error is
// cause: the server sends the command again. The caller holds stateMu.
func (d *Device) refuseUnstored(t startedCommand, p position, cause error) (startedCommand, error) {
	receipt, err := d.signReceipt(p, t.command.ID, t.hash, watchword.StatusRefused,
		failureResult{string(watchword.Unavailable), "the device cannot store commands: " + rootCause(cause).Error()})
	if err != nil {
		return startedCommand{}, errors.Join(cause, err)
	}
	if err := d.journal.refuse(execution{position: p, ID: t.command.ID, Hash: t.hash, Receipt: receipt}); err != nil {
		return startedCommand{}, errors.Join(cause, err)
	}
	d.opts.Log.Warn("command refused: it cannot be stored", slog.String("command", string(t.command.ID)), slog.Any("err", cause))
	t.receipt = receipt
	return t, nil
}

// rootCause returns the error number behind an error of the disk, without the paths of this device; else err.
func rootCause(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}

// verifyCommand makes all checks that do not need the journal: encryption, signature, issuer, audience, time or nonce. The
// caller holds stateMu.
func (d *Device) verifyCommand(jwe string) (token.Command, string, error) {
	if limit := d.opts.MaxCommand; limit > 0 && len(jwe) > limit {
		return token.Command{}, "", watchword.Refuse(watchword.TooLarge, "the sealed command has %d bytes, and this device accepts %d", len(jwe), limit)
	}
	trust := d.trust.Load()
	if d.hasExpired(trust.Expires) {
		return token.Command{}, "", watchword.Refuse(watchword.BundleInvalid, "the trust bundle has expired: no command is executed before a new one arrives")
	}
	jws, cty, err := d.decrypter.Load().Decrypt(jwe, watchword.MaxDocument)
	if err == nil && d.opts.RequireLogProof {
		if jws, err = d.verifyLogProof(jws, cty); err != nil {
			return token.Command{}, "", err
		}
	} else if err == nil && !jose.SameType(cty, "JWT") {
		return token.Command{}, "", watchword.Refuse(watchword.CommandUnsealed, "cty of the encrypted command must be JWT")
	} else if err != nil {
		return token.Command{}, "", watchword.WrapRefusal(err, watchword.CommandUnsealed, "the command must be encrypted to the sealing key of this device")
	}
	now, nonce := d.now(), ""
	if d.journal.lost || now.IsZero() {
		nonce = d.nonce.current(d.opts.Now())
	}
	c, err := token.VerifyCommand(string(jws), token.NewKeySet(trust.Command...), token.ClaimedIssuer(string(jws), trust.IssuerNames()), d.identity.ID, now, nonce)
	if err != nil {
		return token.Command{}, "", err
	}
	if d.hasExpired(c.Expires) {
		return token.Command{}, "", watchword.Refuse(watchword.CommandExpired, "the command expired before this device started")
	}
	if c.Epoch < trust.Epoch {
		return token.Command{}, "", watchword.Refuse(watchword.CommandStale, "the epoch of the command is lower than that of the trust bundle")
	}
	if c.Epoch > trust.Epoch { // only the root can restart the counters
		return token.Command{}, "", watchword.Refuse(watchword.BundleInvalid, "the epoch of the command is higher than that of the trust bundle")
	}
	return c, jose.HashString(string(jws)), nil
}

// handleKnown handles a command whose number is not greater than the last one. The caller holds stateMu.
func (d *Device) handleKnown(t startedCommand, p position) (startedCommand, error) {
	known := d.journal.find(p)
	switch {
	case known == nil:
		return t, watchword.Refuse(watchword.CommandStale, "seq %d must be higher than the last one, and this device never began that command", p.Seq)
	case known.ID == t.command.ID:
		var err error
		if known.Receipt == "" { // begun, and interrupted before its end
			err = d.interrupt(known)
		}
		t.receipt = known.Receipt
		return t, err
	default:
		d.opts.Log.Error("ALARM: two commands with one number; commands are forged, or the server lost its counters",
			slog.Int64("seq", p.Seq), slog.String("first", string(known.ID)), slog.String("second", string(t.command.ID)))
		var err error
		t.receipt, err = d.signReceipt(p, t.command.ID, t.hash, watchword.StatusConflict, map[string]any{"code": "conflict", "first": known.ID})
		return t, err
	}
}

// finish executes a begun command and stores its receipt. The caller holds executeMu.
func (d *Device) finish(ctx context.Context, t startedCommand) (string, error) {
	c := t.command
	var st watchword.ReceiptStatus
	var result any
	if err := d.verifyOrder(c); err != nil {
		st, result = watchword.StatusRefused, failureResult{string(watchword.OrderInvalid), "the signed order is not valid under a pinned key: " + string(watchword.CodeOf(err))}
	} else {
		st, result = d.runHandler(ctx, &Command{
			ID: c.ID, Function: c.Function, By: c.By, Epoch: c.Epoch, Seq: c.Seq, Expires: c.Expires, Raw: c.Args,
			accept: func(ctx context.Context) error {
				receipt, err := d.signReceipt(position{c.Epoch, c.Seq}, c.ID, t.hash, watchword.StatusAccepted, nil)
				if err != nil {
					return err
				}
				return d.postReceipt(ctx, receipt)
			},
		})
	}
	p := position{c.Epoch, c.Seq}
	receipt, err := d.signReceipt(p, c.ID, t.hash, st, result)
	switch watchword.CodeOf(err) {
	case watchword.BadRequest, watchword.TooLarge: // the function has run nevertheless
		d.opts.Log.Warn("the result of a command is not valid in a receipt", slog.String("command", string(c.ID)), slog.Any("err", err))
		receipt, err = d.signReceipt(p, c.ID, t.hash, invalidStatus(st), resultInvalid)
	}
	if err != nil {
		return "", err
	}
	d.stateMu.Lock()
	defer d.stateMu.Unlock()
	return receipt, d.journal.write(journalRecord{"end", execution{position: p, ID: c.ID, Hash: t.hash, Receipt: receipt}}, true)
}

// interrupt signs the receipt of an interrupted command, whose effects are unknown. The caller holds stateMu.
func (d *Device) interrupt(a *execution) error {
	why := failureResult{"interrupted", "the device stopped while it carried this out"}
	if d.journal.lost {
		why.Detail = "the device began this, and has lost its memory of the end"
	}
	receipt, err := d.signReceipt(a.position, a.ID, a.Hash, watchword.StatusInterrupted, why)
	if err != nil {
		return err
	}
	return d.journal.write(journalRecord{"end", execution{position: a.position, ID: a.ID, Hash: a.Hash, Receipt: receipt}}, true)
}

// resultInvalid replaces a result that is not allowed in a receipt.
var resultInvalid = failureResult{"result_invalid", "the function ended, but its result is not valid in a receipt: it must be strict JSON, at most 7 deep, and the receipt at most 32 KiB"}

// invalidStatus returns the status of a receipt whose result was replaced. A refusal stays a refusal, because nothing was
// done.
func invalidStatus(st watchword.ReceiptStatus) watchword.ReceiptStatus {
	if st == watchword.StatusDone {
		return watchword.StatusFailed
	}
	return st
}

// signReceipt signs a receipt within the limits that the server checks. Codes: bad_request and too_large if result is not
// allowed in a receipt; unavailable if the key does not sign.
func (d *Device) signReceipt(p position, id watchword.CommandID, hash string, st watchword.ReceiptStatus, result any) (string, error) {
	r := token.Receipt{
		Device: d.identity.ID, Issuer: d.issuer(), Epoch: p.Epoch, Seq: p.Seq, Command: id, Hash: hash, Status: st, At: d.bestTime(),
	}
	if result != nil {
		b, err := encodeResult(result)
		if err != nil {
			return "", watchword.Wrap(err, watchword.BadRequest, "the result must be valid JSON")
		}
		r.Result = b
	}
	return token.SignReceipt(d.signer.Load(), r)
}

// encodeResult is json.Marshal; a panic of a handler's type becomes an error.
func encodeResult(v any) (b []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("its encoding panicked: %v", p)
		}
	}()
	return json.Marshal(v)
}

// PinOrderKeys makes the device execute only commands that carry an order signed by one of these keys. Without it, the
// device trusts the server's statement of the subject that ordered a command.
func (d *Device) PinOrderKeys(keys ...*jose.PublicKey) {
	set := token.NewKeySet(keys...)
	d.orderKeys.Store(&set)
}

// verifyOrder verifies the order in the command, if keys were pinned.
func (d *Device) verifyOrder(c token.Command) error {
	keys := d.orderKeys.Load()
	if keys == nil {
		return nil
	}
	trust := d.trust.Load()
	own := func(server string) bool { return server == d.identity.Issuer || trust.HasIssuer(server) }
	o, err := token.VerifyOrder(c.Order, *keys, own, d.identity.ID, d.now())
	if err != nil {
		return err
	}
	return o.Covers(c.Function, c.Args, c.By, c.Expires)
}

// nonceLife is the lifetime of a nonce, by the monotonic clock and by the device's clock, even if that is wrong: the
// monotonic clock may stop while a machine is suspended.
const nonceLife = 2 * time.Minute

// nonce is the value by which a device without a clock, or without its counters, recognizes a fresh command.
type nonce struct {
	value string
	made  time.Time // by the monotonic clock
	wall  time.Time // by the device's clock
}

// current returns the nonce that commands must carry. The caller holds stateMu.
func (n *nonce) current(now time.Time) string {
	if n.value == "" || time.Since(n.made) > nonceLife || now.Round(0).Sub(n.wall) > nonceLife {
		n.value, n.made, n.wall = watchword.NewNonce(), time.Now(), now.Round(0)
	}
	return n.value
}
