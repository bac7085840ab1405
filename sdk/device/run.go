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
	// pollPause is the time from a poll that brought nothing new to the next one. It grows to
	// half of pollWait, which is how long the server may hold a poll back: one that does so is
	// asked again at once.
	pollPause      = time.Second
	timeCheckEvery = nonceLife / 4 // between two looks whether the time is to be asked for
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
	if d.identity == nil {
		return errNotEnrolled()
	}
	if d.lock == nil {
		return watchword.Refuse(watchword.FolderInUse, "the folder was opened to look, not to obey")
	}
	return newRun(d).runAll(ctx)
}

const (
	stopGrace           = 20 * time.Second // that Run waits for what its handlers do after ctx ended
	finalReceiptTimeout = 3 * time.Second  // that it then tries to hand in receipts
)

// run is one call of Run.
type run struct {
	*Device
	commands        chan receivedCommand    // to the goroutine that carries commands out, which takes one when it is idle
	receiptAnswered chan struct{}           // one token: a receipt was answered
	receiptPauses   map[string]receiptPause // receipts that were refused; of the task that hands in
	pushedConfig    pushedConfig
	// timeDoubted says that the server found what was signed from the past or the future.
	timeDoubted atomic.Bool

	functions, config, bundle, time, keys, receipts *task
}

func newRun(d *Device) *run {
	r := &run{Device: d, commands: make(chan receivedCommand), receiptAnswered: make(chan struct{}, 1), receiptPauses: map[string]receiptPause{}}
	r.functions = newTask("announce functions", 0, taskPause, r.announce)
	r.config = newTask("look at the configuration", 0, taskPause, r.updateConfig)
	r.bundle = newTask("renew the trust bundle", trustEvery, taskPause, d.renewTrust)
	r.time = newTask("ask for the time", timeCheckEvery, taskPause, r.refreshTime)
	r.keys = newTask("finish a change of keys", keyChangeRetry, taskPause, d.finishKeyChange)
	r.receipts = newTask("hand in receipts", receiptCheckEvery, 0, r.sendReceipts)
	for _, t := range r.tasks() {
		do := t.do
		t.do = func(ctx context.Context) error { return d.onRefusal(do(ctx)) }
	}
	return r
}

func (r *run) tasks() []*task {
	return []*task{r.functions, r.config, r.bundle, r.time, r.keys, r.receipts}
}

// onConnected is told when the server was reached again: what failed may go better now.
func (r *run) onConnected(over string) {
	r.connected(over)
	for _, t := range r.tasks() {
		if t.failed.Load() {
			t.trigger()
		}
	}
}

// runAll runs all parts, and ends them.
func (r *run) runAll(ctx context.Context) error {
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
		tasks.Go(func() { t.run(of, r.opts.Log) })
	}
	tasks.Go(func() { r.executeLoop(ctx, handlers) })
	r.await(ctx, initialTaskWait, r.keys, r.bundle, r.functions)
	err := r.receiveLoop(ctx)
	cancel()
	ended := make(chan struct{})
	go func() {
		tasks.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		r.sendFinalReceipts(ctx)
	case <-time.After(stopGrace):
		r.opts.Log.Error("a handler does not return; it is left behind")
	}
	return err
}

// sendFinalReceipts tries once to hand in what is left when everything has ended, as a receipt of a function that
// was cut off: who waits for it need not wait for the next start.
func (r *run) sendFinalReceipts(ctx context.Context) {
	if r.unansweredReceipts(nil) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), finalReceiptTimeout)
	defer cancel()
	if err := r.sendReceipts(ctx); err != nil || ctx.Err() != nil {
		r.opts.Log.Info("receipts wait for the next start", slog.Any("err", errors.Join(err, ctx.Err())))
	}
}

// await waits for the first runs of tasks, and for no longer than most.
func (r *run) await(ctx context.Context, limit time.Duration, tasks ...*task) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for _, t := range tasks {
		select {
		case <-t.first:
		case <-ctx.Done():
			return
		}
	}
}

// receiveLoop takes commands over MQTT, and where that cannot be had by polling over HTTPS,
// with what was begun as acknowledged.
func (r *run) receiveLoop(ctx context.Context) error {
	b := backoff{most: backoffMax}
	pace := rest.PollPace{Least: pollPause, Most: pollWait / 2}
	var rested time.Time
	polling, probe := false, false
	for ctx.Err() == nil {
		if r.now().IsZero() {
			r.time.trigger()
			r.await(ctx, initialTaskWait, r.time)
		}
		begun := time.Now()
		err := func() error {
			if r.identity.MQTTS == "" || time.Since(rested) < mqttRetryPause {
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
					r.onConnected("https")
					return nil
				}
				return pace.Wait(ctx, before != r.at())
			}
			polling, probe = false, false
			err := r.serveMQTT(ctx)
			if _, ok := errors.AsType[*mqttUnavailable](err); ok {
				rested = time.Now()
				r.refreshAfterError(err)
				r.opts.Log.Info("going on over HTTPS", slog.Any("err", err))
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
		case watchword.CodeOf(err) == watchword.ProofRequired && !r.tokens.BindsTokens():
			r.tokens.BindTokens()
			continue
		}
		if time.Since(begun) > backoffMax {
			b.last = 0 // it was a good connection
		}
		r.refreshAfterError(err)
		err = r.onRefusal(err)
		r.opts.Log.Info("not connected", slog.String("code", string(watchword.CodeOf(err))), slog.Any("err", err))
		if !b.wait(ctx, err) {
			return nil
		}
	}
	return nil
}

// refreshAfterError asks for what may mend the cause of an error: a newer trust bundle, another time.
func (r *run) refreshAfterError(err error) {
	switch code := watchword.CodeOf(err); {
	case isUnknownAuthority(err), code == watchword.KeyUnknown, code == watchword.BundleInvalid:
		r.bundle.trigger() // a key, or an authority, that is newer than the bundle
	case code == watchword.TokenEarly, code == watchword.TokenExpired:
		r.timeDoubted.Store(true)
		r.time.trigger()
	}
}

// refreshTime asks where the time is not known, or where the server does not agree.
func (r *run) refreshTime(ctx context.Context) error {
	r.syncTimeIfDue(ctx)
	if r.timeDoubted.Swap(false) {
		r.timeRejected(ctx, watchword.Refuse(watchword.TokenExpired, "the server does not agree"))
	}
	return nil
}

// at is the number of the last command that was begun.
func (d *Device) at() position {
	d.stateMu.Lock()
	defer d.stateMu.Unlock()
	return d.journal.last
}

// poll asks for one command, for which the server may wait, and hands it on. One at a time: what the device
// acknowledges is what it has written down.
func (r *run) poll(ctx context.Context, wait time.Duration) error {
	at := r.hello()
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
		return watchword.Wrap(err, watchword.Internal, "the server's answer is no list of commands")
	}
	if len(out.Commands) == 0 {
		r.config.trigger()
		return nil
	}
	return r.enqueue(ctx, out.Commands[0].JWE) // the others come again: only this one can be acknowledged
}

// enqueue hands one command on, and returns when its number is on the disk, or with
// why it is nothing to obey. Where a function runs for longer than [pollWait], it gives up: the
// server hands the command over again, and meanwhile there is time to look for a better connection.
func (r *run) enqueue(ctx context.Context, jwe string) error {
	h := receivedCommand{jwe, make(chan error, 1)}
	limit := time.NewTimer(pollWait)
	defer limit.Stop()
	select {
	case r.commands <- h:
	case <-limit.C:
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

// SendReceipt sends a receipt that [Device.Execute] returned, for applications with a transport of their own. Codes:
// receipt_invalid; denied, rate_limited; unavailable, also where the server has not answered within a minute.
func (d *Device) SendReceipt(ctx context.Context, receipt string) error {
	if d.identity == nil {
		return errNotEnrolled()
	}
	return d.postReceipt(ctx, receipt)
}
