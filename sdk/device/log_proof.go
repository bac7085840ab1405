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

// readCheckpoint returns the last checkpoint of the log that was seen; a zero one for none. The file is used if the log's
// signature on it is valid, else the counters.
func (d *Device) readCheckpoint(t *token.Trust) (ledger.Checkpoint, error) {
	c := d.counters.values()
	stored := ledger.Checkpoint{Origin: ledger.Origin(d.identity.Issuer), Size: c.LogSize, Root: c.LogRoot}
	if stored.Size == 0 {
		stored = ledger.Checkpoint{}
	}
	b, err := durable.ReadTrusted(d.path(checkpointFile), ledger.MaxNote)
	switch {
	case isUntrustedFile(err):
		return stored, err
	case errors.Is(err, fs.ErrNotExist) && stored.Size == 0:
		return stored, nil
	}
	if err == nil {
		var keys []ledger.Key
		var o ledger.VerifiedCheckpoint
		if keys, err = ledger.VerifierKeys(t.Issuer, t.Log, t.Witnesses); err == nil {
			o, err = ledger.VerifyCheckpoint(b, keys...)
		}
		if err == nil && o.Size >= stored.Size {
			return o.Checkpoint, nil
		}
		if err != nil && stored.Size == 0 { // of a build without counters: the key that signed it may no longer exist
			if c, rerr := ledger.ReadCheckpoint(b); rerr == nil {
				return c, nil
			}
		}
	}
	if stored.Size == 0 {
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
	keys, err := ledger.VerifierKeys(trust.Issuer, trust.Log, trust.Witnesses)
	if err != nil {
		return no(err)
	}
	p, seen, err := l.Verify(d.seenCheckpoint, int(trust.Quorum), keys...)
	if err != nil {
		return no(err)
	}
	if seen.Size > d.seenCheckpoint.Size { // before the command is begun: a device that restarts must not accept an older log
		if err := durable.WriteFile(d.path(checkpointFile), p.Checkpoint, 0o600); err != nil {
			return nil, watchword.Wrap(err, watchword.Unavailable, "the log's checkpoint cannot be written")
		}
		d.seenCheckpoint = seen.Checkpoint
		d.counters.stage(func(c *counters) { c.LogSize, c.LogRoot = seen.Size, seen.Root }) // written together with the command's number
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
