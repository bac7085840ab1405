package server

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/sqlite"
	"github.com/watchword-iot/watchword/token"
)

// IsData reports whether dir is a data folder.
func IsData(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, databaseFile))
	return err == nil
}

// checkStarted refuses a data folder without a database. Code: not_found; the error of the system where the folder cannot be read.
func checkStarted(dir string) error {
	_, err := os.Stat(filepath.Join(dir, databaseFile))
	if errors.Is(err, fs.ErrNotExist) {
		return watchword.Wrap(err, watchword.NotFound, "no server was started with the data folder %s yet", dir)
	}
	return err
}

// VerifyLog verifies the log of a data folder, whether a server runs on it or not. keys returns the log's keys by its name;
// nil: the keys that the folder itself names, which any user that can write to the folder can replace. Codes: log_invalid,
// not_found, folder_newer, unavailable.
func VerifyLog(ctx context.Context, dir string, keys func(origin string) []ledger.Key, against ...[]byte) (v audit.VerifyResult, err error) {
	defer func() {
		if sqlite.Damaged(err) {
			err = watchword.Wrap(err, watchword.LogInvalid, "the database is damaged, or lacks tables")
		}
	}()
	// The file is outside the database, so rewriting the database alone does not change it. It is
	// read first, since a running server writes it after the database.
	switch note, err := os.ReadFile(filepath.Join(dir, checkpointFile)); {
	case err == nil:
		against = append(slices.Clone(against), note)
	case !errors.Is(err, fs.ErrNotExist):
		return v, err
	}
	f, err := sqlite.OpenLog(ctx, filepath.Join(dir, databaseFile))
	if err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	own, err := logKeys(ctx, f)
	if err != nil {
		return v, err
	}
	if keys != nil {
		var given []ledger.Key
		for _, k := range own { // a restored log had another name before
			of := []ledger.Key{k} // keys of witnesses may come from the folder: their signatures alone prove nothing
			if !k.Witness() {
				of = keys(k.Name())
			}
			for _, k := range of {
				if !slices.ContainsFunc(given, func(g ledger.Key) bool { return g.String() == k.String() }) {
					given = append(given, k)
				}
			}
		}
		own = given
	}
	return audit.VerifyStore(ctx, f, own, against...)
}

// LogKeys returns the keys of a data folder's log, as verifier keys.
func LogKeys(ctx context.Context, dir string) (keys []ledger.Key, err error) {
	f, err := sqlite.OpenLog(ctx, filepath.Join(dir, databaseFile))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return logKeys(ctx, f)
}

func logKeys(ctx context.Context, f *sqlite.LogFile) (keys []ledger.Key, err error) {
	instance, err := f.Instance(ctx)
	if err != nil {
		return nil, err
	}
	sealed, err := f.ServerKeys(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range sealed {
		if s.Role != keyring.Log {
			continue
		}
		pub, err := jose.ParseJWK(s.Public, jose.ForSigning)
		if err != nil {
			return nil, watchword.Wrap(err, watchword.KeyDamaged, "the log key %s is damaged", s.ID)
		}
		keys = append(keys, ledger.LogKeys(s.OriginOf(instance), pub)...)
	}
	if len(keys) == 0 {
		return nil, watchword.Refuse(watchword.LogInvalid, "the database has no key of the log")
	}
	bundles, err := f.Bundles(ctx)
	if err != nil {
		return nil, err
	}
	for _, b := range bundles { // former keys too: their signatures are kept
		t, err := token.ReadTrust(string(b.JWS))
		if err != nil {
			return nil, watchword.Wrap(err, watchword.KeyDamaged, "the trust bundle of version %s is damaged", b.Version)
		}
		ws, err := ledger.VerifierKeys(t.Origin(), nil, t.Witnesses)
		if err != nil {
			return nil, err
		}
		for _, w := range ws {
			if !slices.ContainsFunc(keys, func(k ledger.Key) bool { return k.String() == w.String() }) {
				keys = append(keys, w)
			}
		}
	}
	return keys, nil
}
