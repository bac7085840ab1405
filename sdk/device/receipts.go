package device

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/token"
)

// Sending of receipts.
const (
	maxUnansweredReceipts = 256              // receipts without an answer of the server; above it no further command is begun
	receiptRetry          = time.Minute      // pause before a temporarily refused receipt is sent again; doubled each time
	receiptRejectedRetry  = 24 * time.Hour   // pause before a permanently refused receipt is sent again
	receiptCheckEvery     = 30 * time.Second // interval of checks for receipts whose pause has ended
)

// ErrStopping is the cause (context.Cause) with which a handler's context ends when [Device.Run] ends. If the handler then
// returns an error, the receipt is "interrupted".
var ErrStopping = errors.New("the device stops")

// receivedCommand is an encrypted command on its way from the connection to the goroutine that executes commands. begun
// receives nil when its number is on the disk, or the error for which it is not executed.
type receivedCommand struct {
	jwe   string
	begun chan error
}

// executeLoop executes one command after the other until ctx ends. If the journal cannot be written no command is begun,
// and the next command tries to write again. handlers is the context of the functions.
func (r *run) executeLoop(ctx, handlers context.Context) {
	r.signInterrupted()
	r.receipts.trigger()
	for {
		acting := r.commands
		if r.unansweredReceipts(nil) >= maxUnansweredReceipts {
			acting = nil
		}
		select {
		case h := <-acting:
			switch watchword.CodeOf(r.executeReceived(handlers, h)) {
			case watchword.CommandExpired, watchword.TokenEarly:
				r.doubtTime() // the server signed it just now, by its clock
			}
			r.receipts.trigger()
		case <-r.receiptAnswered: // there may be room for further commands
		case <-ctx.Done():
			return
		}
	}
}

func (d *Device) executeReceived(ctx context.Context, h receivedCommand) error {
	d.executeMu.Lock()
	defer d.executeMu.Unlock()
	t, err := d.begin(h.jwe)
	h.begun <- err
	switch {
	case err != nil:
	case t.receipt != "":
		d.resendReceipt(t)
	default:
		_, err = d.finish(ctx, t)
	}
	if err != nil {
		d.opts.Log.Warn("command not obeyed", slog.String("code", string(watchword.CodeOf(err))), slog.Any("err", err))
	}
	return err
}

// resendReceipt sends the receipt again of a command that was received twice.
func (d *Device) resendReceipt(t startedCommand) {
	d.stateMu.Lock()
	defer d.stateMu.Unlock()
	p := position{t.command.Epoch, t.command.Seq}
	if a := d.journal.find(p); a != nil && a.ID == t.command.ID {
		a.Sent = false
		return
	}
	if len(d.journal.executions) < 2*maxExecutions {
		d.journal.executions = append(d.journal.executions, &execution{ID: t.command.ID, Receipt: t.receipt}) // a conflict: sent once, not remembered
	}
}

// signInterrupted signs receipts for interrupted commands. They are sent even if they cannot be stored.
func (d *Device) signInterrupted() {
	d.executeMu.Lock() // a function of an earlier Run may still be running
	defer d.executeMu.Unlock()
	d.stateMu.Lock()
	defer d.stateMu.Unlock()
	for _, a := range d.journal.executions {
		if a.Receipt != "" {
			continue
		}
		if err := d.interrupt(a); err != nil {
			d.opts.Log.Error("no receipt for a command that was cut off", slog.String("command", string(a.ID)), slog.Any("err", err))
		}
	}
}

// receiptPause is the time at which a refused receipt is sent again.
type receiptPause struct {
	until time.Time
	last  time.Duration
}

// sendReceipts sends the receipts that the server has not accepted yet, oldest first. A refused receipt does not delay the
// others: it stays unsent, and is sent again after a pause. The error is that of an unreachable server.
func (r *run) sendReceipts(ctx context.Context) error {
	var list []*execution
	r.unansweredReceipts(&list)
	kept := map[string]receiptPause{} // of the receipts that still exist
	for _, a := range list {
		if p, ok := r.receiptPauses[a.Receipt]; ok {
			kept[a.Receipt] = p
		}
	}
	r.receiptPauses = kept
	for _, a := range list {
		p := r.receiptPauses[a.Receipt]
		if time.Now().Before(p.until) {
			continue
		}
		err := r.postReceipt(ctx, a.Receipt)
		switch {
		case err == nil:
			delete(r.receiptPauses, a.Receipt)
			if err := r.markSent(a); err != nil { // after a restart it is sent again
				r.opts.Log.Warn("the journal does not record that a receipt was sent", slog.String("command", string(a.ID)), slog.Any("err", err))
			}
			signal(r.receiptAnswered)
			continue
		case ctx.Err() != nil:
			return nil
		case isUnreachable(err):
			return err
		case isFinalRefusal(err):
			if r.resignReceipt(a, err) {
				r.receipts.trigger()
				continue
			}
			p.last = receiptRejectedRetry
			r.markRefused(a)
			signal(r.receiptAnswered)
		default:
			p.last = min(max(2*p.last, receiptRetry), receiptRejectedRetry)
		}
		p.until = time.Now().Add(p.last)
		r.receiptPauses[a.Receipt] = p
		r.opts.Log.Warn("the server does not take a receipt", slog.String("command", string(a.ID)), slog.String("code", string(watchword.CodeOf(err))),
			slog.Duration("pause", p.last), slog.Any("err", err))
	}
	return nil
}

// resignReceipt signs a refused receipt again if the fault is in the receipt: it is of a build that did not check what it
// signed, or its key is no longer valid. It reports whether there is a new receipt, which passes the server's checks; so
// this happens once.
func (d *Device) resignReceipt(a *execution, refused error) bool {
	switch watchword.CodeOf(refused) {
	case watchword.Conflict, watchword.NotFound:
		return false // the server has another receipt, or did not order the command: a new signature does not help
	}
	d.stateMu.Lock()
	defer d.stateMu.Unlock()
	if a.Seq == 0 || a.ID == "" {
		return false
	}
	_, _, err := token.VerifyReceipt(a.Receipt, token.NewKeySet(d.signer.Load().Public()), d.identity.ID, d.issuer())
	if err == nil {
		return false
	}
	st, result := watchword.StatusFailed, any(resultInvalid)
	if old, rerr := token.ReadReceipt(a.Receipt, d.identity.ID, token.ClaimedIssuer(a.Receipt, d.trust.Load().IssuerNames())); rerr == nil {
		if st, result = old.Status, nil; old.Result != nil {
			result = old.Result
		}
	}
	receipt, serr := d.signReceipt(a.position, a.ID, a.Hash, st, result)
	if serr != nil {
		d.opts.Log.Warn("a receipt that the server refused cannot be signed anew", slog.String("command", string(a.ID)), slog.Any("err", serr))
		return false
	}
	d.opts.Log.Warn("the server refused a receipt; another takes its place", slog.String("command", string(a.ID)), slog.Any("refused", refused), slog.Any("err", err))
	if err := d.journal.write(journalRecord{"end", execution{position: a.position, ID: a.ID, Hash: a.Hash, Receipt: receipt}}, true); err != nil {
		d.opts.Log.Error("it is not on the disk yet", slog.Any("err", err))
	}
	return true
}

// markRefused records that a receipt no longer delays further commands: the server has answered it.
func (d *Device) markRefused(a *execution) {
	d.stateMu.Lock()
	defer d.stateMu.Unlock()
	a.refused = true
}

func (d *Device) markSent(a *execution) error {
	d.stateMu.Lock()
	defer d.stateMu.Unlock()
	a.Sent = true
	if a.Seq == 0 {
		return nil // a conflict, which is not in the journal
	}
	return d.journal.write(journalRecord{"sent", execution{position: a.position}}, false)
}

// unansweredReceipts counts the receipts that the server has not answered. If list is not nil it appends those that the
// server has not accepted; their receipts no longer change.
func (d *Device) unansweredReceipts(list *[]*execution) (n int) {
	d.stateMu.Lock()
	defer d.stateMu.Unlock()
	for _, a := range d.journal.executions {
		if a.Receipt == "" || a.Sent {
			continue
		}
		if !a.refused {
			n++
		}
		if list != nil {
			*list = append(*list, a)
		}
	}
	return n
}

func (d *Device) postReceipt(ctx context.Context, receipt string) error {
	if sent, err := d.publishMQTT(ctx, "receipts", "application/jose", []byte(receipt)); sent {
		return err
	}
	body, err := json.Marshal(api.ReceiptRequest{Receipt: receipt})
	if err != nil {
		return err
	}
	_, err = d.client.Do(ctx, rest.Request{Method: http.MethodPost, Path: "/v1/self/receipts", Type: "application/json", Body: body})
	return err
}

// isUnreachable reports whether an error concerns the server or the device as a whole, not one message: the server was not
// reached, is busy, or refuses this device.
func isUnreachable(err error) bool {
	switch watchword.CodeOf(err) {
	case watchword.Unavailable, watchword.ClockUntrusted, watchword.Superseded, watchword.Busy, watchword.RateLimited, watchword.TimedOut, watchword.SubjectRevoked:
		return true
	}
	return errors.Is(err, context.DeadlineExceeded)
}

// isFinalRefusal reports whether the server has permanently refused this receipt.
func isFinalRefusal(err error) bool {
	switch watchword.CodeOf(err) {
	case watchword.ReceiptInvalid, watchword.Conflict, watchword.BadRequest, watchword.TooLarge, watchword.NotFound:
		return true
	}
	return false
}
