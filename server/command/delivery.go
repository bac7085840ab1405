package command

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/token"
)

// A keyring encrypts what is stored, as [Sealer] demands.
var _ Sealer = (*keyring.Ring)(nil)

type deviceRef struct {
	tenant watchword.TenantID
	device watchword.SubjectID
}

// Delivery is one connection that a device's commands may go to. They go to the
// newest one; when that closes, to the one before. The methods that hand over
// are for one goroutine.
type Delivery struct {
	svc      *Service
	key      deviceRef
	wake     chan struct{} // one token: something may be waiting
	replaced chan struct{} // closed when a newer delivery took over
	notify   func()        // if not nil, in the place of wake and taken
	limits   Limits        // what may be handed over; of the goroutine that does

	needsProof bool  // the device executes only logged commands; both under the service's lock
	seenSize   int64 // the size of the log that it saw last, as far as is known
}

// RequireLogProofs says that the device executes only logged commands, and how large the log was
// that it saw last (0: it saw none): from now on commands go out with their proofs. epoch is the one that
// the device states, 0 for none: where it is lower than this server's, the server was restored, and the device saw the log of
// before. A command under the new log then makes it fetch the trust bundle, which names that log.
func (dl *Delivery) RequireLogProofs(epoch, size int64) {
	if epoch > 0 && epoch < dl.svc.opts.Epoch {
		size = 0
	}
	dl.svc.mu.Lock()
	defer dl.svc.mu.Unlock()
	dl.needsProof, dl.seenSize = true, size
}

// Attach makes a new connection of the device the one that its commands go to.
// It ends where a newer one takes over.
func (svc *Service) Attach(t watchword.TenantID, device watchword.SubjectID) *Delivery {
	l := &Delivery{svc: svc, key: deviceRef{t, device}, wake: make(chan struct{}, 1), replaced: make(chan struct{})}
	svc.register(l)
	return l
}

// AttachFunc is [Service.Attach] for a connection that does not wait in Next: notify
// is called whenever [Delivery.Take] may have something, and must neither block nor
// call back. While the device has a newer delivery, notify is not called.
func (svc *Service) AttachFunc(t watchword.TenantID, device watchword.SubjectID, notify func()) *Delivery {
	l := &Delivery{svc: svc, key: deviceRef{t, device}, notify: notify}
	svc.register(l)
	return l
}

func (svc *Service) register(l *Delivery) {
	svc.mu.Lock()
	defer svc.mu.Unlock()
	deliveries := svc.deliveries[l.key]
	if n := len(deliveries); n > 0 && deliveries[n-1].replaced != nil {
		close(deliveries[n-1].replaced)
		deliveries = deliveries[:n-1]
	}
	svc.deliveries[l.key] = append(slices.Clip(deliveries), l)
}

// Close ends the delivery. Commands go to the one before it, if there is one.
func (dl *Delivery) Close() {
	d := dl.svc
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.awaitingCheckpoint, dl)
	deliveries := d.deliveries[dl.key]
	i := slices.Index(deliveries, dl)
	switch {
	case i < 0:
		return
	case len(deliveries) == 1:
		delete(d.deliveries, dl.key)
		return
	}
	deliveries = slices.Concat(deliveries[:i], deliveries[i+1:])
	d.deliveries[dl.key] = deliveries
	deliveries[len(deliveries)-1].signal()
}

// signal is called with the service's lock held.
func (dl *Delivery) signal() {
	if dl.notify != nil {
		dl.notify()
		return
	}
	select {
	case dl.wake <- struct{}{}:
	default:
	}
}

// wakeDelivery notifies the device's newest delivery, if it has one, that a command may be pending.
func (svc *Service) wakeDelivery(t watchword.TenantID, device watchword.SubjectID) {
	svc.mu.Lock()
	defer svc.mu.Unlock()
	if deliveries := svc.deliveries[deviceRef{t, device}]; len(deliveries) > 0 {
		deliveries[len(deliveries)-1].signal()
	}
}

// isNewest reports whether the device's commands go to l.
func (dl *Delivery) isNewest() bool {
	dl.svc.mu.Lock()
	defer dl.svc.mu.Unlock()
	deliveries := dl.svc.deliveries[dl.key]
	return len(deliveries) > 0 && deliveries[len(deliveries)-1] == dl
}

// Take returns what waits now, as [Delivery.Next] does, without waiting; nothing
// while a newer delivery has the device's commands. more says that there may be more.
func (dl *Delivery) Take(ctx context.Context, after int64, nonce string, limit int) (out []SealedCommand, more bool, err error) {
	if !dl.isNewest() {
		return nil, false, nil
	}
	return dl.pending(ctx, after, nonce, limit)
}

// SealedCommand is one command as it is sent to its device.
type SealedCommand struct {
	ID      watchword.CommandID
	Epoch   int64
	Seq     int64
	Expires time.Time
	JWE     string

	sent time.Time // when it was sent before; zero for never
}

// AcknowledgeUpTo notes that the device says that it knows every command of this epoch up
// to seq, and returns the number after which commands are still wanted: seq, or
// 0 where the device speaks of an earlier life of the counters. Code: superseded where it speaks of a later one: no command may
// be handed over to it.
func (dl *Delivery) AcknowledgeUpTo(ctx context.Context, epoch, seq int64) (after int64, err error) {
	if err := dl.svc.CheckEpoch(epoch); err != nil {
		return 0, err
	}
	if epoch != dl.svc.opts.Epoch || seq < 1 {
		return 0, nil
	}
	return seq, dl.markDelivered(ctx, Acknowledgement{UpTo: seq})
}

// Acknowledge notes that the device has acknowledged the commands with these numbers,
// which were handed over by this delivery, and no others.
func (dl *Delivery) Acknowledge(ctx context.Context, seqs []int64) error {
	return dl.markDelivered(ctx, Acknowledgement{Each: seqs})
}

func (dl *Delivery) markDelivered(ctx context.Context, a Acknowledgement) error {
	a.Epoch = dl.svc.opts.Epoch
	rows, err := dl.svc.store.MarkDelivered(ctx, dl.key.tenant, dl.key.device, a, dl.svc.opts.Now())
	for _, r := range rows {
		dl.svc.notify(r)
	}
	return err
}

// Next returns up to limit commands with numbers above after, in order, signed
// (for nonce, if the device has one) and sealed. It waits until there is one,
// but no longer than pause, and not after ctx has ended: then it returns none
// and no error. Codes: conflict where a newer connection took over; superseded;
// subject_suspended, subject_revoked, unavailable.
func (dl *Delivery) Next(ctx context.Context, after int64, nonce string, limit int, pause time.Duration) ([]SealedCommand, error) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		out, _, err := dl.pending(ctx, after, nonce, limit)
		switch {
		case ctx.Err() != nil:
			return nil, nil
		case err != nil || len(out) > 0:
			return out, err
		}
		select {
		case <-dl.wake:
		case <-dl.replaced:
			return nil, watchword.Refuse(watchword.Conflict, "a newer connection of this device receives its commands")
		case <-timer.C:
			return nil, nil
		case <-ctx.Done():
			return nil, nil
		}
	}
}

// pending hands over the commands that wait now. Commands that were handed over before an error are returned; the rest
// follows with the next call. Commands that cannot be sent over this connection do not block the following ones, however
// many they are.
func (dl *Delivery) pending(ctx context.Context, after int64, nonce string, limit int) (out []SealedCommand, more bool, err error) {
	if err := dl.svc.keys.CheckNotSuperseded(); err != nil {
		return nil, false, err
	}
	for {
		rows, err := dl.svc.store.Pending(ctx, dl.key.tenant, dl.key.device, after, dl.svc.opts.Now(), limit)
		if err != nil {
			return nil, false, err
		}
		for _, r := range rows {
			c, err := dl.handOver(ctx, r, nonce)
			if m, ok := errors.AsType[*tooLargeError](err); ok {
				if err = dl.svc.markUndeliverable(ctx, dl.key, r.ID, m.Reason, r); err == nil {
					continue
				}
			}
			switch code := watchword.CodeOf(err); {
			case errors.Is(err, errLogRolledBack):
				return nil, false, err
			case errors.Is(err, errNotInCheckpoint):
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
// to the device's current key, and stores the hash before it is sent. The error
// is a [tooLargeError] where the connection does not take as much, or no device would take it: as
// a rule nothing is kept then.
func (dl *Delivery) handOver(ctx context.Context, r Row, nonce string) (SealedCommand, error) {
	d := dl.svc
	who, err := d.directory.Principal(ctx, r.Tenant, r.Device)
	if err != nil {
		return SealedCommand{}, err
	}
	k, ok := who.Subject.SealKey(d.opts.Now())
	if !ok {
		return SealedCommand{}, watchword.Refuse(watchword.SubjectNew, "the device has no sealing key")
	}
	to, err := who.Keys.Key(k.ID)
	if err != nil {
		return SealedCommand{}, err
	}
	jws, err := d.signedVersion(ctx, r, nonce)
	if err != nil {
		return SealedCommand{}, err
	}
	atRest, err := d.sealer.Seal(handoverContext(r.ID), []byte(jws))
	if err != nil {
		return SealedCommand{}, err
	}
	h := Handover{Hash: jose.HashString(jws), Nonce: nonce, JWS: atRest, At: d.opts.Now()}
	d.mu.Lock()
	logged := dl.needsProof
	d.mu.Unlock()
	jwe := ""
	if !logged {
		if jwe, err = jose.Encrypt(to, "JWT", []byte(jws)); err == nil {
			err = dl.limits.check(len(jwe)) // before anything says that it was sent
		}
		if err != nil {
			return SealedCommand{}, err
		}
	}
	row, entry, err := d.store.AddHandover(ctx, r.Tenant, r.ID, h, audit.FixedEntry[Row](d.handoverEntry(r, h, jws)))
	if err != nil {
		return SealedCommand{}, err
	}
	if r.State != row.State {
		d.notify(row)
	}
	if logged {
		if jwe, err = dl.sealWithProof(ctx, to, jws, entry); err == nil {
			err = dl.limits.check(len(jwe)) // how long the proof is was not known before
		}
		if err != nil {
			return SealedCommand{}, err
		}
	}
	return SealedCommand{ID: r.ID, Epoch: r.Epoch, Seq: r.Seq, Expires: r.Expires, JWE: jwe, sent: r.SentAt}, nil
}

// errNotInCheckpoint means that the log's checkpoint does not have a hand-over's entry yet.
var errNotInCheckpoint = errors.New("no checkpoint has it yet")

// errLogRolledBack is the error for a device that has seen a longer log.
var errLogRolledBack = watchword.Refuse(watchword.Conflict, "the device knows a longer log than this server has")

// sealWithProof seals a version to the device, with the proof that the log has it.
func (dl *Delivery) sealWithProof(ctx context.Context, to *jose.PublicKey, jws string, entry int64) (string, error) {
	d := dl.svc
	d.mu.Lock()
	seen := dl.seenSize
	d.awaitingCheckpoint[dl] = struct{}{} // before the log is asked: no checkpoint falls between
	d.mu.Unlock()
	if entry == 0 {
		return "", watchword.Refuse(watchword.Conflict, "the command was delivered before this server logged deliveries")
	}
	c, note, ok := d.opts.Log.LatestCosigned(entry)
	if !ok {
		return "", errNotInCheckpoint
	}
	proof, err := d.opts.Log.ProveAt(ctx, c, note, entry)
	if err != nil {
		return "", err
	}
	if seen > c.Size { // of a server that came back from a backup, or a lie
		slog.WarnContext(ctx, "a device has seen a longer log than this one", slog.String("device", string(dl.key.device)))
		return "", errLogRolledBack
	}
	extends, err := d.opts.Log.ConsistencyProof(ctx, c, seen)
	if err != nil {
		return "", err
	}
	b, err := ledger.NewLoggedJWS(jws, proof, seen, extends).Marshal()
	if err != nil {
		return "", err
	}
	d.mu.Lock()
	dl.seenSize = c.Size
	delete(d.awaitingCheckpoint, dl)
	d.mu.Unlock()
	return jose.Encrypt(to, ledger.LoggedType, b)
}

// CheckpointPublished notifies the waiting deliveries that the log has another checkpoint.
func (svc *Service) CheckpointPublished() {
	svc.mu.Lock()
	defer svc.mu.Unlock()
	for l := range svc.awaitingCheckpoint {
		delete(svc.awaitingCheckpoint, l)
		l.signal()
	}
}

// handoverEntry is the log's entry of a version that is handed over: which bytes, under
// which command key.
func (svc *Service) handoverEntry(r Row, h Handover, jws string) audit.Entry {
	data := map[string]string{
		"device": string(r.Device), "ch": h.Hash, "epoch": strconv.FormatInt(r.Epoch, 10), "seq": strconv.FormatInt(r.Seq, 10),
	}
	if u, err := jose.ParseJWS(jws, watchword.MaxDocument); err == nil { // our own
		data["command_key"] = u.Kid
	}
	return audit.Actor{Tenant: r.Tenant}.DoneEntry(audit.CommandHandOver, string(r.ID), h.At, data)
}

// signedVersion returns the JWS of r for this nonce: the one handed over before, unless
// its key was revoked meanwhile, or a new one.
func (svc *Service) signedVersion(ctx context.Context, r Row, nonce string) (string, error) {
	now := svc.opts.Now()
	if r.State != watchword.Queued {
		hs, err := svc.store.Handovers(ctx, r.Tenant, r.ID)
		if err != nil {
			return "", err
		}
		for _, h := range hs {
			if h.Nonce != nonce || h.At.After(now.Add(token.Skew)) { // signed while the clock was ahead: no device takes it yet
				continue
			}
			jws, err := svc.sealer.Open(handoverContext(r.ID), h.JWS)
			if err != nil || svc.keyStillValid(string(jws)) {
				return string(jws), err
			}
		}
	}
	args, err := svc.Args(r)
	if err != nil {
		return "", err
	}
	if left := r.Expires.Sub(now); left <= 0 || left > token.CommandLifetime+time.Second { // or the clock went back: it may come again
		return "", watchword.Refuse(watchword.Conflict, "the command cannot be signed: it expires at %s", r.Expires.UTC().Format(time.RFC3339))
	}
	jws, err := token.SignCommand(svc.keys.CommandSigner(), token.Command{
		Issuer: svc.issuer(r.Tenant), Device: r.Device, ID: r.ID, Epoch: r.Epoch, Seq: r.Seq, Function: r.Function, Args: args,
		By: r.By, Nonce: nonce, Order: r.Order, Issued: now, Expires: r.Expires,
	})
	switch code := watchword.CodeOf(err); code {
	case watchword.BadRequest, watchword.TooLarge: // no device would take it, at no time: it must not keep back those behind it
		return "", &tooLargeError{Reason{Code: code, Detail: "no device takes this command: " + err.Error()}}
	}
	return jws, err
}

// keyStillValid reports whether the key that signed jws, which is our own, is still valid.
func (svc *Service) keyStillValid(jws string) bool {
	u, err := jose.ParseJWS(jws, watchword.MaxDocument)
	return err == nil && svc.keys.CommandKeyValid(watchword.KeyID(u.Kid))
}
