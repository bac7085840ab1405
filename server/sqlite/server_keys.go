package sqlite

import (
	"context"
	"reflect"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/keyring"
)

// Instance returns the instance's settings from its first start.
func (s *Store) Instance(ctx context.Context) (keyring.Instance, error) {
	return instance(ctx, s)
}

func instance(ctx context.Context, from querier) (keyring.Instance, error) {
	return queryOne(ctx, from, scanInstance, keyring.ErrNotInitialized,
		`SELECT issuer, epoch, created, log_origin, restored_at, superseded_by FROM instance`)
}

func scanInstance(r scanner) (f keyring.Instance, err error) {
	var at, restored int64
	err = r.Scan(&f.Issuer, &f.Epoch, &at, &f.LogOrigin, &restored, &f.SupersededBy)
	f.At, f.RestoredAt = fromMillis(at), fromMillis(restored)
	return f, err
}

// Initialize writes the instance, its first keys and the first operator, once.
func (s *Store) Initialize(ctx context.Context, f keyring.Instance, keys []keyring.SealedKey, operator watchword.Subject, es []audit.Entry) error {
	return s.w.do(ctx, func(t *tx) error {
		n, err := t.exec(`INSERT INTO instance (one, issuer, epoch, created) VALUES (1, ?, ?, ?) ON CONFLICT DO NOTHING`, f.Issuer, f.Epoch, toMillis(f.At))
		if err != nil {
			return err
		}
		if n == 0 {
			return keyring.ErrInitialized
		}
		for _, k := range keys {
			if err := t.addServerKey(k); err != nil {
				return err
			}
		}
		if err := t.addSubject(operator); err != nil {
			return err
		}
		for _, k := range operator.Keys {
			if err := t.addKey(operator.Tenant, operator.ID, k); err != nil {
				return err
			}
		}
		return t.addEntry(es...)
	})
}

func (t *tx) addServerKey(k keyring.SealedKey) error {
	_, err := t.exec(`INSERT INTO server_keys (id, role, state, public, private, cert, created, starts, ends, origin) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		k.ID, k.Role, k.State, k.Public, k.Private, k.Cert, toMillis(k.Created), toMillis(k.Starts), toMillis(k.Ends), k.Origin)
	return err
}

// ServerKeys returns all server keys, oldest first.
func (s *Store) ServerKeys(ctx context.Context) ([]keyring.SealedKey, error) {
	return serverKeys(ctx, s)
}

func serverKeys(ctx context.Context, from querier) ([]keyring.SealedKey, error) {
	return queryAll(ctx, from, scanServerKey, `SELECT id, role, state, public, private, cert, created, starts, ends, origin FROM server_keys ORDER BY n`)
}

func scanServerKey(r scanner) (k keyring.SealedKey, err error) {
	var created, starts, ends int64
	err = r.Scan(&k.ID, &k.Role, &k.State, &k.Public, &k.Private, &k.Cert, &created, &starts, &ends, &k.Origin)
	k.Created, k.Starts, k.Ends = fromMillis(created), fromMillis(starts), fromMillis(ends)
	return k, err
}

// Bundles returns every signed bundle, oldest first.
func (s *Store) Bundles(ctx context.Context) ([]keyring.SignedBundle, error) {
	return bundles(ctx, s)
}

func bundles(ctx context.Context, from querier) ([]keyring.SignedBundle, error) {
	return queryAll(ctx, from, scanBundle, `SELECT epoch, version, jws, starts, expires FROM bundles ORDER BY epoch, version`)
}

func scanBundle(r scanner) (b keyring.SignedBundle, err error) {
	var starts, expires int64
	err = r.Scan(&b.Version.Epoch, &b.Version.Number, &b.JWS, &starts, &expires)
	b.Starts, b.Expires = fromMillis(starts), fromMillis(expires)
	return b, err
}

// RotateKeys carries a turn out whole, or not at all.
func (s *Store) RotateKeys(ctx context.Context, turn keyring.KeyUpdate, es ...audit.Entry) error {
	return s.w.doAuthorized(ctx, func(t *tx) error {
		before, err := serverKeys(ctx, t)
		if err != nil {
			return err
		}
		signed, err := bundles(ctx, t)
		if err != nil {
			return err
		}
		after, err := turn.Apply(before, signed)
		if err != nil {
			return err
		}
		if err := t.putKeyUpdate(turn, before, after); err != nil {
			return err
		}
		if err := t.putIssuers(turn.Issuers); err != nil {
			return err
		}
		return t.addEntry(es...)
	}, es...)
}

// putKeyUpdate writes an update that turned the keys of before into those of after.
func (t *tx) putKeyUpdate(turn keyring.KeyUpdate, before, after []keyring.SealedKey) error {
	for _, k := range after[len(before):] {
		if err := t.addServerKey(k); err != nil {
			return err
		}
	}
	if err := t.putServerKeys(before, after); err != nil {
		return err
	}
	for _, v := range turn.DropBundles {
		if _, err := t.exec(`DELETE FROM bundles WHERE epoch = ? AND version = ?`, v.Epoch, v.Number); err != nil {
			return err
		}
	}
	for _, b := range turn.Bundles {
		if _, err := t.exec(`INSERT INTO bundles (epoch, version, jws, starts, expires) VALUES (?, ?, ?, ?, ?)`, b.Version.Epoch, b.Version.Number, b.JWS, toMillis(b.Starts), toMillis(b.Expires)); err != nil {
			return err
		}
	}
	return nil
}

// SetSuperseded notes that a bundle of a higher epoch was shown to this server.
func (s *Store) SetSuperseded(ctx context.Context, epoch int64, e audit.Entry) error {
	return s.w.doAuthorized(ctx, func(t *tx) error {
		if _, err := t.exec(`UPDATE instance SET superseded_by = max(superseded_by, ?)`, epoch); err != nil {
			return err
		}
		return t.addEntry(e)
	}, e)
}

// putServerKeys writes the keys of before that differ in after. An erased private key leaves nothing in the file.
func (t *tx) putServerKeys(before, after []keyring.SealedKey) error {
	var moved []keyring.SealedKey
	for i, k := range before {
		if !reflect.DeepEqual(k, after[i]) {
			moved = append(moved, after[i])
		}
	}
	if len(moved) == 0 {
		return nil
	}
	return t.withSecureDelete(func() error {
		for _, k := range moved {
			private := k.Private
			if private == nil {
				private = []byte{}
			}
			if _, err := t.exec(`UPDATE server_keys SET state = ?, starts = ?, ends = ?, private = ? WHERE role = ? AND id = ?`,
				k.State, toMillis(k.Starts), toMillis(k.Ends), private, k.Role, k.ID); err != nil {
				return err
			}
		}
		return nil
	})
}
