package server

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/keyring"
	"github.com/watchword-iot/watchword/sqlite"
)

// startKeyRotation begins to turn the keys, and says who must know when they have turned.
func (s *Server) startKeyRotation(ctx context.Context) (err error) {
	s.rotator, err = keyring.NewRotator(ctx, s.store, s.keys, keyring.RotatorOptions{
		Schedule:   keyring.Schedule{RotateEvery: s.cfg.Keys.RotateEvery.Duration, Overlap: s.cfg.Keys.Overlap.Duration},
		BundleInfo: s.trustMembers(), OnChange: s.keysRotated, Log: s.o.Log,
	}, s.o.Now())
	return err
}

// trustMembers is what the trust bundle says beside the keys.
func (s *Server) trustMembers() keyring.BundleInfo {
	n := keyring.BundleInfo{WebPKI: s.cfg.Server.TLSCert != "", Quorum: s.quorum()}
	for _, w := range s.witnesses {
		n.Witnesses = append(n.Witnesses, w.Key.String())
	}
	return n
}

// quorum is how many witnesses must have signed a checkpoint that a device obeys by:
// most of them, unless the configuration says otherwise.
func (s *Server) quorum() int {
	if n := len(s.witnesses); s.cfg.Audit.Quorum == 0 && n > 0 {
		return n/2 + 1
	}
	return s.cfg.Audit.Quorum
}

// keysRotated makes a change of keys felt: what a revoked issuer key signed ends
// on every live session, and connected devices are asked to fetch the new bundle.
func (s *Server) keysRotated(ctx context.Context, n keyring.ChangeNotice) {
	for _, k := range n.Revoked {
		if k.Role == keyring.Issuer {
			s.guard.IssuerRevoked(ctx, k.ID)
		}
	}
	if n.CAs && s.info.CAFile != "" {
		if err := durable.WriteFile(s.info.CAFile, s.keys.CAPEM(), 0o644); err != nil {
			s.o.Log.ErrorContext(ctx, "the authority's file was not written", slog.String("file", s.info.CAFile), slog.Any("err", err))
		}
	}
	if n.Bundle {
		s.broker.TrustChanged()
	}
}

// TakeRootOffline moves the root's private key from the data folder, on which no server
// may run, to a file that must not exist yet (0600).
//
// Codes: folder_in_use, key_unwrap and the like, conflict.
func TakeRootOffline(ctx context.Context, cfg Config, file string, o Options) error {
	return withRotator(ctx, cfg, o, func(k *keyring.Rotator, s *Server) error {
		return k.ExportRoot(ctx, operator(), func(jwk []byte) error { return durable.Create(file, jwk, 0o600) }, s.o.Now())
	})
}

// BringRootOnline puts the root's private key back from a file, which stays.
func BringRootOnline(ctx context.Context, cfg Config, file string, o Options) error {
	jwk, err := durable.ReadPrivate(file)
	if err != nil {
		return err
	}
	return withRotator(ctx, cfg, o, func(k *keyring.Rotator, s *Server) error {
		return k.ImportRoot(ctx, operator(), jwk, s.o.Now())
	})
}

// operator is who acts on the machine itself, with the data folder in hand.
func operator() audit.Actor {
	return audit.Actor{Tenant: watchword.DefaultTenant, Subject: FirstOperator, Versions: watchword.AuthorityVersions{Local: true}}
}

// withRotator opens a data folder without serving it.
func withRotator(ctx context.Context, cfg Config, o Options, f func(*keyring.Rotator, *Server) error) (err error) {
	if _, err := os.Stat(filepath.Join(cfg.Data, databaseFile)); err != nil {
		return watchword.Wrap(err, watchword.NotFound, "no server was ever started on %s", cfg.Data)
	}
	s := &Server{cfg: cfg, o: o.filled()}
	defer s.close()
	if s.lock, err = openData(cfg.Data); err != nil {
		return err
	}
	if s.store, err = sqlite.Open(ctx, filepath.Join(cfg.Data, databaseFile), sqlite.Options{}); err != nil {
		return err
	}
	if err = s.openRing(ctx); err != nil {
		return err
	}
	k, err := keyring.OpenRotator(ctx, s.store, s.keys, s.o.Now())
	if err != nil {
		return err
	}
	return f(k, s)
}
