// Package device is the SDK for devices: keys, enrollment, tokens, MQTT and HTTPS connections, and the checks of every command.
// A device executes only commands that are signed by the server it enrolled with, encrypted to it, fresh, and not executed
// before; each execution ends in a signed receipt.
package device

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/internal/tlstrust"
	"github.com/watchword-iot/watchword/token"
)

// Options are the options of [OpenWith]. The zero value is ready to use.
type Options struct {
	// SignCurve is "P-256" or "Ed25519", SealCurve "P-256" or "X25519": the curves of the keys that Enroll generates. Empty
	// means P-256.
	SignCurve, SealCurve string
	// Signer and Opener are external keys (TPM, PKCS#11) that replace the key files: P-256 or Ed25519, and P-256 or X25519.
	Signer    crypto.Signer
	Decrypter ecdh.KeyExchanger
	// NoClock states that the device has no clock. It then requests signed time from the server, and until it has an answer
	// it obeys only commands that carry its nonce.
	NoClock bool
	// ProvePossession makes the device prove its signing key with each request (DPoP, RFC 9449) and in each MQTT connection
	// (RFC 9431). Without it, the device does so once the server requires it (proof_required).
	ProvePossession bool
	// RequireLogProof makes the device execute only commands that come with a proof that the server's audit log contains them:
	// the checkpoint is signed by the log's key and by as many witnesses as the trust bundle requires, and extends the last
	// checkpoint that the device saw. Without witnesses, forging a command takes the command key and the log key; with
	// witnesses, a forged command is visible in the public log.
	RequireLogProof bool
	// MaxCommand is the largest encrypted command (JWE) that the device accepts, in bytes; 0 means 32 KiB. The server ends a
	// larger command as undeliverable; the device refuses one that arrives anyway (too_large).
	MaxCommand int
	// Connected, if not nil, is called in Run each time a connection to the server is made, with "mqtt" or "https". It must
	// not block.
	Connected func(over string)
	// Revoked, if not nil, is called in Run when the server, verified by the trust bundle, says that the device is revoked.
	// Run continues: for pause, about a day, it sends no request (other methods return subject_revoked); then it sends one,
	// and calls Revoked again if the answer is the same. It must not block.
	Revoked func(pause time.Duration)
	// Dial, if not nil, makes the device's connections, under TLS: over another interface, through a proxy of another kind. It is
	// called from several goroutines, 20 times at once and then once a second at most. nil means directly, or through the HTTP
	// proxy that the environment names (HTTPS_PROXY, NO_PROXY), by CONNECT.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	Log  *slog.Logger     // nil means slog.Default
	Now  func() time.Time // nil means time.Now
}

func (o *Options) fill() {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Dial == nil {
		o.Dial = rest.DialFromEnvironment
	}
}

// Device is one device. Its methods are safe for concurrent use. Call Close at the end.
type Device struct {
	dir         string
	opts        Options
	lock        *os.File // nil if the folder is shared
	dialLimiter dialLimiter

	signer    atomic.Pointer[jose.Signer] // nil until the keys exist; replaced by [Device.Rekey]
	decrypter atomic.Pointer[jose.Decrypter]
	keyChange keyChange

	identity *identity // nil until enrolled
	trust    atomic.Pointer[token.Trust]
	// storedIdentity is the identity in the folder, if it differs from identity; used only when the trust bundle is renewed.
	storedIdentity *identity
	fallback       addressFallback
	transport      tlstrust.Transport
	client         *rest.Client
	tokens         *rest.Tokens
	mqtt           atomic.Pointer[mqttConn] // the current MQTT connection, or nil

	clock     signedClock
	revoked   revocation
	handlers  handlers
	orderKeys atomic.Pointer[token.KeySet] // keys of which one must have signed an order; nil: orders need no signature
	nonce     nonce

	executeMu sync.Mutex // one command at a time, from its checks to its receipt; locked before stateMu
	stateMu   sync.Mutex // guards journal, log and nonce; held during disk writes, never while a function runs
	journal   *journal
	counters  *counterFile // has its own lock

	configETag atomic.Pointer[string] // the ETag of the known configuration; nil for none
	seenLog    logRecord              // the last checkpoint seen, if RequireLogProof is set
}

// Open opens or creates a device's folder, and locks it for this process. Codes: folder_in_use, key_exposed,
// file_untrusted, key_damaged, internal if another file is damaged.
func Open(dir string) (*Device, error) { return OpenWith(dir, Options{}) }

// OpenWith is [Open] with options.
func OpenWith(dir string, o Options) (_ *Device, err error) {
	o.fill()
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	d := &Device{dir: dir, opts: o}
	if d.lock, err = openFolder(dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.lock.Close())
		}
	}()
	return d, d.load()
}

// load reads the folder.
func (d *Device) load() (err error) {
	if d.counters, err = readCounters(durable.OS{}, d.path(countersFile)); err != nil {
		return err
	}
	if d.clock.floor, err = d.readFloor(); err != nil {
		return err
	}
	if err = d.loadKeys(); err != nil {
		return err
	}
	if d.identity, err = d.readIdentity(); err != nil || d.identity == nil {
		return err
	}
	return d.prepare()
}

func (d *Device) path(name string) string { return filepath.Join(d.dir, name) }

// loadKeys uses the keys of the options, or else those of the folder, if they exist.
func (d *Device) loadKeys() error {
	var signer *jose.Signer
	var opener *jose.Decrypter
	sign, err := d.readKey(signFile, jose.ForSigning)
	switch {
	case d.opts.Signer != nil:
		signer, err = jose.NewSigner(d.opts.Signer)
	case sign != nil:
		signer, err = sign.Signer()
	}
	if err != nil {
		return err
	}
	seal, err := d.readKey(sealFile, jose.ForEncryption)
	switch {
	case d.opts.Decrypter != nil:
		opener, err = jose.NewDecrypter(d.opts.Decrypter)
	case seal != nil:
		opener, err = seal.Decrypter()
	}
	if err != nil {
		return err
	}
	d.signer.Store(signer)
	d.decrypter.Store(opener)
	n, err := d.readNextKeys()
	d.keyChange.set(n)
	return err
}

// prepare makes an enrolled device ready for requests.
func (d *Device) prepare() error {
	if d.signer.Load() == nil || d.decrypter.Load() == nil {
		return watchword.Refuse(watchword.Internal, "%s contains an enrollment without its keys", d.dir)
	}
	t, err := d.readTrust()
	if err != nil {
		return err
	}
	if err := d.useTrust(&t); err != nil {
		return err
	}
	if d.seenLog, err = d.readCheckpoint(&t); err != nil {
		return err
	}
	if d.lock == nil {
		d.journal, err = openSharedJournal(durable.OS{}, d.path(journalFile), d.counters)
		return err
	}
	if d.journal, err = openJournal(durable.OS{}, d.path(journalFile), d.counters); err != nil {
		return err
	}
	if d.journal.lost {
		d.opts.Log.Error("the memory of commands is lost; only commands that carry this device's nonce are obeyed until one came", slog.String("why", d.journal.lostReason))
	}
	if err := d.journal.writeErr; err != nil {
		d.opts.Log.Error("the memory of commands cannot be written", slog.Any("err", err))
	}
	d.adoptCounters()
	return nil
}

// adoptCounters copies numbers from the files that are missing in the counters: of a build without counters, or if the
// counters were lost.
func (d *Device) adoptCounters() {
	config, trust := d.knownConfig(), d.trust.Load()
	if file, signed := d.configInFolder(); config.Seq == 0 || signed && file.after(config) {
		config = file // the counters are damaged, or older than the file
	}
	err := d.counters.update(func(c *counters) {
		c.ConfigEpoch, c.ConfigVersion = config.Epoch, config.Seq
		c.setBundleVersion(trust.BundleVersion())
		c.setLogRecord(d.seenLog)
		if floor := d.clock.lowerBound(); !floor.IsZero() {
			c.Time = floor.Unix()
		}
	})
	if err != nil {
		d.opts.Log.Error("the numbers of the folder cannot be written", slog.Any("err", err))
	}
}

// useTrust directs requests to the server that a trust bundle vouches for.
func (d *Device) useTrust(t *token.Trust) error {
	tr, err := d.transportFor(t)
	if err != nil {
		return err
	}
	d.trust.Store(t)
	if old := d.transport.Swap(tr); old != nil {
		old.CloseIdleConnections()
		return nil
	}
	d.client, d.tokens = d.authClient(d.signer.Load)
	d.tokens.WithLock = d.withValidKey
	if d.opts.ProvePossession {
		d.tokens.BindTokens()
	}
	return nil
}

// authClient returns a client that authenticates with a key, and its tokens.
func (d *Device) authClient(signer func() *jose.Signer) (*rest.Client, *rest.Tokens) {
	tokens := &rest.Tokens{
		Client: rest.NewAt(d.Server, &d.transport, nil), Path: "/oauth/token", Now: d.bestTime,
		Sign:   func() (string, error) { return d.assertion(signer(), token.AssertionLifetime) },
		Prover: d.dpopProver(signer), WithLock: d.withTime,
	}
	return rest.NewAt(d.Server, &d.transport, tokens), tokens
}

// dpopProver returns the prover that adds DPoP proofs by the device's key if the server requires them.
func (d *Device) dpopProver(signer func() *jose.Signer) *rest.Prover {
	return &rest.Prover{Sign: func(method, uri, nonce, access string) (string, error) {
		return token.SignDPoP(signer(), method, uri, nonce, access, d.bestTime())
	}}
}

// withValidKey calls get with the key that is currently valid, and with the correct time.
func (d *Device) withValidKey(ctx context.Context, get func(context.Context) error) error {
	if isLostTrust(d.trust.Load()) {
		if err := d.renewTrust(ctx); err != nil {
			return err
		}
	}
	if err := d.finishKeyChange(ctx); err != nil { // the device continues with the old key, and tries again later
		d.opts.Log.Info("keys not changed yet", slog.String("code", string(watchword.CodeOf(err))), slog.Any("err", err))
	}
	return d.withTime(ctx, get)
}

// Enrolled reports whether the device has an identity.
func (d *Device) Enrolled() bool { return d.identity != nil }

// ID returns the device's ID; empty before it is enrolled.
func (d *Device) ID() watchword.SubjectID {
	if d.identity == nil {
		return ""
	}
	return d.identity.ID
}

// Server returns the server's URL; empty before the device is enrolled.
func (d *Device) Server() string {
	if d.identity == nil {
		return ""
	}
	return d.serverURL(d.trust.Load())
}

// MQTT returns HOST:PORT of the server's MQTT listener over TLS; empty if it has none, and before the device is enrolled.
func (d *Device) MQTT() string {
	if d.identity == nil {
		return ""
	}
	return d.mqttAddress()
}

// Keys returns the public keys for signing and encryption; nil before they exist.
func (d *Device) Keys() (sign, seal *jose.PublicKey) {
	signer, opener := d.signer.Load(), d.decrypter.Load()
	if signer == nil || opener == nil {
		return nil, nil
	}
	return signer.Public(), opener.Public()
}

// CAFile returns the path of a PEM file with the certificate authorities of the server, for other clients.
func (d *Device) CAFile() string { return d.path(caFile) }

// Trust returns the current trust bundle; nil before the device is enrolled, and if the bundle in the folder is lost, until
// the server has sent the next one.
func (d *Device) Trust() *token.Trust {
	t := d.trust.Load()
	if t != nil && isLostTrust(t) {
		return nil
	}
	return t
}

// Position returns epoch and sequence number of the last command whose execution began.
func (d *Device) Position() (epoch, seq int64) {
	d.stateMu.Lock()
	defer d.stateMu.Unlock()
	if d.journal == nil {
		return 0, 0
	}
	return d.journal.last.Epoch, d.journal.last.Seq
}

// MemoryLost returns the reason for which the journal of executed commands is lost; empty if it is not. While it is lost,
// only a command that carries this device's nonce is executed.
func (d *Device) MemoryLost() string {
	d.stateMu.Lock()
	defer d.stateMu.Unlock()
	switch {
	case d.journal == nil || !d.journal.lost:
		return ""
	case d.journal.lostReason == "":
		return "it was lost before the folder was opened"
	}
	return d.journal.lostReason
}

// Assertion signs a client assertion that is valid for life, at most 300 s, for clients that request tokens themselves.
// Code: conflict before the device is enrolled.
func (d *Device) Assertion(life time.Duration) (string, error) {
	if d.identity == nil {
		return "", errNotEnrolled()
	}
	return d.assertion(d.signer.Load(), life)
}

func (d *Device) assertion(s *jose.Signer, life time.Duration) (string, error) {
	return token.SignAssertion(s, d.identity.ID, d.issuer(), d.bestTime(), life)
}

// Token returns an access token that is valid for some time; it may be a cached one.
func (d *Device) Token(ctx context.Context) (string, error) {
	if d.identity == nil {
		return "", errNotEnrolled()
	}
	return d.tokens.Get(ctx)
}

// NewToken returns a new access token.
func (d *Device) NewToken(ctx context.Context) (string, error) {
	if d.identity == nil {
		return "", errNotEnrolled()
	}
	return d.tokens.Renew(ctx)
}

func errNotEnrolled() error {
	return watchword.Refuse(watchword.Conflict, "the device has not enrolled yet")
}

// Close releases the folder. It does not wait for functions that run: first end the context of [Device.Run], and wait for
// its return. A function that still runs cannot write its receipt, which is "interrupted" at the next start.
func (d *Device) Close() error {
	d.stateMu.Lock()
	defer d.stateMu.Unlock()
	var errs []error
	if d.journal != nil {
		errs = append(errs, d.journal.close())
		// Functions that still run get a journal that refuses every write.
		d.journal = &journal{last: d.journal.last, writeErr: watchword.Refuse(watchword.Unavailable, "the device is closed")}
	}
	if d.client != nil {
		d.client.CloseIdleConnections()
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	return errors.Join(errs...)
}

// OpenShared opens the folder of an enrolled device that another process runs: for tokens, assertions and publishing. It
// can neither enroll nor execute commands.
func OpenShared(dir string, o Options) (*Device, error) {
	o.fill()
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	d := &Device{dir: dir, opts: o}
	return d, d.load()
}
