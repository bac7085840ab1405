package server

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/backup"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/registry"
	"github.com/watchword-iot/watchword/server/sqlite"
	"github.com/watchword-iot/watchword/token"
)

// BackupCheck is what a backup that was verified has in it.
type BackupCheck struct {
	Manifest backup.Manifest
	Size     int64 // of the file, in bytes
	Took     time.Duration
	Keys     int      // server keys whose private parts were decrypted
	Bundles  int      // trust bundles whose signatures were verified
	Warnings []string // what a restore must look at
}

// VerifyBackup restores a backup into a new folder below scratch (empty: the system's folder for temporary files), opens it as a server
// would, without serving, and removes the folder again, whatever it finds. It checks the signature, every file's hash, the database, the
// whole audit log, that the key-encryption key decrypts the server's keys, the trust bundles and the policies. root is the pin of the
// root that the server must have; empty: any.
//
// Codes: backup_invalid; bad_request for a root that is no pin; pin_mismatch for another root; log_invalid, key_unwrap, key_damaged or policy_invalid for a backup that was damaged before it was made;
// not_found, unavailable.
func VerifyBackup(ctx context.Context, file string, identities []age.Identity, root, scratch string, o Options) (out BackupCheck, err error) {
	start := time.Now()
	if err := checkPin(root); err != nil {
		return out, err
	}
	f, err := os.Open(file)
	if err != nil {
		return out, watchword.Wrap(err, watchword.NotFound, "the backup %s cannot be read", file)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return out, err
	}
	out.Size = info.Size()
	dir, err := os.MkdirTemp(scratch, "watchword-verify-") // mode 0700
	if err != nil {
		return out, watchword.Wrap(err, watchword.Unavailable, "no folder to restore into can be made; --scratch names another place")
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if out.Manifest, err = backup.Extract(&contextReader{ctx, f}, identities, root, dir); err != nil {
		return out, err
	}
	if err := checkRestored(ctx, dir, o, &out); err != nil {
		return out, err
	}
	out.Took = time.Since(start)
	return out, nil
}

// checkPin refuses a text that is not the pin of a root key ([token.TrustPin]) nor empty. Code: bad_request.
func checkPin(pin string) error {
	if b, err := base64.RawURLEncoding.Strict().DecodeString(pin); pin != "" && (err != nil || len(b) != sha256.Size) {
		return watchword.RefuseField("--root", "must be the pin of a root key, 43 characters of base64url, as watchword trust pin prints it")
	}
	return nil
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	f   *os.File
}

func (r *contextReader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, watchword.Wrap(err, watchword.Unavailable, "interrupted")
	}
	return r.f.Read(b)
}

// checkRestored checks the folder that [backup.Extract] wrote.
func checkRestored(ctx context.Context, dir string, o Options, out *BackupCheck) error {
	data := filepath.Join(dir, backup.DataFolder)
	if err := checkRestoredDatabase(ctx, filepath.Join(data, databaseFile), out.Manifest); err != nil {
		return err
	}
	if _, err := VerifyLog(ctx, data, nil); err != nil {
		return err
	}
	if err := checkRestoredConfig(dir, out); err != nil {
		return err
	}
	return checkStarts(ctx, data, o, out)
}

// checkStarts opens a data folder as a start would, and closes it again.
func checkStarts(ctx context.Context, data string, o Options, out *BackupCheck) error {
	s := forFolder(Config{Data: data}, o)
	defer s.close()
	return s.checkRestored(ctx, out)
}

// checkRestoredDatabase compares the database with the manifest, before anything changes it. Code: backup_invalid.
func checkRestoredDatabase(ctx context.Context, path string, want backup.Manifest) (err error) {
	if own, err := sqlite.SchemaVersion(); err != nil {
		return err
	} else if want.Schema > own {
		return watchword.Refuse(watchword.BackupInvalid, "the backup is of version %s with schema %d, and this version has schema %d: use that version or a newer one", want.Version, want.Schema, own)
	}
	db, err := sqlite.OpenSnapshot(ctx, path)
	if err != nil {
		return watchword.Wrap(err, watchword.BackupInvalid, "the database in the backup cannot be opened: %s", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if damage, err := db.Damage(ctx); err != nil || damage != "ok" {
		return watchword.Wrap(err, watchword.BackupInvalid, "the database in the backup is damaged: %.200s", damage)
	}
	var is backup.Manifest
	if err := describeSnapshot(ctx, db, &is); err != nil {
		return err
	}
	if is.Schema != want.Schema || is.Issuer != want.Issuer || is.Epoch != want.Epoch || is.Root != want.Root || is.Log != want.Log {
		return watchword.Refuse(watchword.BackupInvalid, "the database is not the one of the manifest: its log has %d entries, not %d", is.Log.Size, want.Log.Size)
	}
	for _, name := range slices.Sorted(maps.Keys(is.Tables)) {
		if is.Tables[name] != want.Tables[name] {
			return watchword.Refuse(watchword.BackupInvalid, "the table %s has %d rows, and had %d", name, is.Tables[name], want.Tables[name])
		}
	}
	if len(is.Tables) != len(want.Tables) {
		return watchword.Refuse(watchword.BackupInvalid, "the database has %d tables, and had %d", len(is.Tables), len(want.Tables))
	}
	return nil
}

// checkRestoredConfig reads the configuration in the backup. A mistake in it is a warning: it can be corrected after a restore.
func checkRestoredConfig(dir string, out *BackupCheck) error {
	const name = backup.Effective
	text, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
	if err != nil {
		return err
	}
	c := Defaults()
	c.Data = dir
	err = decode(name, text, &c)
	if err == nil {
		err = c.Check()
	}
	if err != nil {
		out.Warnings = append(out.Warnings, "this version refuses the configuration: "+err.Error())
	}
	if err := out.Manifest.CheckTimes(); err != nil {
		out.Warnings = append(out.Warnings, err.Error())
	}
	if len(out.Manifest.Missing) > 0 {
		out.Warnings = append(out.Warnings, "these files were not there: "+strings.Join(out.Manifest.Missing, ", "))
	}
	if len(out.Manifest.LeftOut) > 0 {
		out.Warnings = append(out.Warnings, "these files of the data folder are in no backup: "+strings.Join(out.Manifest.LeftOut, ", "))
	}
	return nil
}

// checkRestored opens the folder as a start would: the tables are brought up to date, keys decrypted, bundles and policies read.
func (s *Server) checkRestored(ctx context.Context, out *BackupCheck) (err error) {
	if s.lock, err = openData(s.cfg.Data); err != nil {
		return err
	}
	if err := s.openStore(ctx); err != nil {
		return err
	}
	if err := s.openRing(ctx); err != nil {
		return err
	}
	sealed, err := s.store.ServerKeys(ctx)
	if err != nil {
		return err
	}
	for _, k := range sealed {
		if k.State.Valid() && len(k.Private) > 0 && k.Role != keyring.Data { // the ring has opened each
			out.Keys++
		}
	}
	if err := s.startLogSigning(ctx); err != nil {
		return err
	}
	if out.Bundles, err = s.verifyBundles(ctx); err != nil {
		return err
	}
	directory := registry.NewDirectory(s.store)
	for _, t := range s.o.tenants() {
		if _, err := directory.Policies(ctx, t); err != nil {
			return err
		}
	}
	key, err := durable.ReadPrivate(filepath.Join(s.cfg.Data, operatorFile))
	if err == nil {
		_, err = jose.ParsePrivateJWK(key, jose.ForSigning)
	} else if errors.Is(err, os.ErrNotExist) {
		err = nil // the manifest says so
	}
	return err
}

// verifyBundles verifies the stored trust bundles, and returns their number. Code: key_damaged.
func (s *Server) verifyBundles(ctx context.Context) (int, error) {
	bundles, err := s.store.Bundles(ctx)
	if err != nil {
		return 0, err
	}
	for _, b := range bundles {
		if err := verifyStoredBundle(string(b.JWS)); err != nil {
			return 0, watchword.Wrap(err, watchword.KeyDamaged, "the trust bundle of version %s is not signed by the roots that it names", b.Version)
		}
	}
	return len(bundles), nil
}

// verifyStoredBundle verifies a bundle with each root that it names.
func verifyStoredBundle(raw string) error {
	t, err := token.ReadTrust(raw)
	if err != nil {
		return err
	}
	for _, root := range t.Roots {
		if _, err := token.VerifyTrust(raw, token.TrustPin(root), time.Time{}); err != nil {
			return err
		}
	}
	return nil
}
