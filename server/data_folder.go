package server

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/acme"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/sqlite"
)

// File names in a data folder (mode 0700).
const (
	databaseFile = "watchword.db"
	// checkpointFile holds the log's last checkpoint, outside the database, so that rewriting the
	// database alone does not suffice.
	checkpointFile = "log.checkpoint"
	kekFile        = "keys/kek"
	caFile         = "tls/ca.pem"
	operatorFile   = "operator.jwk"
	serverFile     = "server.json"
	lockFile       = "LOCK"
	// backupsFile lists the backups that were made; see backupRecords.
	backupsFile = "backups.json"
	// acmeFolder has the account and the certificate of server.acme_domain; see package acme.
	acmeFolder = "acme"
)

// FirstOperator is the id of the operator that the first start creates.
const FirstOperator watchword.SubjectID = "operator"

// ServerFile is the content of server.json, by which the CLI on the same machine finds the running
// server.
type ServerFile struct {
	URL      string              `json:"url"`
	HTTPS    string              `json:"https"`
	MQTTS    string              `json:"mqtts,omitempty"`
	MQTT     string              `json:"mqtt,omitempty"`
	Issuer   string              `json:"issuer"`
	CA       string              `json:"ca,omitempty"` // path of the CA file
	PID      int                 `json:"pid"`
	Operator watchword.SubjectID `json:"operator"`
	Version  string              `json:"version"`
}

// openData creates and locks the data folder. It first checks that other users cannot write to what
// it will trust; otherwise it creates nothing. Codes: folder_in_use, key_exposed, file_untrusted,
// config_invalid.
func openData(dir string) (*os.File, error) {
	err := durable.EnsureFolder(dir, false) // the mount point of a volume may be open to others; the files in it are not
	if err == nil {
		err = checkFiles(dir)
	}
	for _, sub := range []string{filepath.Dir(kekFile), filepath.Dir(caFile)} {
		if err == nil {
			err = durable.EnsureFolder(filepath.Join(dir, sub), false)
		}
	}
	if ours, ok := errors.AsType[*watchword.Error](err); ok {
		return nil, ours
	}
	if err != nil {
		return nil, watchword.Wrap(err, watchword.ConfigInvalid, "the data folder %s cannot be created or read: %s", dir, err)
	}
	return durable.Lock(filepath.Join(dir, lockFile))
}

// forFolder returns what programs that open a data folder need of a server: of one that runs, or for an act while none does.
func forFolder(cfg Config, o Options) *Server {
	return &Server{cfg: cfg, o: o.filled(), measured: newMeasured()}
}

// openStore opens the database of the data folder, which is locked, and the clock that has its mark. Every program that opens a
// data folder to write calls it. Codes: folder_newer, unavailable; log_invalid where the last writes are lost.
func (s *Server) openStore(ctx context.Context) (err error) {
	if err := s.checkWriteAheadLog(ctx); err != nil {
		return err
	}
	if s.store, err = sqlite.Open(ctx, filepath.Join(s.cfg.Data, databaseFile), sqlite.Options{WithoutAuditLog: s.o.WithoutAuditLog, Now: s.o.Now, Written: func(took time.Duration) { s.measured.storeWait.Observe(took.Seconds()) }}); err != nil {
		return s.withBackup(ctx, err)
	}
	if err := s.markRunning(); err != nil {
		return err
	}
	if u := s.store.Upgrade(); u != nil {
		s.logUpgrade(ctx, u)
	}
	return s.openClock(ctx)
}

// initializeIfNew creates keys, store and first operator if there are none.
func initializeIfNew(ctx context.Context, cfg Config, st keyring.Store, clock keyring.Clock, now time.Time) (first bool, err error) {
	_, err = st.Instance(ctx)
	if watchword.CodeOf(err) != watchword.NotFound {
		return false, err
	}
	kek, err := keyring.OpenKEK(kekPath(cfg), cfg.Keys.KEKFile == "")
	if err != nil {
		return false, err
	}
	operator, err := operatorKey(filepath.Join(cfg.Data, operatorFile))
	if err != nil {
		return false, err
	}
	pub := operator.Public()
	return true, keyring.Initialize(ctx, st, keyring.InitOptions{
		Issuer: cfg.PublicURL(), KEK: kek, Now: now, Clock: clock,
		Operator: watchword.Subject{
			Tenant: watchword.DefaultTenant, ID: FirstOperator, Kind: watchword.Operator, State: watchword.Active,
			Role: policy.RoleOwner, Version: 1, Incarnation: 1, Created: now, Changed: now,
			Keys: []watchword.Key{{ID: pub.ID(), Purpose: watchword.Sign, JWK: pub.JWK(), State: watchword.KeyActive, Added: now}},
		},
	})
}

func kekPath(cfg Config) string {
	if cfg.Keys.KEKFile != "" {
		return cfg.Keys.KEKFile
	}
	return filepath.Join(cfg.Data, kekFile)
}

// operatorKey reads or creates the first operator's key. The file is durable before the store knows
// the key, so after a crash in between the next start uses it.
func operatorKey(path string) (*jose.PrivateKey, error) {
	b, err := durable.ReadPrivate(path)
	if err == nil {
		return jose.ParsePrivateJWK(b, jose.ForSigning)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	k, err := jose.GenerateKey("P-256")
	if err != nil {
		return nil, err
	}
	return k, durable.WriteFile(path, append(k.JWK(), '\n'), 0o600)
}

// checkFiles refuses a data folder whose private files others can read, or whose trusted files
// others can write. The database is private where others can enter the folder. Codes: key_exposed, file_untrusted.
func checkFiles(dir string) error {
	for _, sub := range []string{filepath.Dir(kekFile), filepath.Dir(caFile), acmeFolder} {
		if err := durable.CheckFolder(filepath.Join(dir, sub), false); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, name := range []string{operatorFile, kekFile, acmeFolder + "/" + acme.AccountFile, acmeFolder + "/" + acme.CertificateFile} {
		if _, err := durable.ReadPrivate(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	check := durable.CheckFile
	if watchword.CodeOf(durable.CheckFolder(dir, true)) == watchword.KeyExposed {
		check = durable.CheckPrivate
	}
	for _, name := range []string{databaseFile, databaseFile + "-wal", databaseFile + "-shm", backupsFile} {
		if err := check(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, name := range []string{checkpointFile, serverFile, caFile, lockFile, runningFile} {
		if err := durable.CheckFile(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func writeServerFile(dir string, p ServerFile) error {
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, serverFile), append(b, '\n'), 0o600)
}
