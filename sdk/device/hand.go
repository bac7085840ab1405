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
	receiptsWaiting = 256              // that the server has not answered; with more, no further command is begun
	receiptAgain    = time.Minute      // before a receipt that was refused for now is sent again; doubled each time
	receiptNo       = 24 * time.Hour   // before one that was refused for good is
	receiptLook     = 30 * time.Second // between two looks for receipts whose pause is over
)

// ErrStopping is the cause (context.Cause) of the end of a handler's context where [Device.Run]
// ends. A handler that was cut off by it returns an error, and the receipt is "interrupted".
var ErrStopping = errors.New("the device stops")

// inHand is a sealed command on its way from the connection to the goroutine that carries it
// out. begun says that its number is on the disk, or why it is nothing to obey.
type inHand struct {
	jwe   string
	begun chan error
}

// act carries out one command after the other until ctx ends. Where the journal cannot be
// written none is begun, and the next one tries anew. handlers is the context of the functions.
func (r *run) act(ctx, handlers context.Context) {
	r.catchUp()
	r.receipts.soon()
	for {
		acting := r.acting
		if r.unsent(nil) >= receiptsWaiting {
			acting = nil
		}
		select {
		case h := <-acting:
			r.actOn(handlers, h)
			r.receipts.soon()
		case <-r.sent: // there may be room again
		case <-ctx.Done():
			return
		}
	}
}

func (d *Device) actOn(ctx context.Context, h inHand) {
	d.obeying.Lock()
	defer d.obeying.Unlock()
	t, err := d.begin(h.jwe)
	h.begun <- err
	switch {
	case err != nil:
	case t.receipt != "":
		d.again(t)
	default:
		_, err = d.finish(ctx, t)
	}
	if err != nil {
		d.o.Log.Warn("command not obeyed", slog.String("code", string(watchword.CodeOf(err))), slog.Any("err", err))
	}
}

// again makes sure that the receipt of a command that came twice is sent twice.
func (d *Device) again(t unfinished) {
	d.memory.Lock()
	defer d.memory.Unlock()
	p := position{t.command.Epoch, t.command.Seq}
	if a := d.journal.find(p); a != nil && a.ID == t.command.ID {
		a.Sent = false
		return
	}
	if len(d.journal.acts) < 2*journalActs {
		d.journal.acts = append(d.journal.acts, &act{ID: t.command.ID, Receipt: t.receipt}) // a conflict: sent once, not remembered
	}
}

// catchUp signs for what was cut off. What cannot be written down is said all the same.
func (d *Device) catchUp() {
	d.obeying.Lock() // an act of an earlier Run that did not end may be under way
	defer d.obeying.Unlock()
	d.memory.Lock()
	defer d.memory.Unlock()
	for _, a := range d.journal.acts {
		if a.Receipt != "" {
			continue
		}
		if err := d.interrupt(a); err != nil {
			d.o.Log.Error("no receipt for a command that was cut off", slog.String("command", string(a.ID)), slog.Any("err", err))
		}
	}
}

// paused is when a receipt that the server refused is sent again.
type paused struct {
	until time.Time
	last  time.Duration
}

// handIn sends the receipts that the server has not taken yet, oldest first. One that the
// server refuses stands in no other's way: it stays unsent, and is sent again after a pause.
// The error is why the server could not be asked.
func (r *run) handIn(ctx context.Context) error {
	var list []*act
	r.unsent(&list)
	kept := map[string]paused{} // of those that are still there
	for _, a := range list {
		if p, ok := r.paused[a.Receipt]; ok {
			kept[a.Receipt] = p
		}
	}
	r.paused = kept
	for _, a := range list {
		p := r.paused[a.Receipt]
		if time.Now().Before(p.until) {
			continue
		}
		err := r.postReceipt(ctx, a.Receipt)
		switch {
		case err == nil:
			delete(r.paused, a.Receipt)
			if err := r.wasSent(a); err != nil {
				return err
			}
			leaveWord(r.sent)
			continue
		case ctx.Err() != nil:
			return nil
		case noAnswer(err):
			return err
		case settledAnyway(err):
			if r.replace(a, err) {
				r.receipts.soon()
				continue
			}
			p.last = receiptNo
			r.wasRefused(a)
			leaveWord(r.sent)
		default:
			p.last = min(max(2*p.last, receiptAgain), receiptNo)
		}
		p.until = time.Now().Add(p.last)
		r.paused[a.Receipt] = p
		r.o.Log.Warn("the server does not take a receipt", slog.String("command", string(a.ID)), slog.String("code", string(watchword.CodeOf(err))),
			slog.Duration("pause", p.last), slog.Any("err", err))
	}
	return nil
}

// replace signs anew where the server refused a receipt and the fault is in it: one of a build that
// did not check what it signed, or one by a key that counts no more. It reports whether
// there is another receipt now, which this device would take as the server does; so that comes once.
func (d *Device) replace(a *act, refused error) bool {
	switch watchword.CodeOf(refused) {
	case watchword.Conflict, watchword.NotFound:
		return false // the server has another answer, or never ordered it: nothing that is signed changes that
	}
	d.memory.Lock()
	defer d.memory.Unlock()
	if a.Seq == 0 || a.ID == "" {
		return false
	}
	_, _, err := token.VerifyReceipt(a.Receipt, token.NewKeySet(d.signer.Load().Public()), d.id.ID, d.id.Issuer)
	if err == nil {
		return false
	}
	st, result := watchword.StFailed, any(resultInvalid)
	if old, rerr := token.ReadReceipt(a.Receipt, d.id.ID, d.id.Issuer); rerr == nil {
		if st, result = old.Status, nil; old.Result != nil {
			result = old.Result
		}
	}
	receipt, serr := d.sign(a.position, a.ID, a.Hash, st, result)
	if serr != nil {
		d.o.Log.Warn("a receipt that the server refused cannot be signed anew", slog.String("command", string(a.ID)), slog.Any("err", serr))
		return false
	}
	d.o.Log.Warn("the server refused a receipt; another takes its place", slog.String("command", string(a.ID)), slog.Any("refused", refused), slog.Any("err", err))
	if err := d.journal.write(record{"end", act{position: a.position, ID: a.ID, Hash: a.Hash, Receipt: receipt}}, true); err != nil {
		d.o.Log.Error("it is not on the disk yet", slog.Any("err", err))
	}
	return true
}

// wasRefused notes that a receipt holds up no further commands: the server has answered it.
func (d *Device) wasRefused(a *act) {
	d.memory.Lock()
	defer d.memory.Unlock()
	a.refused = true
}

func (d *Device) wasSent(a *act) error {
	d.memory.Lock()
	defer d.memory.Unlock()
	a.Sent = true
	if a.Seq == 0 {
		return nil // a conflict, which the journal does not have
	}
	return d.journal.write(record{"sent", act{position: a.position}}, false)
}

// unsent counts the receipts that the server has not answered, and lists those that it has not
// taken where list is not nil. What is listed has its receipt, which does not change any more.
func (d *Device) unsent(list *[]*act) (n int) {
	d.memory.Lock()
	defer d.memory.Unlock()
	for _, a := range d.journal.acts {
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
	if sent, err := d.overWire(ctx, "receipts", "application/jose", []byte(receipt)); sent {
		return err
	}
	body, err := json.Marshal(api.ReceiptRequest{Receipt: receipt})
	if err != nil {
		return err
	}
	_, err = d.client.Do(ctx, rest.Request{Method: http.MethodPost, Path: "/v1/self/receipts", Type: "application/json", Body: body})
	return err
}

// noAnswer reports whether the server was not reached, has no time now, or hears nothing of
// this device: what it says of one message, it would say of each.
func noAnswer(err error) bool {
	switch watchword.CodeOf(err) {
	case watchword.Unavailable, watchword.Busy, watchword.RateLimited, watchword.TimedOut, watchword.SubjectRevoked:
		return true
	}
	return errors.Is(err, context.DeadlineExceeded)
}

// settledAnyway reports whether the server has said no to this very receipt,
// and will go on saying so.
func settledAnyway(err error) bool {
	switch watchword.CodeOf(err) {
	case watchword.ReceiptInvalid, watchword.Conflict, watchword.BadRequest, watchword.TooLarge, watchword.NotFound:
		return true
	}
	return false
}
