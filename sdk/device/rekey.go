package device

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// RekeyOptions states which keys a device changes: the curve of each new key, "P-256" or "Ed25519" for signing, "P-256" or
// "X25519" for encryption. An empty curve keeps that key; if both are empty, both keys change and keep their curves.
type RekeyOptions struct{ Sign, Seal string }

// Rekey generates new keys that replace the old ones, in the folder and at the server, which ends every session of the old
// ones. It may be called while [Device.Run] runs. New keys are stored beside the old ones until the server has accepted
// them, so that a power cut does not lose the device's identity: an interrupted change is completed before the next token
// is requested, and by the next call of Rekey.
//
// Codes: conflict before enrollment; folder_in_use if the folder was opened by OpenShared; bad_request for another curve,
// or an external key; denied, rate_limited, unavailable and other codes of the server: then the old keys stay in use.
func (d *Device) Rekey(ctx context.Context, o RekeyOptions) error {
	if d.identity == nil {
		return errNotEnrolled()
	}
	if d.lock == nil {
		return watchword.Refuse(watchword.FolderInUse, "the state folder was opened for reading: keys cannot be changed")
	}
	c := &d.keyChange
	c.mu.Lock()
	defer c.mu.Unlock()
	o, err := d.curves(o)
	if err != nil {
		return err
	}
	if c.next != nil {
		fits := c.next.matches(o)
		if err := d.changeKeys(ctx, true); err != nil || fits {
			return err
		}
	}
	n, err := makeNextKeys(o)
	if err != nil {
		return err
	}
	if err := n.write(d.path(newKeysFile)); err != nil {
		return err
	}
	c.set(n)
	return d.changeKeys(ctx, false)
}

// curves completes and checks o.
func (d *Device) curves(o RekeyOptions) (RekeyOptions, error) {
	if o.Sign == "" && o.Seal == "" {
		if d.opts.Signer == nil {
			o.Sign = d.signer.Load().Public().Curve()
		}
		if d.opts.Decrypter == nil {
			o.Seal = d.decrypter.Load().Public().Curve()
		}
	}
	switch {
	case o.Sign != "" && d.opts.Signer != nil, o.Seal != "" && d.opts.Decrypter != nil, o == RekeyOptions{}:
		return o, watchword.Refuse(watchword.BadRequest, "a key of a TPM or PKCS#11 token cannot be changed by the agent")
	case o.Sign != "" && o.Sign != jose.P256 && o.Sign != jose.Ed:
		return o, watchword.RefuseField("sign", "must be P-256 or Ed25519")
	case o.Seal != "" && o.Seal != jose.P256 && o.Seal != jose.X25519:
		return o, watchword.RefuseField("seal", "must be P-256 or X25519")
	}
	return o, nil
}

// keyChange is a key change in progress.
type keyChange struct {
	mu      sync.Mutex
	next    *nextKeys   // nil: none
	pending atomic.Bool // next exists, and may be tried again
	failed  time.Time   // time of the last failed attempt of [Device.finishKeyChange] that may be repeated
}

// keyChangeRetry is the pause between two attempts if the server does not answer.
const keyChangeRetry = time.Minute

// set is called with mu held, or before the device is used concurrently.
func (c *keyChange) set(n *nextKeys) {
	c.next = n
	c.pending.Store(n != nil)
}

// nextKeys is new keys that the server may or may not have accepted. A nil key does not change.
type nextKeys struct{ sign, seal *jose.PrivateKey }

func makeNextKeys(o RekeyOptions) (*nextKeys, error) {
	n := &nextKeys{}
	for _, k := range []struct {
		curve string
		to    **jose.PrivateKey
	}{{o.Sign, &n.sign}, {o.Seal, &n.seal}} {
		if k.curve == "" {
			continue
		}
		key, err := jose.GenerateKey(k.curve)
		if err != nil {
			return nil, err
		}
		*k.to = key
	}
	return n, nil
}

// matches reports whether these keys have the curves of o.
func (n *nextKeys) matches(o RekeyOptions) bool {
	curve := func(k *jose.PrivateKey) string {
		if k == nil {
			return ""
		}
		return k.Public().Curve()
	}
	return curve(n.sign) == o.Sign && curve(n.seal) == o.Seal
}

// nextJSON is the file of the next keys: one file, so that both exist or neither.
type nextJSON struct {
	Sign json.RawMessage `json:"sign,omitempty"`
	Seal json.RawMessage `json:"seal,omitempty"`
}

func (n *nextKeys) json() (f nextJSON) {
	if n.sign != nil {
		f.Sign = n.sign.JWK()
	}
	if n.seal != nil {
		f.Seal = n.seal.JWK()
	}
	return f
}

func (n *nextKeys) write(path string) error {
	b, err := withChecksum(n.json())
	if err != nil {
		return err
	}
	return writeWithCopy(path, b)
}

// readNextKeys returns the next keys of a folder; nil if there are none.
func (d *Device) readNextKeys() (n *nextKeys, err error) {
	b, err := d.readWithCopy(newKeysFile, true, func(b []byte) error {
		var f nextJSON
		read := &nextKeys{}
		err := verifyChecksum(b, &f)
		if err == nil && f.Sign != nil {
			read.sign, err = jose.ParsePrivateJWK(f.Sign, jose.ForSigning)
		}
		if err == nil && f.Seal != nil {
			read.seal, err = jose.ParsePrivateJWK(f.Seal, jose.ForEncryption)
		}
		if err == nil && read.sign == nil && read.seal == nil {
			err = watchword.Refuse(watchword.KeyDamaged, "the file contains no key")
		}
		if err == nil && n == nil {
			n = read
		}
		return err
	})
	if watchword.CodeOf(err) == watchword.KeyDamaged {
		err = watchword.Wrap(err, watchword.KeyDamaged, "%s is damaged: it may contain the keys that the server has already accepted", d.path(newKeysFile))
	}
	if err != nil || n == nil {
		return nil, err
	}
	return n, d.addChecksum(newKeysFile, b, n.json())
}

// finishKeyChange completes an interrupted key change, before anything is signed with a key that may be invalid. If another
// goroutine is already completing it, or if the server did not answer within the last [keyChangeRetry], the device
// continues with its current keys. It returns an error only if another attempt may succeed.
func (d *Device) finishKeyChange(ctx context.Context) error {
	c := &d.keyChange
	if !c.pending.Load() || !c.mu.TryLock() {
		return nil
	}
	defer c.mu.Unlock()
	if c.next == nil || time.Since(c.failed) < keyChangeRetry {
		return nil
	}
	var err error
	if d.lock == nil {
		err = d.detectActiveKey(ctx)
	} else {
		err = d.changeKeys(ctx, true)
	}
	switch watchword.CodeOf(err) {
	case "":
		return nil
	case watchword.Unavailable, watchword.ClockUntrusted, watchword.Superseded, watchword.Busy, watchword.RateLimited, watchword.TimedOut:
		c.failed = time.Now()
		return err
	}
	if ctx.Err() != nil {
		return err
	}
	c.pending.Store(false) // until a caller requests it, or the next start
	d.opts.Log.Warn("keys not changed", slog.String("code", string(watchword.CodeOf(err))), slog.Any("err", err))
	return nil
}

// changeKeys asks the server to accept the next keys. It authenticates with the old key, and with the new one in case the
// server has accepted it already; resumed selects which is tried first. The caller holds change.mu.
func (d *Device) changeKeys(ctx context.Context, resumed bool) error {
	n, from := d.keyChange.next, d.signer.Load()
	to := from
	if n.sign != nil {
		s, err := n.sign.Signer()
		if err != nil {
			return err
		}
		to = s
	}
	tries := []*jose.Signer{from, to}
	if resumed {
		tries = []*jose.Signer{to, from}
	}
	if to == from {
		tries = tries[:1]
	}
	var err error
	for _, as := range tries {
		// The request has both keys, so it is the same for either authentication.
		if err = d.requestRekey(ctx, as, from, to, n); watchword.CodeOf(err) != watchword.ClientInvalid {
			break
		}
	}
	if watchword.CodeOf(err) == watchword.Conflict { // used before, and not the current keys: they will never be accepted
		d.keyChange.set(nil)
		return errors.Join(err, removeWithCopy(d.path(newKeysFile)))
	}
	if err != nil {
		return err
	}
	return d.promote(n, to)
}

// requestRekey sends the request with a token of one of the keys.
func (d *Device) requestRekey(ctx context.Context, as, from, to *jose.Signer, n *nextKeys) error {
	client, tokens := d.authClient(func() *jose.Signer { return as })
	if _, err := tokens.Get(ctx); err != nil { // before the proof gets its time
		return err
	}
	seal := d.decrypter.Load().Public()
	var keys api.PublicKeys
	if n.sign != nil {
		keys.Sign = n.sign.Public().JWK()
	}
	if n.seal != nil {
		seal = n.seal.Public()
		keys.Seal = seal.JWK()
	}
	proof, err := token.SignRekey(from, to, d.identity.ID, d.issuer(), seal.ID(), d.bestTime())
	if err != nil {
		return err
	}
	var out api.RekeyResponse
	if _, err := client.JSON(ctx, rest.Request{Method: http.MethodPost, Path: "/v1/self/keys"}, api.RekeyRequest{Keys: keys, Rekey: json.RawMessage(proof)}, &out); err != nil {
		return err
	}
	if out.Keys.Sign != to.Public().ID() || out.Keys.Seal != seal.ID() {
		return watchword.Refuse(watchword.Internal, "the server returned other keys than those of the request")
	}
	return nil
}

// promote replaces the current keys with the next ones. A power cut between its steps leaves a state that the next start
// completes.
func (d *Device) promote(n *nextKeys, to *jose.Signer) error {
	d.signer.Store(to)
	if n.seal != nil {
		o, err := n.seal.Decrypter()
		if err != nil {
			return err
		}
		d.decrypter.Store(o)
	}
	d.tokens.Forget()
	for _, k := range []struct {
		file string
		key  *jose.PrivateKey
	}{{signFile, n.sign}, {sealFile, n.seal}} {
		if k.key == nil {
			continue
		}
		if err := writeWithCopy(d.path(k.file), append(k.key.JWK(), '\n')); err != nil {
			return err
		}
	}
	if err := removeWithCopy(d.path(newKeysFile)); err != nil {
		return err
	}
	d.keyChange.set(nil)
	sign, seal := d.Keys()
	d.opts.Log.Info("keys changed", slog.String("sign", string(sign.ID())), slog.String("seal", string(seal.ID())))
	return durable.SyncDir(d.dir)
}

// detectActiveKey finds out which signing key is valid, in a folder that another process has locked. It changes nothing.
func (d *Device) detectActiveKey(ctx context.Context) error {
	n := d.keyChange.next
	if n.sign == nil {
		d.keyChange.set(nil)
		return nil
	}
	_, tokens := d.authClient(d.signer.Load)
	_, err := tokens.Get(ctx)
	if watchword.CodeOf(err) == watchword.ClientInvalid {
		var s *jose.Signer
		if s, err = n.sign.Signer(); err == nil {
			d.signer.Store(s)
		}
	}
	if err == nil {
		d.keyChange.set(nil)
	}
	return err
}

// RekeyEvery changes both keys each time they are as old as every, by the file system's clock, until ctx ends. The time is
// randomized, so that devices do not change keys simultaneously.
func (d *Device) RekeyEvery(ctx context.Context, every time.Duration) error {
	var wait time.Duration
	for {
		made, err := d.keysMade()
		if err != nil {
			return err
		}
		due := every - min(max(time.Since(made), 0), every) // a time in the future is of a wrong clock
		t := time.NewTimer(max(due, wait) + rand.N(every/20+1))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
		wait = 0
		if err := d.Rekey(ctx, RekeyOptions{}); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if watchword.CodeOf(err) == watchword.BadRequest {
				return err
			}
			wait = time.Hour
			d.opts.Log.Warn("keys not changed", slog.String("code", string(watchword.CodeOf(err))), slog.Any("err", err))
		}
	}
}

// keysMade returns the creation time of the older key file.
func (d *Device) keysMade() (time.Time, error) {
	var oldest time.Time
	for _, k := range []struct {
		file      string
		elsewhere bool
	}{{signFile, d.opts.Signer != nil}, {sealFile, d.opts.Decrypter != nil}} {
		if k.elsewhere {
			continue
		}
		info, err := os.Stat(d.path(k.file))
		if err != nil {
			return oldest, err
		}
		if oldest.IsZero() || info.ModTime().Before(oldest) {
			oldest = info.ModTime()
		}
	}
	return oldest, nil
}
