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

// Receipts on their way.
const (
	maxUnansweredReceipts = 256              // that the server has not answered; with more, no further command is begun
	receiptRetry          = time.Minute      // before a receipt that was refused for now is sent again; doubled each time
	receiptRejectedRetry  = 24 * time.Hour   // before one that was refused permanently is
	receiptCheckEvery     = 30 * time.Second // between two looks for receipts whose pause is over
)

// ErrStopping is the cause (context.Cause) of the end of a handler's context where [Device.Run]
// ends. A handler that was cut off by it returns an error, and the receipt is "interrupted".
var ErrStopping = errors.New("the device stops")

// receivedCommand is a sealed command on its way from the connection to the goroutine that carries it
// out. begun says that its number is on the disk, or why it is nothing to obey.
type receivedCommand struct {
	jwe   string
	begun chan error
}

// executeLoop carries out one command after the other until ctx ends. Where the journal cannot be
// written none is begun, and the next one tries anew. handlers is the context of the functions.
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
			r.executeReceived(handlers, h)
			r.receipts.trigger()
		case <-r.receiptAnswered: // there may be room again
		case <-ctx.Done():
			return
		}
	}
}

func (d *Device) executeReceived(ctx context.Context, h receivedCommand) {
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
}

// resendReceipt makes sure that the receipt of a command that came twice is sent twice.
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

// signInterrupted signs for what was cut off. What cannot be written down is said all the same.
func (d *Device) signInterrupted() {
	d.executeMu.Lock() // an act of an earlier Run that did not end may be under way
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

// receiptPause is when a receipt that the server refused is sent again.
type receiptPause struct {
	until time.Time
	last  time.Duration
}

// sendReceipts sends the receipts that the server has not taken yet, oldest first. One that the
// server refuses stands in no other's way: it stays unsent, and is sent again after a pause.
// The error is why the server could not be asked.
func (r *run) sendReceipts(ctx context.Context) error {
	var list []*execution
	r.unansweredReceipts(&list)
	kept := map[string]receiptPause{} // of those that are still there
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
			if err := r.markSent(a); err != nil {
				return err
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

// resignReceipt signs again where the server refused a receipt and the fault is in it: one of a build that
// did not check what it signed, or one by a key that is not valid any more. It reports whether
// there is another receipt now, which this device would take as the server does; so that comes once.
func (d *Device) resignReceipt(a *execution, refused error) bool {
	switch watchword.CodeOf(refused) {
	case watchword.Conflict, watchword.NotFound:
		return false // the server has another answer, or never ordered it: nothing that is signed changes that
	}
	d.stateMu.Lock()
	defer d.stateMu.Unlock()
	if a.Seq == 0 || a.ID == "" {
		return false
	}
	_, _, err := token.VerifyReceipt(a.Receipt, token.NewKeySet(d.signer.Load().Public()), d.identity.ID, d.identity.Issuer)
	if err == nil {
		return false
	}
	st, result := watchword.StatusFailed, any(resultInvalid)
	if old, rerr := token.ReadReceipt(a.Receipt, d.identity.ID, d.identity.Issuer); rerr == nil {
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

// markRefused notes that a receipt holds up no further commands: the server has answered it.
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
		return nil // a conflict, which the journal does not have
	}
	return d.journal.write(journalRecord{"sent", execution{position: a.position}}, false)
}

// unansweredReceipts counts the receipts that the server has not answered, and lists those that it has not
// taken where list is not nil. What is listed has its receipt, which does not change any more.
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

// isUnreachable reports whether the server was not reached, has no time now, or hears nothing of
// this device: what it says of one message, it would say of each.
func isUnreachable(err error) bool {
	switch watchword.CodeOf(err) {
	case watchword.Unavailable, watchword.Busy, watchword.RateLimited, watchword.TimedOut, watchword.SubjectRevoked:
		return true
	}
	return errors.Is(err, context.DeadlineExceeded)
}

// isFinalRefusal reports whether the server has said no to this very receipt,
// and will go on saying so.
func isFinalRefusal(err error) bool {
	switch watchword.CodeOf(err) {
	case watchword.ReceiptInvalid, watchword.Conflict, watchword.BadRequest, watchword.TooLarge, watchword.NotFound:
		return true
	}
	return false
}
