package server

import (
	"bytes"
	"context"
	"log/slog"
	"sync"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/session"
)

// startKeyRotation starts the rotation of keys and registers the receivers of its changes.
func (s *Server) startKeyRotation(ctx context.Context) (err error) {
	s.rotator, err = keyring.NewRotator(ctx, s.store, s.keys, s.live, keyring.RotatorOptions{
		Schedule:   keyring.Schedule{RotateEvery: s.cfg.Keys.RotateEvery.Duration, Overlap: s.cfg.Keys.Overlap.Duration},
		BundleInfo: s.trustMembers(), Log: s.o.Log,
	}, s.o.Now())
	if err != nil {
		return err
	}
	return s.keys.CheckBundle(s.o.Now())
}

// ImportBundles imports trust bundles that an offline root signed into the data folder of a server that does not run. Codes:
// folder_in_use, folder_newer, and those of [keyring.Rotator.ImportBundles].
func ImportBundles(ctx context.Context, cfg Config, bundles []string, o Options) error {
	return withRotator(ctx, cfg, o, func(k *keyring.Rotator, s *Server) error { return k.ImportBundles(ctx, operator(), bundles, s.o.Now()) })
}

// trustMembers returns the members of the trust bundle beside the keys.
func (s *Server) trustMembers() keyring.BundleInfo {
	n := keyring.BundleInfo{
		WebPKI: s.cfg.Server.publicCertificate(), TLSProxy: s.cfg.Server.ProxyCertificate, Quorum: s.quorum(), MQTTS: s.publicMQTTS,
	}
	for _, w := range s.witnesses {
		n.Witnesses = append(n.Witnesses, w.Key.String())
	}
	return n
}

// quorum returns how many witnesses must have cosigned a checkpoint before devices act on it: a
// majority, unless configured.
func (s *Server) quorum() int {
	if n := len(s.witnesses); s.cfg.Audit.Quorum == 0 && n > 0 {
		return n/2 + 1
	}
	return s.cfg.Audit.Quorum
}

// trust makes a change of the server's keys known outside of it: the file of its own authorities is written anew, and
// connected clients are asked to fetch the new trust bundle.
type trust struct {
	s *Server

	mu     sync.Mutex
	ca     []byte // that was written last
	bundle string // of the last notice to clients
	url    string // in server.json
}

// HandleChange is the last receiver: the bundle of the notice must be available to clients that fetch it then.
func (t *trust) HandleChange(ctx context.Context, c watchword.Change) error {
	if c.Kind != watchword.ServerKeysChanged {
		return nil
	}
	s := t.s
	t.mu.Lock()
	defer t.mu.Unlock()
	if ca := s.keys.CAPEM(); s.info.CAFile != "" && !bytes.Equal(ca, t.ca) {
		if err := durable.WriteFile(s.info.CAFile, ca, 0o644); err != nil {
			s.o.Log.ErrorContext(ctx, "the authority's file was not written", slog.String("file", s.info.CAFile), slog.Any("err", err))
		} else {
			t.ca = ca
		}
	}
	if url := s.url(); url != t.url {
		t.url = url
		if err := s.writePlace(url); err != nil {
			s.o.Log.ErrorContext(ctx, "server.json was not written: commands on this machine use the former address until the next start", slog.Any("err", err))
		}
	}
	if bundle := s.keys.Bundle(s.o.Now()); bundle != t.bundle {
		t.bundle = bundle
		s.broker.TrustChanged()
	}
	return nil
}

// TakeRootOffline moves the root's private key from a data folder, whose server must not run, to a
// new file (mode 0600).
//
// Codes: folder_in_use, folder_newer, key_unwrap and others of the key, conflict if the file exists.
func TakeRootOffline(ctx context.Context, cfg Config, file string, o Options) error {
	return withRotator(ctx, cfg, o, func(k *keyring.Rotator, s *Server) error {
		return k.ExportRoot(ctx, operator(), func(jwk []byte) error { return durable.Create(file, jwk, 0o600) }, s.o.Now())
	})
}

// BringRootOnline copies the root's private key from a file back into the data folder. The file
// remains.
func BringRootOnline(ctx context.Context, cfg Config, file string, o Options) error {
	jwk, err := durable.ReadPrivate(file)
	if err != nil {
		return err
	}
	return withRotator(ctx, cfg, o, func(k *keyring.Rotator, s *Server) error {
		return k.ImportRoot(ctx, operator(), jwk, s.o.Now())
	})
}

// operator is the actor of commands that are run on the server's machine with access to the data
// folder.
func operator() audit.Actor {
	return audit.Actor{Tenant: watchword.DefaultTenant, Subject: FirstOperator, Versions: watchword.AuthorityVersions{Local: true}}
}

// withRotator opens a data folder without serving it.
func withRotator(ctx context.Context, cfg Config, o Options, f func(*keyring.Rotator, *Server) error) (err error) {
	if err := checkStarted(cfg.Data); err != nil {
		return err
	}
	s := forFolder(cfg, o)
	defer s.close()
	if s.lock, err = openData(cfg.Data); err != nil {
		return err
	}
	if err = s.openStore(ctx); err != nil {
		return err
	}
	if err = s.openRing(ctx); err != nil {
		return err
	}
	live := session.NewLive()
	live.Register(s.keys)
	k, err := keyring.OpenRotator(s.store, s.keys, live, s.o.Now())
	if err != nil {
		return err
	}
	if err := f(k, s); err != nil {
		return err
	}
	s.signStoppedLog(ctx)
	return nil
}
