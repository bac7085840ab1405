package server

import (
	"context"
	"crypto/tls"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/watchword-iot/watchword/internal/durable"
)

// certLook is how often the files are checked: a handshake uses a new certificate at most that long
// after it was written.
const certLook = time.Second

// certFiles is a certificate and its key in files, which are read again when they change. If the
// new pair is not valid, the old one stays in use, and the process log says so.
type certFiles struct {
	cert, key string
	log       *slog.Logger
	now       func() time.Time

	mu      sync.Mutex
	pair    *tls.Certificate
	looked  time.Time
	written [2]time.Time
	bad     [2]time.Time // modification times of the pair that could not be read
	invalid bool         // the certificate was not valid when it was looked at last
}

func openCertFiles(cert, key string, log *slog.Logger, now func() time.Time) (*certFiles, error) {
	f := &certFiles{cert: cert, key: key, log: log, now: now}
	at, err := f.times()
	if err != nil {
		return nil, err
	}
	pair, err := f.read()
	if err != nil {
		return nil, err
	}
	f.pair, f.written, f.looked = &pair, at, now()
	f.checkValidity()
	return f, nil
}

// checkValidity says in the log where the certificate is not valid now, and where it is valid again. It is called with mu held.
func (f *certFiles) checkValidity() {
	leaf := f.pair.Leaf
	invalid := f.looked.Before(leaf.NotBefore) || f.looked.After(leaf.NotAfter)
	if invalid != f.invalid {
		level, line := slog.LevelInfo, "the certificate is valid"
		if invalid {
			level, line = slog.LevelError, "the certificate is not valid now: clients will not accept it"
		}
		f.log.Log(context.Background(), level, line, slog.String("file", f.cert), slog.Time("not_before", leaf.NotBefore), slog.Time("not_after", leaf.NotAfter))
	}
	f.invalid = invalid
}

// notAfter returns when the certificate in use ends.
func (f *certFiles) notAfter() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pair.Leaf.NotAfter
}

// maxPEM is the longest certificate or key file, in bytes.
const maxPEM = 1 << 20

// read reads both files. The key may be readable by others, as where an orchestrator mounts it, but
// not writable.
func (f *certFiles) read() (tls.Certificate, error) {
	cert, err := durable.ReadTrusted(f.cert, maxPEM)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := durable.ReadTrusted(f.key, maxPEM)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(cert, key)
}

func (f *certFiles) times() (at [2]time.Time, err error) {
	for i, path := range []string{f.cert, f.key} {
		info, err := os.Stat(path)
		if err != nil {
			return at, err
		}
		at[i] = info.ModTime()
	}
	return at, nil
}

// get implements [tls.Config.GetCertificate].
func (f *certFiles) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	if now.Sub(f.looked) < certLook {
		return f.pair, nil
	}
	f.looked = now
	defer f.checkValidity()
	at, err := f.times()
	if err != nil || at == f.written || at == f.bad {
		return f.pair, nil
	}
	pair, err := f.read()
	if err != nil { // most likely in the middle of a replacement
		f.bad = at
		f.log.Warn("the new certificate is not used", slog.String("file", f.cert), slog.Any("err", err))
		return f.pair, nil
	}
	f.log.Info("certificate replaced", slog.String("file", f.cert))
	f.pair, f.written = &pair, at
	return f.pair, nil
}

// reload reads both files at once, whether or not they changed, so that it also finds a change of owner or mode. On an error the old
// pair stays in use.
func (f *certFiles) reload() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, err := f.times()
	if err != nil {
		return err
	}
	pair, err := f.read()
	if err != nil {
		f.bad = at
		return err
	}
	f.pair, f.written, f.looked = &pair, at, f.now()
	f.checkValidity()
	return nil
}

// verifyName returns an error if the certificate is not for a name.
func (f *certFiles) verifyName(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pair.Leaf.VerifyHostname(name)
}
