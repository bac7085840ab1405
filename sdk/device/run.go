package device

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/rest"
)

// How a device waits: for commands, and after an error, longer each time.
const (
	pollWait   = 30 * time.Second
	backoffMin = 500 * time.Millisecond
	backoffMax = time.Minute
	trustEvery = 12 * time.Hour
	// pollPace is the time from a poll that brought nothing new to the next one. It grows to
	// half of pollWait, which is how long the server may hold a poll back: one that does so is
	// asked again at once.
	pollPace = time.Second
)

// Run announces the functions, then takes commands and obeys them until ctx
// ends: over MQTT 5, and over HTTPS while that cannot be had. It gets over lost connections, restarts of the
// server and ended tokens by itself. Where the server says that the device is revoked, it
// asks again once a day: see [Options.Revoked]. It returns nil when ctx ended, and an error
// only where the folder cannot be written.
func (d *Device) Run(ctx context.Context) error {
	if d.id == nil {
		return errNotEnrolled()
	}
	if d.lock == nil {
		return watchword.Refuse(watchword.FolderInUse, "the folder was opened to look, not to obey")
	}
	ctx, cancel := context.WithCancel(ctx)
	acting := make(chan inHand)
	acted := make(chan error, 1)
	go func() {
		defer cancel() // without a hand there is no use for the ear
		acted <- d.actor(ctx, acting)
	}()
	err := d.listen(ctx, acting)
	cancel()
	if aerr := <-acted; err == nil {
		err = aerr
	}
	return err
}

// inHand is a sealed command on its way from the ear to the hand. begun says
// that its number is on the disk, or why it is nothing to obey.
type inHand struct {
	jwe   string
	begun chan error
}

// actor carries out one command after the other and hands in the receipts.
func (d *Device) actor(ctx context.Context, acting <-chan inHand) error {
	if err := d.catchUp(ctx); err != nil {
		return err
	}
	for {
		select {
		case h := <-acting:
			d.actOn(ctx, h)
			if err := d.handIn(ctx); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
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
func (d *Device) again(t task) {
	p := position{t.command.Epoch, t.command.Seq}
	if a := d.journal.find(p); a != nil && a.ID == t.command.ID {
		a.Sent = false
		return
	}
	if len(d.journal.acts) < 2*journalActs {
		d.journal.acts = append(d.journal.acts, &act{ID: t.command.ID, Receipt: t.receipt}) // a conflict: sent once, not remembered
	}
}

// catchUp signs for what was cut off and hands in what was not.
func (d *Device) catchUp(ctx context.Context) error {
	d.obeying.Lock()
	for _, a := range d.journal.acts {
		if a.Receipt == "" {
			if err := d.interrupt(a); err != nil {
				d.obeying.Unlock()
				return err
			}
		}
	}
	d.obeying.Unlock()
	return d.handIn(ctx)
}

// handIn sends every receipt that the server has not answered yet, and waits as
// long as it takes. It returns an error only where there is no use in going on.
func (d *Device) handIn(ctx context.Context) error {
	for {
		a := d.unsent()
		if a == nil || ctx.Err() != nil {
			return nil
		}
		b := backoff{}
		for {
			err := d.postReceipt(ctx, a.Receipt)
			if err == nil || settledAnyway(err) {
				if err != nil {
					d.o.Log.Warn("the server does not take a receipt", slog.String("command", string(a.ID)), slog.Any("err", err))
				}
				break
			}
			if ctx.Err() != nil {
				return nil
			}
			err = d.judged(err)
			d.o.Log.Info("receipt waits", slog.Any("err", err))
			if !b.wait(ctx, err) {
				return nil
			}
		}
		d.obeying.Lock()
		err := d.journal.write(record{"sent", act{position: a.position}}, false)
		a.Sent = true
		d.obeying.Unlock()
		if err != nil {
			return err
		}
	}
}

func (d *Device) unsent() *act {
	d.obeying.Lock()
	defer d.obeying.Unlock()
	for _, a := range d.journal.acts {
		if a.Receipt != "" && !a.Sent {
			return a
		}
	}
	return nil
}

func (d *Device) postReceipt(ctx context.Context, receipt string) error {
	if sent, err := d.overWire(ctx, "receipts", "application/jose", []byte(receipt)); sent {
		return err
	}
	body, err := json.Marshal(map[string]string{"receipt": receipt})
	if err != nil {
		return err
	}
	_, err = d.client.Do(ctx, rest.Request{Method: http.MethodPost, Path: "/v1/self/receipts", Type: "application/json", Body: body})
	return err
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

// listen is the ear: over MQTT, and where that cannot be had by polling over HTTPS,
// with what was begun as acknowledged.
func (d *Device) listen(ctx context.Context, acting chan<- inHand) error {
	b := backoff{}
	pace := rest.Pace{Least: pollPace, Most: pollWait / 2}
	var trusted, rested time.Time
	polling := false
	for announced := false; ctx.Err() == nil; {
		d.tellTime(ctx)
		err := func() error {
			if err := d.settleKeys(ctx); err != nil {
				return err
			}
			if time.Since(trusted) > trustEvery {
				if err := d.renewTrust(ctx); err != nil {
					return err
				}
				trusted = time.Now()
			}
			if !announced {
				if err := d.announce(ctx); err != nil {
					return err
				}
				announced = true
			}
			if d.id.MQTTS == "" || time.Since(rested) < wireRest {
				if !polling {
					d.connected("https")
				}
				polling = true
				before := d.at()
				err := d.poll(ctx, acting)
				if polling = err == nil; polling {
					err = pace.Wait(ctx, before != d.at())
				}
				return err
			}
			polling = false
			err := d.hold(ctx, acting)
			if _, ok := errors.AsType[*noWire](err); ok {
				rested = time.Now()
				d.o.Log.Info("going on over HTTPS", slog.Any("err", err))
				return nil
			}
			return err
		}()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			b = backoff{}
			continue
		case watchword.CodeOf(err) == watchword.ProofRequired && !d.tokens.Proving():
			d.tokens.Prove()
			continue
		case watchword.CodeOf(err) == watchword.KeyUnknown, watchword.CodeOf(err) == watchword.BundleInvalid, uncertified(err):
			trusted = time.Time{} // a key, or an authority, that is newer than the bundle
		default:
			d.doubtTime(ctx, err)
		}
		err = d.judged(err)
		d.o.Log.Info("not connected", slog.String("code", string(watchword.CodeOf(err))), slog.Any("err", err))
		if !b.wait(ctx, err) {
			return nil
		}
	}
	return nil
}

func (d *Device) announce(ctx context.Context) error {
	d.handlers.mu.RLock()
	list, open := d.handlers.list, d.handlers.any != nil
	d.handlers.mu.RUnlock()
	if open {
		list = nil
	}
	if err := d.Announce(ctx, list...); err != nil {
		return err
	}
	return d.lookAtConfig(ctx)
}

// at is the number of the last command that was begun.
func (d *Device) at() position {
	d.obeying.Lock()
	defer d.obeying.Unlock()
	return d.journal.last
}

// poll waits for one command and hands it on. One at a time: what the device
// acknowledges is what it has written down.
func (d *Device) poll(ctx context.Context, acting chan<- inHand) error {
	d.obeying.Lock()
	last, nonce, size := d.journal.last, "", d.log.Size
	if d.byNonce() {
		nonce = d.nonce.current(d.o.Now())
	}
	d.obeying.Unlock()
	q := url.Values{"limit": {"1"}}
	if last.Seq > 0 {
		q.Set("after", strconv.FormatInt(last.Seq, 10))
		q.Set("epoch", strconv.FormatInt(last.Epoch, 10))
	}
	if nonce != "" {
		q.Set("nonce", nonce)
	}
	if d.o.MaxCommand > 0 {
		q.Set("max", strconv.Itoa(d.o.MaxCommand))
	}
	if d.o.LoggedOnly {
		q.Set("log", strconv.FormatInt(size, 10))
	}
	var out struct {
		Commands []struct {
			JWE string `json:"jwe"`
		} `json:"commands"`
	}
	a, err := d.client.Do(ctx, rest.Request{Method: http.MethodGet, Path: "/v1/self/commands", Query: q, Wait: pollWait})
	if err != nil {
		return err
	}
	if err := json.Unmarshal(a.Body, &out); err != nil {
		return watchword.Because(err, watchword.Internal, "the server's answer is no list of commands")
	}
	if len(out.Commands) == 0 {
		return d.lookAtConfig(ctx)
	}
	for _, c := range out.Commands {
		if err := d.take(ctx, acting, c.JWE); err != nil {
			return err // the server would hand it over again at once
		}
	}
	return nil
}

// take hands one command on, and returns when its number is on the disk, or with
// why it is nothing to obey.
func (d *Device) take(ctx context.Context, acting chan<- inHand, jwe string) error {
	h := inHand{jwe, make(chan error, 1)}
	select {
	case acting <- h:
	case <-ctx.Done():
		return nil
	}
	select {
	case err := <-h.begun:
		return err
	case <-ctx.Done():
		return nil
	}
}

// backoff waits longer after each error, never two devices alike.
type backoff struct{ last time.Duration }

// wait reports false where ctx ended first.
func (b *backoff) wait(ctx context.Context, err error) bool {
	b.last = min(max(2*b.last, backoffMin), backoffMax)
	pause := b.last/2 + rand.N(b.last/2)
	if e, ok := errors.AsType[*watchword.Error](err); ok && e.RetryAfter > 0 {
		pause = e.RetryAfter + rand.N(b.last)
	}
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// HandIn sends a receipt that [Device.Obey] returned, for transports of one's own.
func (d *Device) HandIn(ctx context.Context, receipt string) error {
	if d.id == nil {
		return errNotEnrolled()
	}
	return d.postReceipt(ctx, receipt)
}
