package server

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"filippo.io/age"
	"github.com/pelletier/go-toml/v2"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/acme"
	"github.com/watchword-iot/watchword/server/backup"
	"github.com/watchword-iot/watchword/server/internal/localsocket"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/sqlite"
	"github.com/watchword-iot/watchword/token"
)

// derivedFiles are the files of a data folder that are in no backup: each start makes them anew, or the database in the backup has
// what is in them.
var derivedFiles = []string{
	databaseFile + "-wal", databaseFile + "-shm", serverFile, lockFile, backupsFile, runningFile, localsocket.Name, acmeFolder + "/" + acme.AttemptsFile,
}

// writeBackup writes an archive of a data folder to w, whether a server runs on it or not, and changes nothing.
//
// All that can change together is in the database, which is read in one transaction: keys and their rotation, revocations, the log.
// The key-encryption key never changes, and the checkpoint in the archive is that of the same transaction, since the file beside the
// database may be newer than it.
//
// Codes: config_invalid without a recipient or for a certificate that does not fit its key; key_missing, also before the root signed a
// bundle that names the log key; key_unwrap, key_damaged;
// log_invalid where the folder's log lacks entries; unavailable.
func writeBackup(ctx context.Context, w io.Writer, cfg Config, o Options, recipients []age.Recipient) (m backup.Manifest, err error) {
	// The file is read before the database, so that it cannot be newer.
	saved, err := durable.ReadTrusted(filepath.Join(cfg.Data, checkpointFile), ledger.MaxNote)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return m, err
	}
	db, err := sqlite.OpenSnapshot(ctx, filepath.Join(cfg.Data, databaseFile))
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := describeSnapshot(ctx, db, &m); err != nil {
		return m, err
	}
	m.Version = o.Version
	if err := checkSaved(ctx, db, saved); err != nil {
		return m, err
	}
	small, err := smallMembers(ctx, db, cfg, &m)
	if err != nil {
		return m, err
	}
	logKey, err := signerOfBackup(ctx, db, cfg, o.Now(), &m)
	if err != nil {
		return m, err
	}
	a, err := backup.NewWriter(w, o.Now(), recipients)
	if err != nil {
		return m, err
	}
	for _, f := range small {
		if err := a.AddBytes(f.name, f.content); err != nil {
			return m, err
		}
	}
	size, err := db.Size(ctx)
	if err != nil {
		return m, err
	}
	if err := a.AddFunc(backup.Database, size, func(w io.Writer) error { return db.WriteDatabase(ctx, w) }); err != nil {
		return m, err
	}
	return a.Finish(m, logKey)
}

// describeSnapshot fills in what a manifest says of the database.
func describeSnapshot(ctx context.Context, db *sqlite.Snapshot, m *backup.Manifest) error {
	instance, err := db.Instance(ctx)
	if err != nil {
		return err
	}
	m.Issuer, m.Epoch = instance.Issuer, instance.Epoch
	if m.Schema, err = db.Schema(ctx); err != nil {
		return err
	}
	if m.Tables, err = db.TableCounts(ctx); err != nil {
		return err
	}
	tree, err := db.Tree(ctx)
	if err != nil {
		return err
	}
	m.Log = backup.NewLog(instance.Origin(), tree.Size(), tree.Root())
	sealed, err := db.ServerKeys(ctx)
	if err != nil {
		return err
	}
	for _, k := range sealed {
		if k.Role != keyring.Root || k.State != keyring.Active {
			continue
		}
		root, err := jose.ParseJWK(k.Public, jose.ForSigning)
		if err != nil {
			return watchword.Wrap(err, watchword.KeyDamaged, "the root key %s is damaged", k.ID)
		}
		m.Root = token.TrustPin(root)
	}
	return nil
}

// checkSaved refuses a log that does not extend the checkpoint beside the database: a backup of it would replace good ones. Code:
// log_invalid.
func checkSaved(ctx context.Context, db *sqlite.Snapshot, saved []byte) error {
	if saved == nil {
		return nil
	}
	keys, err := logKeys(ctx, &db.LogFile)
	if err != nil {
		return err
	}
	c, err := ledger.VerifyCheckpoint(saved, keys...)
	if err != nil {
		return err
	}
	tree, err := db.Tree(ctx)
	if err == nil && tree.Size() < c.Size {
		return watchword.Refuse(watchword.LogInvalid, "the log has %d entries, and %s was signed for %d: entries are missing; this folder must not replace an earlier backup", tree.Size(), checkpointFile, c.Size)
	}
	if err == nil {
		tree, err = db.TreeAt(ctx, c.Size)
	}
	if err == nil && tree.Root() != c.Root {
		err = watchword.Refuse(watchword.LogInvalid, "the log's entries up to %d do not match %s: entries were changed; this folder must not replace an earlier backup", c.Size, checkpointFile)
	}
	return err
}

type smallMember struct {
	name    string
	content []byte
}

// smallMembers reads all members but the database, and notes in the manifest what is not there.
func smallMembers(ctx context.Context, db *sqlite.Snapshot, cfg Config, m *backup.Manifest) (out []smallMember, err error) {
	kek, err := durable.ReadPrivate(kekPath(cfg))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, watchword.Wrap(err, watchword.KeyMissing, "the key-encryption key %s does not exist: a backup without it could not be opened", kekPath(cfg))
	}
	if err != nil {
		return nil, err
	}
	out = append(out, smallMember{backup.KEK, kek})
	for _, f := range []struct{ name, path string }{
		{backup.OperatorKey, filepath.Join(cfg.Data, operatorFile)}, {backup.CA, filepath.Join(cfg.Data, caFile)},
	} {
		b, err := durable.ReadTrusted(f.path, durable.MaxPrivate)
		if errors.Is(err, fs.ErrNotExist) {
			m.Missing = append(m.Missing, f.name)
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, smallMember{f.name, b})
	}
	for _, f := range []struct{ name, file string }{{backup.ACMEAccount, acme.AccountFile}, {backup.ACMECert, acme.CertificateFile}} {
		b, err := durable.ReadPrivate(filepath.Join(cfg.Data, acmeFolder, f.file))
		if errors.Is(err, fs.ErrNotExist) { // no account yet, or no server.acme_domain
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, smallMember{f.name, b})
	}
	checkpoints, err := db.LastCheckpoint(ctx)
	if err != nil {
		return nil, err
	}
	if checkpoints.Note != nil {
		out = append(out, smallMember{backup.Checkpoint, checkpoints.Note})
	} else {
		m.Missing = append(m.Missing, backup.Checkpoint)
	}
	if cfg.Text != nil {
		out = append(out, smallMember{backup.Config, cfg.Text})
	}
	effective, err := toml.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	out = append(out, smallMember{backup.Effective, effective})
	if cfg.Server.TLSCert != "" {
		pair, err := readCertificate(cfg)
		if err != nil {
			return nil, err
		}
		out = append(out, pair...)
	}
	m.LeftOut, err = leftOut(cfg.Data)
	return out, err
}

// signerOfBackup returns the active log key, which signs the backup, and puts the trust bundle that introduces it into the manifest: the
// newest that names it and the active root. Codes: key_unwrap, key_damaged; key_missing if no bundle names the key.
func signerOfBackup(ctx context.Context, db *sqlite.Snapshot, cfg Config, now time.Time, m *backup.Manifest) (*jose.Signer, error) {
	kek, err := keyring.OpenKEK(kekPath(cfg), false)
	if err != nil {
		return nil, err
	}
	sealed, err := db.ServerKeys(ctx)
	if err != nil {
		return nil, err
	}
	logKey, err := keyring.OpenLogKey(kek, sealed)
	if err != nil {
		return nil, err
	}
	bundles, err := db.Bundles(ctx)
	if err != nil {
		return nil, err
	}
	for _, b := range slices.Backward(bundles) {
		t, err := token.ReadTrust(string(b.JWS))
		if err != nil {
			return nil, watchword.Wrap(err, watchword.KeyDamaged, "the trust bundle of version %s is damaged", b.Version)
		}
		if !slices.ContainsFunc(t.Log, func(k *jose.PublicKey) bool { return k.ID() == logKey.Public().ID() }) ||
			!slices.ContainsFunc(t.Roots, func(k *jose.PublicKey) bool { return token.TrustPin(k) == m.Root }) {
			continue
		}
		m.Trust = string(b.JWS)
		if !b.Starts.After(now) { // else it was signed for a later time: an older one comes first
			break
		}
	}
	if m.Trust == "" {
		return nil, watchword.Refuse(watchword.KeyMissing, "no trust bundle names the log key %s, so a backup that it signs could not be verified: after a restore with an offline root, import the bundle that the root signed first", logKey.Public().ID())
	}
	return logKey, nil
}

// readCertificate reads server.tls_cert and server.tls_key, which another program may be renewing. Code: config_invalid.
func readCertificate(cfg Config) ([]smallMember, error) {
	cert, err := durable.ReadTrusted(cfg.Server.TLSCert, durable.MaxPrivate)
	if err != nil {
		return nil, err
	}
	key, err := durable.ReadTrusted(cfg.Server.TLSKey, durable.MaxPrivate) // a group may read it, as certFiles.read says
	if err != nil {
		return nil, err
	}
	if _, err := tls.X509KeyPair(cert, key); err != nil {
		return nil, watchword.Wrap(err, watchword.ConfigInvalid, "server.tls_cert and server.tls_key do not belong together; if they are being renewed, try again")
	}
	return []smallMember{{backup.TLSCertificate, cert}, {backup.TLSKey, key}}, nil
}

// leftOut lists the files of a data folder that no backup has, as paths below it.
func leftOut(dir string) (out []string, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // a temporary file of another process
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		if durable.IsTemporary(name) { // the server is writing a file
			return nil
		}
		if !slices.Contains(derivedFiles, name) && !sqlite.IsUpgradeCopy(databaseFile, name) && !backup.IsMember(backup.DataFolder+"/"+name) && len(out) < 100 {
			out = append(out, name)
		}
		return nil
	})
	return out, err
}

// BackupFile is a backup that was made.
type BackupFile struct {
	File     string          `json:"file"`
	Size     int64           `json:"size"`
	SHA256   string          `json:"sha256"`
	Took     time.Duration   `json:"-"`
	Manifest backup.Manifest `json:"manifest"`
}

// BackupKey says who can open a backup: recipients, as public keys of age, or else a passphrase. With neither, those of
// backup.recipients in the configuration.
type BackupKey struct {
	Recipients []string         `json:"recipients,omitempty"`
	Passphrase watchword.Secret `json:"-"`
}

func (k BackupKey) recipients(cfg Config) ([]age.Recipient, error) {
	switch {
	case k.Passphrase != "" && len(k.Recipients) > 0:
		return nil, watchword.Refuse(watchword.BadRequest, "a backup must have either recipients or a passphrase")
	case k.Passphrase != "":
		r, err := backup.PassphraseRecipient(k.Passphrase, passphraseWork)
		return []age.Recipient{r}, err
	case len(k.Recipients) > 0:
		return backup.ParseRecipients(k.Recipients)
	}
	return backup.ParseRecipients(cfg.Backup.Recipients)
}

// passphraseWork is the work factor of passphrases; 0 means that of age. Tests lower it.
var passphraseWork = 0
