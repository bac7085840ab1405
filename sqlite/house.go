package sqlite

import (
	"context"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/keyring"
)

// Founding returns what the house decided at first start.
func (s *Store) Founding(ctx context.Context) (keyring.Founding, error) {
	return one(ctx, s, scanFounding, watchword.Refuse(watchword.NotFound, "the house is not founded"),
		`SELECT issuer, epoch, at FROM house`)
}

func scanFounding(r scanner) (f keyring.Founding, err error) {
	var at int64
	err = r.Scan(&f.Issuer, &f.Epoch, &at)
	f.At = moment(at)
	return f, err
}

// Found writes the founding, the first keys and the first operator, once.
func (s *Store) Found(ctx context.Context, f keyring.Founding, keys []keyring.Sealed, operator watchword.Subject, es []audit.Entry) error {
	return s.w.do(ctx, func(t *tx) error {
		n, err := t.exec(`INSERT INTO house (one, issuer, epoch, at) VALUES (1, ?, ?, ?) ON CONFLICT DO NOTHING`, f.Issuer, f.Epoch, stamp(f.At))
		if err != nil {
			return err
		}
		if n == 0 {
			return watchword.Refuse(watchword.Conflict, "the house stands already")
		}
		for _, k := range keys {
			if _, err := t.exec(`INSERT INTO server_keys (id, role, state, public, private, cert, created) VALUES (?, ?, ?, ?, ?, ?, ?)`,
				k.ID, k.Role, k.State, k.Public, k.Private, k.Cert, stamp(k.Created)); err != nil {
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
		return t.enter(es...)
	})
}

// ServerKeys returns all server keys, oldest first.
func (s *Store) ServerKeys(ctx context.Context) ([]keyring.Sealed, error) {
	return all(ctx, s, func(r scanner) (k keyring.Sealed, err error) {
		var created int64
		err = r.Scan(&k.ID, &k.Role, &k.State, &k.Public, &k.Private, &k.Cert, &created)
		k.Created = moment(created)
		return k, err
	}, `SELECT id, role, state, public, private, cert, created FROM server_keys ORDER BY n`)
}

// Bundle returns the newest signed bundle.
func (s *Store) Bundle(ctx context.Context) (keyring.SignedBundle, error) {
	return one(ctx, s, func(r scanner) (b keyring.SignedBundle, err error) {
		var expires int64
		err = r.Scan(&b.Version, &b.JWS, &expires)
		b.Expires = moment(expires)
		return b, err
	}, watchword.Refuse(watchword.NotFound, "no trust bundle was signed yet"),
		`SELECT version, jws, expires FROM bundles ORDER BY version DESC LIMIT 1`)
}

// SaveBundle stores a bundle whose version is greater than every other's.
func (s *Store) SaveBundle(ctx context.Context, b keyring.SignedBundle, e audit.Entry) error {
	return s.w.do(ctx, func(t *tx) error {
		n, err := t.exec(`INSERT INTO bundles (version, jws, expires) SELECT ?1, ?2, ?3
			WHERE NOT EXISTS (SELECT 1 FROM bundles WHERE version >= ?1)`, b.Version, b.JWS, stamp(b.Expires))
		if err != nil {
			return err
		}
		if n == 0 {
			return watchword.Refuse(watchword.Conflict, "a trust bundle of this version or a later one exists")
		}
		return t.enter(e)
	})
}

// AddEntry writes an entry that no other step carries.
func (s *Store) AddEntry(ctx context.Context, e audit.Entry) error {
	return s.w.do(ctx, func(t *tx) error { return t.enter(e) })
}

// Entries returns up to limit entries with Seq above after, oldest first.
func (s *Store) Entries(ctx context.Context, after int64, limit int) ([]audit.Entry, error) {
	return all(ctx, s, func(r scanner) (audit.Entry, error) {
		var seq int64
		var body []byte
		if err := r.Scan(&seq, &body); err != nil {
			return audit.Entry{}, err
		}
		return audit.Parse(seq, body)
	}, `SELECT seq, body FROM audit_entries WHERE seq > ? ORDER BY seq LIMIT ?`, after, limit)
}
