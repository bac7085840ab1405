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
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
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
	timeLook = nonceLife / 4 // between two looks whether the time is to be asked for
)

// Run takes commands and obeys them until ctx ends: over MQTT 5, and over HTTPS while that
// cannot be had. It gets over lost connections, restarts of the server and ended tokens by itself.
//
// What goes on beside the commands is a task of its own each: to announce the functions, look at
// the configuration, renew the trust bundle, ask for the time, finish a change of keys, hand in
// receipts. A task that fails is reported in the log with its code and tried again after a pause that
// grows to 10 minutes; commands wait for none of them. Receiving, refreshing and reconnecting go
// on while a function runs, however long. One function runs at a time ([Handler]); a command is
// acknowledged when it is begun and its number is on the disk. Those behind it, as many as MQTT's
// Receive Maximum lets the server hand over, wait unacknowledged: after a reconnection the
// server hands them over again, none is lost, and none is done twice; one that expires meanwhile is not begun. With 256 receipts that the server has
// not answered no further command is begun.
//
// When ctx ends, the context of a function that runs, and of an OnConfig handler, ends with the cause
// [ErrStopping]. Run waits 20 s for them, writes the receipt down, tries for 3 s to hand it in, and returns. A function that does
// not return is left behind, and its receipt is "interrupted" at the next start. End ctx and wait
// for Run before Close.
//
// Where the server says that the device is revoked, it asks again once a day: see [Options.Revoked].
//
// Where the journal cannot be written no command is begun; with each that comes it is tried again.
//
// It returns nil when ctx ended.
func (d *Device) Run(ctx context.Context) error {
	if d.id == nil {
		return errNotEnrolled()
	}
	if d.lock == nil {
		return watchword.Refuse(watchword.FolderInUse, "the folder was opened to look, not to obey")
	}
	return newRun(d).whole(ctx)
}

const (
	stopGrace = 20 * time.Second // that Run waits for what its handlers do after ctx ended
	lastTry   = 3 * time.Second  // that it then tries to hand in receipts
)

// run is one call of Run.
type run struct {
	*Device
	acting chan inHand       // to the goroutine that carries commands out, which takes one when it is idle
	sent   chan struct{}     // one token: a receipt was answered
	paused map[string]paused // receipts that were refused; of the task that hands in
	pushed pushed
	// doubted says that the server found what was signed from the past or the future.
	doubted atomic.Bool

	functions, config, bundle, time, keys, receipts *task
}

func newRun(d *Device) *run {
	r := &run{Device: d, acting: make(chan inHand), sent: make(chan struct{}, 1), paused: map[string]paused{}}
	r.functions = newTask("announce functions", 0, taskPause, r.announce)
	r.config = newTask("look at the configuration", 0, taskPause, r.hearConfig)
	r.bundle = newTask("renew the trust bundle", trustEvery, taskPause, d.renewTrust)
	r.time = newTask("ask for the time", timeLook, taskPause, r.askForTime)
	r.keys = newTask("finish a change of keys", keysAgain, taskPause, d.settleKeys)
	r.receipts = newTask("hand in receipts", receiptLook, 0, r.handIn)
	for _, t := range r.tasks() {
		do := t.do
		t.do = func(ctx context.Context) error { return d.judged(do(ctx)) }
	}
	return r
}

func (r *run) tasks() []*task {
	return []*task{r.functions, r.config, r.bundle, r.time, r.keys, r.receipts}
}

// reached is told when the server was reached again: what failed may go better now.
func (r *run) reached(over string) {
	r.connected(over)
	for _, t := range r.tasks() {
		if t.failed.Load() {
			t.soon()
		}
	}
}

// whole runs all parts, and ends them.
func (r *run) whole(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	handlers, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer context.AfterFunc(ctx, func() { stop(ErrStopping) })()
	defer stop(ErrStopping)
	var tasks sync.WaitGroup
	for _, t := range r.tasks() {
		of := ctx
		if t == r.config {
			of = handlers
		}
		tasks.Go(func() { t.run(of, r.o.Log) })
	}
	tasks.Go(func() { r.act(ctx, handlers) })
	r.await(ctx, headStart, r.keys, r.bundle, r.functions)
	err := r.listen(ctx)
	cancel()
	ended := make(chan struct{})
	go func() {
		tasks.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		r.lastReceipts(ctx)
	case <-time.After(stopGrace):
		r.o.Log.Error("a handler does not return; it is left behind")
	}
	return err
}

// lastReceipts tries once to hand in what is left when everything has ended, as a receipt of a function that
// was cut off: who waits for it need not wait for the next start.
func (r *run) lastReceipts(ctx context.Context) {
	if r.unsent(nil) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTry)
	defer cancel()
	if err := r.handIn(ctx); err != nil || ctx.Err() != nil {
		r.o.Log.Info("receipts wait for the next start", slog.Any("err", errors.Join(err, ctx.Err())))
	}
}

// await waits for the first runs of tasks, and for no longer than most.
func (r *run) await(ctx context.Context, most time.Duration, tasks ...*task) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for _, t := range tasks {
		select {
		case <-t.first:
		case <-ctx.Done():
			return
		}
	}
}

// listen takes commands over MQTT, and where that cannot be had by polling over HTTPS,
// with what was begun as acknowledged.
func (r *run) listen(ctx context.Context) error {
	b := backoff{most: backoffMax}
	pace := rest.Pace{Least: pollPace, Most: pollWait / 2}
	var rested time.Time
	polling, probe := false, false
	for ctx.Err() == nil {
		if r.now().IsZero() {
			r.time.soon()
			r.await(ctx, headStart, r.time)
		}
		begun := time.Now()
		err := func() error {
			if r.id.MQTTS == "" || time.Since(rested) < wireRest {
				wait := pollWait
				if probe = !polling; probe {
					wait = 0 // the server is reached once it has answered, not before
				}
				before := r.at()
				err := r.poll(ctx, wait)
				polling = err == nil
				switch {
				case err != nil:
					return err
				case probe:
					r.reached("https")
					return nil
				}
				return pace.Wait(ctx, before != r.at())
			}
			polling, probe = false, false
			err := r.hold(ctx)
			if _, ok := errors.AsType[*noWire](err); ok {
				rested = time.Now()
				r.suspect(err)
				r.o.Log.Info("going on over HTTPS", slog.Any("err", err))
				return nil
			}
			return err
		}()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			if !probe { // or else one that answers these alone would be asked twice a second
				b.last = 0
			}
			continue
		case watchword.CodeOf(err) == watchword.ProofRequired && !r.tokens.Proving():
			r.tokens.Prove()
			continue
		}
		if time.Since(begun) > backoffMax {
			b.last = 0 // it was a good connection
		}
		r.suspect(err)
		err = r.judged(err)
		r.o.Log.Info("not connected", slog.String("code", string(watchword.CodeOf(err))), slog.Any("err", err))
		if !b.wait(ctx, err) {
			return nil
		}
	}
	return nil
}

// suspect asks for what may mend the cause of an error: a newer trust bundle, another time.
func (r *run) suspect(err error) {
	switch code := watchword.CodeOf(err); {
	case uncertified(err), code == watchword.KeyUnknown, code == watchword.BundleInvalid:
		r.bundle.soon() // a key, or an authority, that is newer than the bundle
	case code == watchword.TokenEarly, code == watchword.TokenExpired:
		r.doubted.Store(true)
		r.time.soon()
	}
}

// askForTime asks where the time is not known, or where the server does not agree.
func (r *run) askForTime(ctx context.Context) error {
	r.tellTime(ctx)
	if r.doubted.Swap(false) {
		r.doubtTime(ctx, watchword.Refuse(watchword.TokenExpired, "the server does not agree"))
	}
	return nil
}

// at is the number of the last command that was begun.
func (d *Device) at() position {
	d.memory.Lock()
	defer d.memory.Unlock()
	return d.journal.last
}

// poll asks for one command, for which the server may wait, and hands it on. One at a time: what the device
// acknowledges is what it has written down.
func (r *run) poll(ctx context.Context, wait time.Duration) error {
	at := r.greeting()
	q := url.Values{"limit": {"1"}}
	if at.Seq > 0 {
		q.Set("after", strconv.FormatInt(at.Seq, 10))
		q.Set("epoch", strconv.FormatInt(at.Epoch, 10))
	}
	if at.Nonce != "" {
		q.Set("nonce", at.Nonce)
	}
	if at.Max > 0 {
		q.Set("max", strconv.Itoa(at.Max))
	}
	if at.Log != nil {
		q.Set("log", strconv.FormatInt(*at.Log, 10))
	}
	var out api.SealedCommands
	a, err := r.client.Do(ctx, rest.Request{Method: http.MethodGet, Path: "/v1/self/commands", Query: q, Wait: wait})
	if err != nil {
		return err
	}
	if err := json.Unmarshal(a.Body, &out); err != nil {
		return watchword.Because(err, watchword.Internal, "the server's answer is no list of commands")
	}
	if len(out.Commands) == 0 {
		r.config.soon()
		return nil
	}
	return r.take(ctx, out.Commands[0].JWE) // the others come again: only this one can be acknowledged
}

// take hands one command on, and returns when its number is on the disk, or with
// why it is nothing to obey. Where a function runs for longer than [pollWait], it gives up: the
// server hands the command over again, and meanwhile there is time to look for a better connection.
func (r *run) take(ctx context.Context, jwe string) error {
	h := inHand{jwe, make(chan error, 1)}
	most := time.NewTimer(pollWait)
	defer most.Stop()
	select {
	case r.acting <- h:
	case <-most.C:
		return nil
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
type backoff struct{ last, most time.Duration }

// next returns how long to wait after err.
func (b *backoff) next(err error) time.Duration {
	b.last = min(max(2*b.last, backoffMin), b.most)
	if e, ok := errors.AsType[*watchword.Error](err); ok && e.RetryAfter > 0 {
		return e.RetryAfter + rand.N(b.last)
	}
	return b.last/2 + rand.N(b.last/2)
}

// wait reports false where ctx ended first.
func (b *backoff) wait(ctx context.Context, err error) bool { return sleep(ctx, b.next(err)) }

// HandIn sends a receipt that [Device.Obey] returned, for transports of one's own. Codes:
// receipt_invalid; denied, rate_limited; unavailable, also where the server has not answered within a minute.
func (d *Device) HandIn(ctx context.Context, receipt string) error {
	if d.id == nil {
		return errNotEnrolled()
	}
	return d.postReceipt(ctx, receipt)
}
