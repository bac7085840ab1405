package sqlite

import (
	"context"
	"reflect"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/keyring"
)

// Founding returns what the house decided at first start.
func (s *Store) Founding(ctx context.Context) (keyring.Founding, error) {
	return founding(ctx, s)
}

func founding(ctx context.Context, from rows) (keyring.Founding, error) {
	return one(ctx, from, scanFounding, watchword.Refuse(watchword.NotFound, "the house is not founded"),
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
		return t.enter(es...)
	})
}

func (t *tx) addServerKey(k keyring.Sealed) error {
	_, err := t.exec(`INSERT INTO server_keys (id, role, state, public, private, cert, created, starts, ends) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		k.ID, k.Role, k.State, k.Public, k.Private, k.Cert, stamp(k.Created), stamp(k.Starts), stamp(k.Ends))
	return err
}

// ServerKeys returns all server keys, oldest first.
func (s *Store) ServerKeys(ctx context.Context) ([]keyring.Sealed, error) {
	return serverKeys(ctx, s)
}

func serverKeys(ctx context.Context, from rows) ([]keyring.Sealed, error) {
	return all(ctx, from, func(r scanner) (k keyring.Sealed, err error) {
		var created, starts, ends int64
		err = r.Scan(&k.ID, &k.Role, &k.State, &k.Public, &k.Private, &k.Cert, &created, &starts, &ends)
		k.Created, k.Starts, k.Ends = moment(created), moment(starts), moment(ends)
		return k, err
	}, `SELECT id, role, state, public, private, cert, created, starts, ends FROM server_keys ORDER BY n`)
}

// Bundles returns every signed bundle, oldest first.
func (s *Store) Bundles(ctx context.Context) ([]keyring.SignedBundle, error) {
	return bundles(ctx, s)
}

func bundles(ctx context.Context, from rows) ([]keyring.SignedBundle, error) {
	return all(ctx, from, func(r scanner) (b keyring.SignedBundle, err error) {
		var starts, expires int64
		err = r.Scan(&b.Version, &b.JWS, &starts, &expires)
		b.Starts, b.Expires = moment(starts), moment(expires)
		return b, err
	}, `SELECT version, jws, starts, expires FROM bundles ORDER BY version`)
}

// TurnKeys carries a turn out whole, or not at all.
func (s *Store) TurnKeys(ctx context.Context, turn keyring.Turn, es ...audit.Entry) error {
	return s.w.act(ctx, func(t *tx) error {
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
		for _, k := range after[len(before):] {
			if err := t.addServerKey(k); err != nil {
				return err
			}
		}
		if err := t.putServerKeys(before, after); err != nil {
			return err
		}
		for _, v := range turn.Drop {
			if _, err := t.exec(`DELETE FROM bundles WHERE version = ?`, v); err != nil {
				return err
			}
		}
		for _, b := range turn.Bundles {
			if _, err := t.exec(`INSERT INTO bundles (version, jws, starts, expires) VALUES (?, ?, ?, ?)`, b.Version, b.JWS, stamp(b.Starts), stamp(b.Expires)); err != nil {
				return err
			}
		}
		return t.enter(es...)
	}, es...)
}

// putServerKeys writes the keys of before that are others after. Of a private half that goes nothing is left in the file.
func (t *tx) putServerKeys(before, after []keyring.Sealed) error {
	var moved []keyring.Sealed
	for i, k := range before {
		if !reflect.DeepEqual(k, after[i]) {
			moved = append(moved, after[i])
		}
	}
	if len(moved) == 0 {
		return nil
	}
	return t.overwriting(func() error {
		for _, k := range moved {
			private := k.Private
			if private == nil {
				private = []byte{}
			}
			if _, err := t.exec(`UPDATE server_keys SET state = ?, starts = ?, ends = ?, private = ? WHERE role = ? AND id = ?`,
				k.State, stamp(k.Starts), stamp(k.Ends), private, k.Role, k.ID); err != nil {
				return err
			}
		}
		return nil
	})
}
