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
)

// logFile is the log's checkpoint that this device saw last.
const logFile = "log.checkpoint"

// readLog reads what the folder remembers of the log; a zero checkpoint for nothing.
func readLog(path string) (ledger.Checkpoint, error) {
	b, err := durable.ReadTrusted(path, ledger.MaxNote)
	if errors.Is(err, fs.ErrNotExist) {
		return ledger.Checkpoint{}, nil
	}
	if err != nil {
		return ledger.Checkpoint{}, err
	}
	return ledger.ReadCheckpoint(b)
}

// logged checks that the log has what is to be obeyed, remembers how far the log was
// seen, and returns the command that was proved. The caller holds memory. Code:
// command_unlogged.
func (d *Device) logged(plain []byte, cty string) ([]byte, error) {
	no := func(err error) ([]byte, error) {
		d.o.Log.Error("ALARM: a command that the log does not show", slog.Any("err", err))
		return nil, watchword.Because(err, watchword.CommandUnlogged, "the log does not show this command: %s", err)
	}
	if !jose.SameType(cty, ledger.LoggedType) {
		return no(watchword.Refuse(watchword.LogInvalid, "it came without a proof"))
	}
	l, err := ledger.ParseLogged(plain)
	if err != nil {
		return no(err)
	}
	trust := d.trust.Load()
	keys, err := ledger.KeysOf(trust.Issuer, trust.Log, trust.Witnesses)
	if err != nil {
		return no(err)
	}
	p, seen, err := l.Check(d.log, int(trust.Quorum), keys...)
	if err != nil {
		return no(err)
	}
	if seen.Size > d.log.Size { // before anything is done: a device that restarts is shown no older log
		if err := durable.WriteFile(d.path(logFile), p.Checkpoint, 0o600); err != nil {
			return nil, watchword.Because(err, watchword.Unavailable, "the log's checkpoint cannot be written")
		}
		d.log = seen.Checkpoint
	}
	if err := d.handedOver(p.Body, l.JWS); err != nil {
		return no(err)
	}
	return []byte(l.JWS), nil
}

// handedOver checks that an entry says that these bytes were handed over to this device.
func (d *Device) handedOver(body []byte, jws string) error {
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
	if err != nil || kind != "command.handover" || outcome != "done" || device != string(d.id.ID) || hash != jose.HashOf(jws) {
		return watchword.Because(err, watchword.LogInvalid, "the entry is not of this command")
	}
	return nil
}
