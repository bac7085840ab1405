package device

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/sdk/internal/tlstrust"
)

// Waiting for commands, and pauses after errors.
const (
	pollWait   = 30 * time.Second
	backoffMin = 500 * time.Millisecond
	backoffMax = time.Minute
	trustEvery = 12 * time.Hour
	// pollPause is the time between a poll without a new command and the next one. It grows to half of pollWait, the time
	// for which the server may hold a poll. A poll that the server held for that long is followed by the next one at once.
	pollPause      = time.Second
	timeCheckEvery = nonceLife / 4 // interval of checks whether signed time must be requested
)

// Run receives and executes commands until ctx ends: over MQTT 5, and over HTTPS while MQTT is unavailable. It recovers
// from lost connections, restarts of the server and expired tokens.
//
// Background tasks run concurrently with the commands: announcing functions, fetching the configuration, renewing the trust
// bundle, requesting signed time, completing a key change, sending receipts. A failed task is logged with its code and
// repeated after a pause that grows to 10 minutes; commands wait for none of them. Receiving, token refresh and
// reconnecting continue while a function runs. One function runs at a time ([Handler]); a command is acknowledged when it
// is begun and its number is on the disk. The following commands, up to MQTT's Receive Maximum, wait unacknowledged: after
// a reconnection the server sends them again, none is lost, and none is executed twice; a command that expires meanwhile is
// not begun. If the server has not answered 256 receipts no further command is begun.
//
// When ctx ends, the contexts of a running function and of an OnConfig handler end with the cause [ErrStopping]. Run waits
// 20 s for them, stores the receipt, tries for 3 s to send it, and returns. A function that does not return is abandoned,
// and its receipt is "interrupted" at the next start. End ctx and wait for Run before you call Close.
//
// If the server says that the device is revoked, Run sends one request a day: see [Options.Revoked].
//
// If the journal cannot be written, as on a full disk, no command is begun: each gets a signed refusal with the code
// unavailable, and tries to write the journal again. If the counters cannot be written either, there is no answer, and the
// server sends the command again. Events, states and the connection need no disk.
//
// It returns nil when ctx ended.
func (d *Device) Run(ctx context.Context) error {
	if d.identity == nil {
		return errNotEnrolled()
	}
	if d.lock == nil {
		return watchword.Refuse(watchword.FolderInUse, "the state folder was opened for reading: commands cannot be executed")
	}
	return newRun(d).runAll(ctx)
}

const (
	stopGrace           = 20 * time.Second // how long Run waits for handlers after ctx has ended
	finalReceiptTimeout = 3 * time.Second  // how long it then tries to send receipts
)

// run is one call of Run.
type run struct {
	*Device
	commands        chan receivedCommand    // to the goroutine that executes commands, which receives when it is idle
	receiptAnswered chan struct{}           // one token: a receipt was answered
	receiptPauses   map[string]receiptPause // of refused receipts; used by the task that sends receipts
	pushedConfig    pushedConfig
	// timeDoubted reports that the server refused a signature as too early or expired.
	timeDoubted atomic.Bool
	timeChanged chan struct{} // one token: signed time replaced the time that the server refused

	functions, config, bundle, time, keys, receipts *task
}

func newRun(d *Device) *run {
	r := &run{Device: d, commands: make(chan receivedCommand), timeChanged: make(chan struct{}, 1), receiptAnswered: make(chan struct{}, 1), receiptPauses: map[string]receiptPause{}}
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

// onConnected is called when the server was reached again: failed tasks are repeated.
func (r *run) onConnected(over string) {
	r.connected(over)
	for _, t := range r.tasks() {
		if t.failed.Load() {
			t.trigger()
		}
	}
}

// runAll runs all goroutines of Run, and ends them.
func (r *run) runAll(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	handlers, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer context.AfterFunc(ctx, func() { stop(ErrStopping) })()
	defer stop(ErrStopping)
	r.handlers.mu.Lock()
	r.handlers.announcer = r.functions
	r.handlers.mu.Unlock()
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

// sendFinalReceipts tries once to send the remaining receipts when everything else has ended, for example that of an
// interrupted function, so that the server gets them before the next start.
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

// await waits for the first runs of tasks, for at most limit.
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

// receiveLoop receives commands over MQTT, and by polling over HTTPS while MQTT is unavailable. A poll acknowledges the
// commands that were begun.
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
			if r.mqttAddress() == "" || time.Since(rested) < mqttRetryPause {
				wait := pollWait
				if probe = !polling; probe {
					wait = 0 // the server counts as reached only after an answer
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
			if !probe { // otherwise a server that answers only these would get two requests a second
				b.last = 0
			}
			continue
		case watchword.CodeOf(err) == watchword.ProofRequired && !r.tokens.BindsTokens():
			r.tokens.BindTokens()
			continue
		}
		if time.Since(begun) > backoffMax {
			b.last = 0 // the connection worked
		}
		var again <-chan struct{}
		if r.refreshAfterError(err) {
			again = r.timeChanged // the cause of the error may be removed before the pause is over
		}
		err = r.onRefusal(err)
		r.opts.Log.Info("not connected", slog.String("code", string(watchword.CodeOf(err))), slog.Any("err", err))
		if !b.wait(ctx, err, again) {
			return nil
		}
	}
	return nil
}

// outdatedTrust are the codes that a device with an outdated trust bundle gets, or gives a command: the server rotated its keys,
// moved to another address, or was restored from a backup with new keys, a higher epoch and another log.
var outdatedTrust = []watchword.Code{
	watchword.KeyUnknown, watchword.BundleInvalid, watchword.CommandUnlogged, watchword.CommandStale, watchword.IssuerRevoked, watchword.Superseded,
	watchword.IssuerMismatch, watchword.AudienceMismatch, watchword.DPoPInvalid,
}

// refreshAfterError starts the tasks that may remove the cause of an error: a newer trust bundle, signed time. It reports whether
// the time of the device may be the cause.
func (r *run) refreshAfterError(err error) (timeDoubted bool) {
	switch code := watchword.CodeOf(err); {
	case tlstrust.IsUnknownAuthority(err), slices.Contains(outdatedTrust, code):
		r.bundle.trigger() // the server's key or authority may be newer than the bundle
		if tlstrust.IsUnknownAuthority(err) {
			r.doubtAddress()
			r.doubtTime() // or its certificate is not valid at the device's time
			return true
		}
	case code == watchword.TokenEarly, code == watchword.TokenExpired:
		r.doubtTime()
		return true
	}
	return false
}

// doubtTime has the server asked for the time, once [timeRetry] has passed since it was asked last.
func (r *run) doubtTime() {
	r.timeDoubted.Store(true)
	r.time.trigger()
}

// refreshTime requests signed time if the time is unknown, or if the server refuses it.
func (r *run) refreshTime(ctx context.Context) error {
	r.syncTimeIfDue(ctx)
	if !r.timeDoubted.Load() || !sleep(ctx, r.clock.untilRequest(timeRetry)) {
		return nil
	}
	r.timeDoubted.Store(false)
	if r.timeRejected(ctx, watchword.Refuse(watchword.TokenExpired, "the server refused the time of this device")) {
		signal(r.timeChanged)
	}
	return nil
}

// at returns the number of the last command that was begun.
func (d *Device) at() position {
	d.stateMu.Lock()
	defer d.stateMu.Unlock()
	return d.journal.last
}

// poll requests one command, for which the server may hold the request, and executes it. It requests one at a time, because
// it acknowledges only what is stored.
func (r *run) poll(ctx context.Context, wait time.Duration) error {
	at := r.hello()
	q := url.Values{"limit": {"1"}}
	if at.Seq > 0 {
		q.Set("after", strconv.FormatInt(at.Seq, 10))
	}
	if at.Epoch > 0 {
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
		return watchword.Wrap(err, watchword.Internal, "the server's answer must be a list of commands")
	}
	if len(out.Commands) == 0 {
		r.config.trigger()
		return nil
	}
	return r.enqueue(ctx, out.Commands[0].JWE) // only this one can be acknowledged; the server sends the others again
}

// enqueue passes one command to the executing goroutine, and returns when its number is on the disk, or with the error for
// which it is not executed. If a function runs for longer than [pollWait] it gives up: the server sends the command again,
// and meanwhile the device can try MQTT.
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

// backoff is a randomized pause that grows with each error.
type backoff struct{ last, most time.Duration }

// next returns how long to wait after err.
func (b *backoff) next(err error) time.Duration {
	b.last = min(max(2*b.last, backoffMin), b.most)
	if e, ok := errors.AsType[*watchword.Error](err); ok && e.RetryAfter > 0 {
		return e.RetryAfter + rand.N(b.last)
	}
	return b.last/2 + rand.N(b.last/2)
}

// wait waits for the pause after err, or until again is signaled; then the next pause is a short one. It returns false if ctx ended
// first.
func (b *backoff) wait(ctx context.Context, err error, again <-chan struct{}) bool {
	pause := time.NewTimer(b.next(err))
	defer pause.Stop()
	select {
	case <-pause.C:
		return true
	case <-again:
		b.last = 0
		return true
	case <-ctx.Done():
		return false
	}
}

// SendReceipt sends a receipt that [Device.Execute] returned, for applications with a transport of their own. Codes:
// receipt_invalid; denied, rate_limited; unavailable, also if the server has not answered within a minute.
func (d *Device) SendReceipt(ctx context.Context, receipt string) error {
	if d.identity == nil {
		return errNotEnrolled()
	}
	return d.postReceipt(ctx, receipt)
}
