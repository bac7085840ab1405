package command

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/keyring"
	"github.com/watchword-iot/watchword/token"
)

// The keyring is what seals at rest and signs; the interface above is what the
// desk asks of it.
var _ Safe = (*keyring.Ring)(nil)

type lineKey struct {
	tenant watchword.TenantID
	device watchword.SubjectID
}

// Line is one connection that a device's commands may go to. They go to the
// newest one; when that closes, to the one before. The methods that hand over
// are for one goroutine.
type Line struct {
	desk   *Desk
	key    lineKey
	wake   chan struct{} // one token: something may be waiting
	taken  chan struct{} // closed when a newer line took over
	notify func()        // if not nil, in the place of wake and taken
	fit    Fit           // what may be handed over; of the goroutine that does

	logged bool  // the device obeys only what is logged; both under the desk's lock
	seen   int64 // the size of the log that it saw last, as far as is known
}

// Logged says that the device obeys only what is logged, and how large the log was
// that it saw last (0: it saw none): from now on commands go out with their proofs.
func (l *Line) Logged(size int64) {
	l.desk.mu.Lock()
	defer l.desk.mu.Unlock()
	l.logged, l.seen = true, size
}

// Attach makes a new connection of the device the one that its commands go to.
// It ends where a newer one takes over.
func (d *Desk) Attach(t watchword.TenantID, device watchword.SubjectID) *Line {
	l := &Line{desk: d, key: lineKey{t, device}, wake: make(chan struct{}, 1), taken: make(chan struct{})}
	d.enter(l)
	return l
}

// AttachFunc is [Desk.Attach] for a connection that does not wait in Next: notify
// is called whenever [Line.Take] may have something, and must neither block nor
// call back. Behind a newer line it rests until that one closes.
func (d *Desk) AttachFunc(t watchword.TenantID, device watchword.SubjectID, notify func()) *Line {
	l := &Line{desk: d, key: lineKey{t, device}, notify: notify}
	d.enter(l)
	return l
}

func (d *Desk) enter(l *Line) {
	d.mu.Lock()
	defer d.mu.Unlock()
	lines := d.lines[l.key]
	if n := len(lines); n > 0 && lines[n-1].taken != nil {
		close(lines[n-1].taken)
		lines = lines[:n-1]
	}
	d.lines[l.key] = append(slices.Clip(lines), l)
}

// Close gives the line up.
func (l *Line) Close() {
	d := l.desk
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.covers, l)
	lines := d.lines[l.key]
	i := slices.Index(lines, l)
	switch {
	case i < 0:
		return
	case len(lines) == 1:
		delete(d.lines, l.key)
		return
	}
	lines = slices.Concat(lines[:i], lines[i+1:])
	d.lines[l.key] = lines
	lines[len(lines)-1].ring()
}

// ring is called with the desk's lock held.
func (l *Line) ring() {
	if l.notify != nil {
		l.notify()
		return
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// wake tells the device's line, if it has one, that a command may be waiting.
func (d *Desk) wake(t watchword.TenantID, device watchword.SubjectID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if lines := d.lines[lineKey{t, device}]; len(lines) > 0 {
		lines[len(lines)-1].ring()
	}
}

// newest reports whether the device's commands go to l.
func (l *Line) newest() bool {
	l.desk.mu.Lock()
	defer l.desk.mu.Unlock()
	lines := l.desk.lines[l.key]
	return len(lines) > 0 && lines[len(lines)-1] == l
}

// Take returns what waits now, as [Line.Next] does, without waiting; nothing
// while a newer line has the device's commands. more says that there may be more.
func (l *Line) Take(ctx context.Context, after int64, nonce string, limit int) (out []SealedCommand, more bool, err error) {
	if !l.newest() {
		return nil, false, nil
	}
	return l.pending(ctx, after, nonce, limit)
}

// SealedCommand is one command as it goes to its device.
type SealedCommand struct {
	ID      watchword.CommandID
	Epoch   int64
	Seq     int64
	Expires time.Time
	JWE     string

	sent time.Time // when it was sent before; zero for never
}

// Deliver notes that the device says that it knows every command of this epoch up
// to seq, and returns the number after which commands are still wanted: seq, or
// 0 where the device speaks of an earlier life of the counters.
func (l *Line) Deliver(ctx context.Context, epoch, seq int64) (after int64, err error) {
	if epoch != l.desk.o.Epoch || seq < 1 {
		return 0, nil
	}
	return seq, l.delivered(ctx, Acknowledged{UpTo: seq})
}

// Acknowledged notes that the device has acknowledged the commands with these numbers,
// which were handed over on this line, and no others.
func (l *Line) Acknowledged(ctx context.Context, seqs []int64) error {
	return l.delivered(ctx, Acknowledged{Each: seqs})
}

func (l *Line) delivered(ctx context.Context, a Acknowledged) error {
	a.Epoch = l.desk.o.Epoch
	rows, err := l.desk.store.Deliver(ctx, l.key.tenant, l.key.device, a, l.desk.o.Now())
	for _, r := range rows {
		l.desk.tell(r)
	}
	return err
}

// Next returns up to limit commands with numbers above after, in order, signed
// (for nonce, if the device has one) and sealed. It waits until there is one,
// but no longer than pause, and not after ctx has ended: then it returns none
// and no error. Codes: conflict where a newer connection took over;
// subject_suspended, subject_revoked, unavailable.
func (l *Line) Next(ctx context.Context, after int64, nonce string, limit int, pause time.Duration) ([]SealedCommand, error) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		out, _, err := l.pending(ctx, after, nonce, limit)
		switch {
		case ctx.Err() != nil:
			return nil, nil
		case err != nil || len(out) > 0:
			return out, err
		}
		select {
		case <-l.wake:
		case <-l.taken:
			return nil, watchword.Refuse(watchword.Conflict, "a newer connection of this device takes its commands now")
		case <-timer.C:
			return nil, nil
		case <-ctx.Done():
			return nil, nil
		}
	}
}

// pending hands over what waits now. What was handed over before something went
// wrong is returned; the rest comes with the next call. Commands that cannot go to this
// connection do not keep back those behind them, however many they are.
func (l *Line) pending(ctx context.Context, after int64, nonce string, limit int) (out []SealedCommand, more bool, err error) {
	for {
		rows, err := l.desk.store.Pending(ctx, l.key.tenant, l.key.device, after, l.desk.o.Now(), limit)
		if err != nil {
			return nil, false, err
		}
		for _, r := range rows {
			c, err := l.handOver(ctx, r, nonce)
			if m, ok := errors.AsType[*misfit](err); ok {
				if err = l.desk.undeliverable(ctx, l.key, r.ID, m.Reason, r); err == nil {
					continue
				}
			}
			switch code := watchword.CodeOf(err); {
			case errors.Is(err, errLonger):
				return nil, false, err
			case errors.Is(err, errUncovered):
				return out, false, nil // in order: what follows waits too
			case code == watchword.Conflict || code == watchword.Busy:
				continue // ended or cancelled meanwhile, or signed too often: its end settles it
			case err != nil && len(out) == 0:
				return nil, false, err
			case err != nil:
				return out, true, nil
			}
			out = append(out, c)
		}
		full := len(rows) == limit
		if len(out) > 0 || !full {
			return out, full, nil
		}
		after = rows[len(rows)-1].Seq
	}
}

// handOver signs r, unless a version for this nonce was signed before, seals it
// to the device's key of today, and stores the hash before it is sent. The error
// is a misfit where the connection does not take as much, or no device would take it: as
// a rule nothing is kept then.
func (l *Line) handOver(ctx context.Context, r Row, nonce string) (SealedCommand, error) {
	d := l.desk
	who, err := d.directory.Principal(ctx, r.Tenant, r.Device)
	if err != nil {
		return SealedCommand{}, err
	}
	k, ok := who.Subject.SealKey()
	if !ok {
		return SealedCommand{}, watchword.Refuse(watchword.SubjectNew, "the device has no sealing key")
	}
	to, err := who.Keys.Key(k.ID)
	if err != nil {
		return SealedCommand{}, err
	}
	jws, err := d.version(ctx, r, nonce)
	if err != nil {
		return SealedCommand{}, err
	}
	atRest, err := d.safe.Seal(handoverAtRest(r.ID), []byte(jws))
	if err != nil {
		return SealedCommand{}, err
	}
	h := Handover{Hash: jose.HashOf(jws), Nonce: nonce, JWS: atRest, At: d.o.Now()}
	d.mu.Lock()
	logged := l.logged
	d.mu.Unlock()
	jwe := ""
	if !logged {
		if jwe, err = jose.Seal(to, "JWT", []byte(jws)); err == nil {
			err = l.fit.check(len(jwe)) // before anything says that it was sent
		}
		if err != nil {
			return SealedCommand{}, err
		}
	}
	row, entry, err := d.store.HandOver(ctx, r.Tenant, r.ID, h, audit.Always[Row](d.handedOver(r, h, jws)))
	if err != nil {
		return SealedCommand{}, err
	}
	if r.State != row.State {
		d.tell(row)
	}
	if logged {
		if jwe, err = l.sealLogged(ctx, to, jws, entry); err == nil {
			err = l.fit.check(len(jwe)) // how long the proof is was not known before
		}
		if err != nil {
			return SealedCommand{}, err
		}
	}
	return SealedCommand{ID: r.ID, Epoch: r.Epoch, Seq: r.Seq, Expires: r.Expires, JWE: jwe, sent: r.SentAt}, nil
}

// errUncovered means that the log's checkpoint does not have a hand-over's entry yet.
var errUncovered = errors.New("no checkpoint has it yet")

// errLonger is what a device is told that has seen a longer log.
var errLonger = watchword.Refuse(watchword.Conflict, "the device has seen a longer log than this one is")

// sealLogged seals a version to the device, with the proof that the log has it.
func (l *Line) sealLogged(ctx context.Context, to *jose.PublicKey, jws string, entry int64) (string, error) {
	d := l.desk
	d.mu.Lock()
	seen := l.seen
	d.covers[l] = struct{}{} // before the log is asked: no checkpoint falls between
	d.mu.Unlock()
	if entry == 0 {
		return "", watchword.Refuse(watchword.Conflict, "it was handed over before hand-overs were logged")
	}
	c, note, ok := d.o.Log.Cosigned(entry)
	if !ok {
		return "", errUncovered
	}
	proof, err := d.o.Log.ProveIn(ctx, c, note, entry)
	if err != nil {
		return "", err
	}
	if seen > c.Size { // of a server that came back from a backup, or a lie
		slog.WarnContext(ctx, "a device has seen a longer log than this one", slog.String("device", string(l.key.device)))
		return "", errLonger
	}
	extends, err := d.o.Log.ProveExtends(ctx, c, seen)
	if err != nil {
		return "", err
	}
	b, err := ledger.NewLogged(jws, proof, seen, extends).Marshal()
	if err != nil {
		return "", err
	}
	d.mu.Lock()
	l.seen = c.Size
	delete(d.covers, l)
	d.mu.Unlock()
	return jose.Seal(to, ledger.LoggedType, b)
}

// LogGrown tells those who wait for it that the log has another checkpoint.
func (d *Desk) LogGrown() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for l := range d.covers {
		delete(d.covers, l)
		l.ring()
	}
}

// handedOver is the log's entry of a version that leaves the house: which bytes, under
// which command key.
func (d *Desk) handedOver(r Row, h Handover, jws string) audit.Entry {
	data := map[string]string{
		"device": string(r.Device), "ch": h.Hash, "epoch": strconv.FormatInt(r.Epoch, 10), "seq": strconv.FormatInt(r.Seq, 10),
	}
	if u, err := jose.ParseJWS(jws, watchword.MaxDocument); err == nil { // our own
		data["command_key"] = u.Kid
	}
	return audit.Actor{Tenant: r.Tenant}.Did(audit.CommandHandOver, string(r.ID), h.At, data)
}

// version returns the JWS of r for this nonce: the one handed over before, unless
// its key was revoked meanwhile, or a new one.
func (d *Desk) version(ctx context.Context, r Row, nonce string) (string, error) {
	if r.State != watchword.Queued {
		hs, err := d.store.Handovers(ctx, r.Tenant, r.ID)
		if err != nil {
			return "", err
		}
		for _, h := range hs {
			if h.Nonce != nonce {
				continue
			}
			jws, err := d.safe.Open(handoverAtRest(r.ID), h.JWS)
			if err != nil || d.counts(string(jws)) {
				return string(jws), err
			}
		}
	}
	args, err := d.Args(r)
	if err != nil {
		return "", err
	}
	now := d.o.Now()
	if left := r.Expires.Sub(now); left <= 0 || left > token.CommandLife+time.Second { // or the clock went back: it may come again
		return "", watchword.Refuse(watchword.Conflict, "the command cannot be signed now: it ends at %s", r.Expires.UTC().Format(time.RFC3339))
	}
	jws, err := token.SignCommand(d.sign.CommandSigner(), token.Command{
		Issuer: d.o.Issuer, Device: r.Device, ID: r.ID, Epoch: r.Epoch, Seq: r.Seq, Function: r.Function, Args: args,
		By: r.By, Nonce: nonce, Order: r.Order, Issued: now, Expires: r.Expires,
	})
	switch code := watchword.CodeOf(err); code {
	case watchword.BadRequest, watchword.TooLarge: // no device would take it, at no time: it must not keep back those behind it
		return "", &misfit{Reason{Code: code, Detail: "no device takes this command: " + err.Error()}}
	}
	return jws, err
}

// counts reports whether the key that signed jws, which is our own, still counts.
func (d *Desk) counts(jws string) bool {
	u, err := jose.ParseJWS(jws, watchword.MaxDocument)
	return err == nil && d.sign.CommandKey(watchword.KeyID(u.Kid))
}
