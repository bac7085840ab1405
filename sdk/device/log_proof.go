package device

import (
	"errors"
	"io/fs"
	"log/slog"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// checkpointFile is the last checkpoint of the log that this device saw.
const checkpointFile = "log.checkpoint"

// logRecord is the last checkpoint of the log that this device saw: what the log of the server must extend. It is of one log:
// a server that was restored from a backup has a log with another origin, which does not contain the entries after the
// backup. Only the root can introduce that log: see seenIn. The zero value means that no checkpoint was seen.
type logRecord struct {
	originID string // [logOriginID] of the log's origin
	size     int64
	root     ledger.Hash
	epoch    int64 // of the trust bundle under which it was seen; 0: not known
}

// seenIn returns the checkpoint that the log of t must extend; a zero one if the record is of another log, and t introduces
// a new one: it is of a higher epoch than the bundle under which the record was made. A bundle that names another log
// without a higher epoch does not end the record; a command is then refused.
func (r logRecord) seenIn(t *token.Trust) ledger.Checkpoint {
	switch {
	case r.size == 0, r.originID != logOriginID(t) && t.Epoch > r.epoch:
		return ledger.Checkpoint{}
	case r.originID != logOriginID(t):
		return ledger.Checkpoint{Origin: "another log", Size: r.size, Root: r.root} // which no checkpoint of t's log extends
	}
	return ledger.Checkpoint{Origin: t.Origin(), Size: r.size, Root: r.root}
}

// logOriginID returns a short name of the log of t: empty for the log of a server that was never restored.
func logOriginID(t *token.Trust) string {
	if t.Origin() == watchword.LogOrigin(t.FirstIssuer()) {
		return ""
	}
	return jose.HashString(t.Origin())[:16] // the counters have a fixed size, and an origin can be long
}

// readCheckpoint returns the last checkpoint of the log that was seen; a zero one for none. The file is used if it is of the
// log of t and the log's signature on it is valid, else the counters.
func (d *Device) readCheckpoint(t *token.Trust) (logRecord, error) {
	c := d.counters.values()
	stored := logRecord{originID: c.LogOrigin, size: c.LogSize, root: c.LogRoot, epoch: c.LogEpoch}
	if stored.size == 0 {
		stored = logRecord{}
	}
	b, err := durable.ReadTrusted(d.path(checkpointFile), ledger.MaxNote)
	switch {
	case isUntrustedFile(err):
		return stored, err
	case errors.Is(err, fs.ErrNotExist) && stored.size == 0:
		return stored, nil
	}
	if err == nil {
		var keys []ledger.Key
		var o ledger.VerifiedCheckpoint
		if keys, err = ledger.VerifierKeys(t.Origin(), t.Log, t.Witnesses); err == nil {
			o, err = ledger.VerifyCheckpoint(b, keys...)
		}
		if known := stored.seenIn(t); err == nil && o.Size >= known.Size && (known.Size == 0 || known.Origin == o.Origin) {
			return logRecord{logOriginID(t), o.Size, o.Root, t.Epoch}, nil
		}
		if err != nil && stored.size == 0 { // of a build without counters: the key that signed it may no longer exist
			if c, rerr := ledger.ReadCheckpoint(b); rerr == nil && c.Origin == watchword.LogOrigin(t.FirstIssuer()) {
				return logRecord{size: c.Size, root: c.Root}, nil
			}
		}
	}
	if stored.size == 0 {
		d.opts.Log.Error("the log's checkpoint is lost in both places; the next one is trusted", slog.Any("err", err))
	}
	return stored, nil
}

// verifyLogProof verifies that the log contains the command, stores the size of the log, and returns the proved command.
// The caller holds stateMu. Code: command_unlogged.
func (d *Device) verifyLogProof(plain []byte, cty string) ([]byte, error) {
	no := func(err error) ([]byte, error) {
		d.opts.Log.Error("ALARM: a command that the log does not show", slog.Any("err", err))
		return nil, watchword.Wrap(err, watchword.CommandUnlogged, "the command has no valid log proof: %s", err)
	}
	if !jose.SameType(cty, ledger.LoggedType) {
		return no(watchword.Refuse(watchword.LogInvalid, "the command has no log proof"))
	}
	l, err := ledger.ParseLoggedJWS(plain)
	if err != nil {
		return no(err)
	}
	trust := d.trust.Load()
	keys, err := ledger.VerifierKeys(trust.Origin(), trust.Log, trust.Witnesses)
	if err != nil {
		return no(err)
	}
	before := d.seenLog.seenIn(trust)
	p, seen, err := l.Verify(before, int(trust.Quorum), keys...)
	if err != nil {
		return no(err)
	}
	if seen.Size > before.Size { // before the command is begun: a device that restarts must not accept an older log
		if err := durable.WriteFile(d.path(checkpointFile), p.Checkpoint, 0o600); err != nil {
			return nil, watchword.Wrap(err, watchword.Unavailable, "the log's checkpoint cannot be written")
		}
		record := logRecord{logOriginID(trust), seen.Size, seen.Root, trust.Epoch}
		d.seenLog = record
		d.counters.stage(func(c *counters) { c.setLogRecord(record) }) // written together with the command's number
	}
	if err := d.checkHandover(p.Body, l.JWS); err != nil {
		return no(err)
	}
	return []byte(l.JWS), nil
}

// checkHandover verifies that an entry records the handover of these bytes to this device.
func (d *Device) checkHandover(body []byte, jws string) error {
	var kind, device, hash, outcome string
	err := jose.Walk(body, func(name string, v jsontext.Value) (err error) {
		switch name {
		case "kind":
			kind, err = jose.String(v)
		case "outcome":
			outcome, err = jose.String(v)
		case "data":
			err = jose.Walk(v, func(name string, v jsontext.Value) (err error) {
				switch name {
				case "device":
					device, err = jose.String(v)
				case "ch":
					hash, err = jose.String(v)
				}
				return err
			})
		}
		return err
	})
	if err != nil || kind != "command.handover" || outcome != "done" || device != string(d.identity.ID) || hash != jose.HashString(jws) {
		return watchword.Wrap(err, watchword.LogInvalid, "the log entry must be of this command")
	}
	return nil
}
