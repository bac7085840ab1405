// Package device is what a device carries with it: its keys, its enrollment, its
// tokens, and the checks of every command. In come an enrollment link and sealed
// commands, out go events, state and signed receipts. It obeys nothing that is
// not signed by the server it enrolled with, sealed to it, fresh and new, and it
// never does one command twice.
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
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// Options is what a device may be opened with beside its folder. The zero value
// is ready to use.
type Options struct {
	// SignCurve is "P-256" or "Ed25519", SealCurve "P-256" or "X25519": the keys
	// that Enroll makes. Empty means P-256.
	SignCurve, SealCurve string
	// Signer and Opener are keys that live elsewhere (TPM, PKCS#11) instead of
	// files: P-256 or Ed25519, and P-256 or X25519.
	Signer crypto.Signer
	Opener ecdh.KeyExchanger
	// NoClock says that the device does not know the time: then it asks the server
	// for signed time, and until it has an answer it obeys only commands that carry
	// its own nonce.
	NoClock bool
	// Prove makes the device prove its signing key with each request (RFC 9449) and in
	// each MQTT connection (RFC 9431). Without it, it does so once the server says that it must.
	Prove bool
	// LoggedOnly makes the device obey only commands that come with the proof that the
	// server's log has them: under the log's key, in a log that extends the one seen
	// last, signed by as many witnesses as the trust bundle says. With no witness it
	// takes both the command key and the log key to forge a command; with some, the log
	// shows it to all.
	LoggedOnly bool
	// MaxCommand is the bytes of the largest sealed command (JWE) that the device can hold,
	// for those with little memory; 0 is any, up to 32 KiB. The server ends a larger command
	// as undeliverable; one that comes all the same is refused (too_large).
	MaxCommand int
	// Connected, if not nil, is told in Run each time the server is reached again:
	// over "mqtt" or "https". It must not wait.
	Connected func(over string)
	// Revoked, if not nil, is told in Run when the server, whose certificate the trust bundle
	// vouches for, says that the device is revoked. Run goes on: until pause is over, about
	// a day, nothing is asked for (other methods return subject_revoked), then it asks again,
	// and tells again if it hears the same. It must not wait.
	Revoked func(pause time.Duration)
	// Dial, if not nil, makes the device's connections, under TLS: through a proxy, over
	// another interface. It is called from several goroutines, 20 times at once and then once a
	// second at most.
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
		o.Dial = (&net.Dialer{}).DialContext
	}
}

// Device is one device. Its methods are safe for concurrent use. Close it at the end.
type Device struct {
	dir  string
	o    Options
	lock *os.File // nil where the folder is shared
	pace dialPace

	signer atomic.Pointer[jose.Signer] // nil until the keys exist; another one after [Device.Rekey]
	opener atomic.Pointer[jose.Opener]
	change change

	id     *identity // nil until enrolled
	trust  atomic.Pointer[token.Trust]
	pinned string // the root that the folder goes by, where it is not id's any more; only who renews trust reads it
	road   road
	client *rest.Client
	tokens *rest.Tokens
	wire   atomic.Pointer[wire] // the MQTT connection, while there is one

	clock    clock
	revoked  revocation
	handlers handlers
	orders   atomic.Pointer[token.KeySet] // of who may order; nil: the server's word is enough
	nonce    nonce

	obeying sync.Mutex // one act at a time, from its checks to its receipt; before memory
	memory  sync.Mutex // of journal, log and nonce; held while the disk is written, never while a function runs
	journal *journal
	numbers *numbers // has a lock of its own

	configTag atomic.Pointer[string] // the ETag of the configuration that is known; nil for none
	log       ledger.Checkpoint      // that was seen last, where only what is logged is obeyed
}

// Open opens or makes a device's folder for this process alone. Codes:
// folder_in_use, key_exposed, file_untrusted, key_damaged, internal where another file is damaged.
func Open(dir string) (*Device, error) { return OpenWith(dir, Options{}) }

// OpenWith is [Open] with options.
func OpenWith(dir string, o Options) (_ *Device, err error) {
	o.fill()
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	d := &Device{dir: dir, o: o}
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

// load reads what the folder holds.
func (d *Device) load() (err error) {
	if d.numbers, err = readNumbers(durable.OS{}, d.path(numbersFile)); err != nil {
		return err
	}
	if d.clock.floor, err = d.readFloor(); err != nil {
		return err
	}
	if err = d.loadKeys(); err != nil {
		return err
	}
	if d.id, err = d.readIdentity(); err != nil || d.id == nil {
		return err
	}
	return d.ready()
}

func (d *Device) path(name string) string { return filepath.Join(d.dir, name) }

// loadKeys takes the keys that were given, or those of the folder, if they are there.
func (d *Device) loadKeys() error {
	var signer *jose.Signer
	var opener *jose.Opener
	sign, err := d.readKey(signFile, jose.ForSigning)
	switch {
	case d.o.Signer != nil:
		signer, err = jose.NewSigner(d.o.Signer)
	case sign != nil:
		signer, err = sign.Signer()
	}
	if err != nil {
		return err
	}
	seal, err := d.readKey(sealFile, jose.ForSealing)
	switch {
	case d.o.Opener != nil:
		opener, err = jose.NewOpener(d.o.Opener)
	case seal != nil:
		opener, err = seal.Opener()
	}
	if err != nil {
		return err
	}
	d.signer.Store(signer)
	d.opener.Store(opener)
	n, err := d.readNext()
	d.change.set(n)
	return err
}

// ready makes an enrolled device ready to talk.
func (d *Device) ready() error {
	if d.signer.Load() == nil || d.opener.Load() == nil {
		return watchword.Refuse(watchword.Internal, "%s holds an enrollment, but not its keys", d.dir)
	}
	t, err := d.readTrust()
	if err != nil {
		return err
	}
	if err := d.use(&t); err != nil {
		return err
	}
	if d.log, err = d.readLog(&t); err != nil {
		return err
	}
	if d.lock == nil {
		d.journal, err = lookAtJournal(durable.OS{}, d.path(journalFile), d.numbers)
		return err
	}
	if d.journal, err = openJournal(durable.OS{}, d.path(journalFile), d.numbers); err != nil {
		return err
	}
	if d.journal.lost {
		d.o.Log.Error("the memory of commands is lost; only commands that carry this device's nonce are obeyed until one came", slog.String("why", d.journal.why))
	}
	if err := d.journal.torn; err != nil {
		d.o.Log.Error("the memory of commands cannot be written", slog.Any("err", err))
	}
	d.keepNumbers()
	return nil
}

// keepNumbers takes over into the counts what the files say and the counts do not: of a build
// that kept none, or where they were lost.
func (d *Device) keepNumbers() {
	config, trust := d.knownConfig(), d.trust.Load()
	if file, signed := d.configInFolder(); config.Seq == 0 || signed && file.after(config) {
		config = file // the counts are damaged, or of an older time than the file
	}
	err := d.numbers.update(func(c *counts) {
		c.ConfigEpoch, c.ConfigVersion = config.Epoch, config.Seq
		c.TrustVersion, c.TrustEpoch = max(c.TrustVersion, trust.Version), max(c.TrustEpoch, trust.Epoch)
		c.LogSize, c.LogRoot = d.log.Size, d.log.Root
		if floor := d.clock.noSooner(); !floor.IsZero() {
			c.Time = floor.Unix()
		}
	})
	if err != nil {
		d.o.Log.Error("the numbers of the folder cannot be written", slog.Any("err", err))
	}
}

// use talks to the server that a trust bundle vouches for.
func (d *Device) use(t *token.Trust) error {
	tr, err := d.roadTo(t)
	if err != nil {
		return err
	}
	d.trust.Store(t)
	if old := d.road.Swap(tr); old != nil {
		old.CloseIdleConnections()
		return nil
	}
	d.client, d.tokens = d.speaker(d.signer.Load)
	d.tokens.Around = d.inOrder
	if d.o.Prove {
		d.tokens.Prove()
	}
	return nil
}

// speaker asks the server as the holder of a key, at the right time.
func (d *Device) speaker(signer func() *jose.Signer) (*rest.Client, *rest.Tokens) {
	tokens := &rest.Tokens{
		Client: rest.New(d.id.HTTPS, &d.road, nil), Path: "/oauth/token", Now: d.reckon,
		Sign:   func() (string, error) { return d.assertion(signer(), token.AssertionLife) },
		Prover: d.prover(signer), Around: d.onTime,
	}
	return rest.New(d.id.HTTPS, &d.road, tokens), tokens
}

// prover proves the device's key with requests, where the server wants it.
func (d *Device) prover(signer func() *jose.Signer) *rest.Prover {
	return &rest.Prover{Sign: func(method, uri, nonce, access string) (string, error) {
		return token.SignDPoP(signer(), method, uri, nonce, access, d.reckon())
	}}
}

// inOrder gets a token with the key that counts, at the right time.
func (d *Device) inOrder(ctx context.Context, get func(context.Context) error) error {
	if lostTrust(d.trust.Load()) {
		if err := d.renewTrust(ctx); err != nil {
			return err
		}
	}
	if err := d.settleKeys(ctx); err != nil { // it goes on as who it was, and tries again later
		d.o.Log.Info("keys not changed yet", slog.String("code", string(watchword.CodeOf(err))), slog.Any("err", err))
	}
	return d.onTime(ctx, get)
}

// Enrolled reports whether the device has an identity.
func (d *Device) Enrolled() bool { return d.id != nil }

// ID returns the device's id; empty before it is enrolled.
func (d *Device) ID() watchword.SubjectID {
	if d.id == nil {
		return ""
	}
	return d.id.ID
}

// Server returns the server's URL; empty before the device is enrolled.
func (d *Device) Server() string {
	if d.id == nil {
		return ""
	}
	return d.id.HTTPS
}

// MQTT returns HOST:PORT of the server's MQTT over TLS; empty where it has none,
// and before the device is enrolled.
func (d *Device) MQTT() string {
	if d.id == nil {
		return ""
	}
	return d.id.MQTTS
}

// Keys returns the public keys, to sign and to seal; nil before they are made.
func (d *Device) Keys() (sign, seal *jose.PublicKey) {
	signer, opener := d.signer.Load(), d.opener.Load()
	if signer == nil || opener == nil {
		return nil, nil
	}
	return signer.Public(), opener.Public()
}

// CAFile returns the path of the file that other clients may trust the server by.
func (d *Device) CAFile() string { return d.path(caFile) }

// Trust returns the trust bundle that the device goes by; nil before it is enrolled, and
// where the folder's is lost until the server gave the next one.
func (d *Device) Trust() *token.Trust {
	t := d.trust.Load()
	if t != nil && lostTrust(t) {
		return nil
	}
	return t
}

// Position returns the number of the last command that was begun.
func (d *Device) Position() (epoch, seq int64) {
	d.memory.Lock()
	defer d.memory.Unlock()
	if d.journal == nil {
		return 0, 0
	}
	return d.journal.last.Epoch, d.journal.last.Seq
}

// Lost says why the memory of commands is lost, so that only commands that carry this device's
// nonce are obeyed until one came; empty where it is not.
func (d *Device) Lost() string {
	d.memory.Lock()
	defer d.memory.Unlock()
	switch {
	case d.journal == nil || !d.journal.lost:
		return ""
	case d.journal.why == "":
		return "it was lost before the folder was opened"
	}
	return d.journal.why
}

// Assertion signs a client assertion, good for life, at most 300 s: for clients
// that fetch tokens themselves. Code: conflict before the device is enrolled.
func (d *Device) Assertion(life time.Duration) (string, error) {
	if d.id == nil {
		return "", errNotEnrolled()
	}
	return d.assertion(d.signer.Load(), life)
}

func (d *Device) assertion(s *jose.Signer, life time.Duration) (string, error) {
	return token.SignAssertion(s, d.id.ID, d.id.Issuer, d.reckon(), life)
}

// Token returns an access token that is good for a while yet.
func (d *Device) Token(ctx context.Context) (string, error) {
	if d.id == nil {
		return "", errNotEnrolled()
	}
	return d.tokens.Get(ctx)
}

// NewToken returns an access token that was never shown before.
func (d *Device) NewToken(ctx context.Context) (string, error) {
	if d.id == nil {
		return "", errNotEnrolled()
	}
	return d.tokens.Renew(ctx)
}

func errNotEnrolled() error {
	return watchword.Refuse(watchword.Conflict, "the device has not enrolled yet")
}

// Close gives the folder up. It does not wait for functions that run: end the context of
// [Device.Run], and wait for it, before. The receipt of one that runs on cannot be written, and is
// "interrupted" at the next start.
func (d *Device) Close() error {
	d.memory.Lock()
	defer d.memory.Unlock()
	var errs []error
	if d.journal != nil {
		errs = append(errs, d.journal.close())
		// What still runs beside finds a journal that takes nothing.
		d.journal = &journal{last: d.journal.last, torn: watchword.Refuse(watchword.Unavailable, "the device is closed")}
	}
	if d.client != nil {
		d.client.CloseIdleConnections()
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	return errors.Join(errs...)
}

// OpenShared opens the folder of an enrolled device beside a process that runs
// it: for tokens, assertions and publishing. It neither enrolls nor obeys.
func OpenShared(dir string, o Options) (*Device, error) {
	o.fill()
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	d := &Device{dir: dir, o: o}
	return d, d.load()
}
