package keyring

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/jose"
)

// Store is what a ring needs of the cellar.
type Store interface {
	Founding(ctx context.Context) (Founding, error)
	Found(ctx context.Context, f Founding, keys []Sealed, operator watchword.Subject, es []audit.Entry) error
	ServerKeys(ctx context.Context) ([]Sealed, error)
	Bundle(ctx context.Context) (SignedBundle, error)
	SaveBundle(ctx context.Context, b SignedBundle, e audit.Entry) error
}

// Ring holds the opened keys. It is immutable and safe for concurrent use.
type Ring struct {
	founding Founding
	data     []byte
	signers  map[Role]*jose.Signer      // the active key of each signing role
	public   map[Role][]*jose.PublicKey // every key of a role that counts for verifying
	issuers  map[watchword.KeyID]*jose.PublicKey
	ca       *authority
}

// Founder is what [Found] needs beside the store.
type Founder struct {
	Issuer   string
	Operator watchword.Subject // the first operator, active, with its keys
	KEK      KEK
	Now      time.Time
}

// Found makes every role's key, seals them, and writes them with the founding
// and the first operator in one step. Code: conflict if the house stands already.
func Found(ctx context.Context, st Store, f Founder) error {
	data := randomKey()
	wrapped, err := f.KEK.Wrap(data)
	if err != nil {
		return err
	}
	keys := []Sealed{{ID: f.KEK.ID(), Role: Data, State: Active, Private: wrapped, Created: f.Now}}
	entry := func(kind string, k Sealed) audit.Entry {
		return audit.Entry{
			Tenant: watchword.DefaultTenant, At: f.Now, Kind: kind, Object: string(k.ID), Outcome: audit.Done,
			Data: map[string]string{"role": string(k.Role)},
		}
	}
	var entries []audit.Entry
	for _, n := range []struct {
		role Role
		crv  string
	}{{Root, "P-256"}, {CA, "P-256"}, {Issuer, "P-256"}, {Command, "P-256"}, {Time, "P-256"}, {Log, "Ed25519"}} {
		k, err := jose.GenerateKey(n.crv)
		if err != nil {
			return err
		}
		s := Sealed{ID: k.Public().ID(), Role: n.role, State: Active, Public: k.Public().JWK(), Created: f.Now}
		if s.Private, err = sealBytes(data, sealContext(s), k.JWK()); err != nil {
			return err
		}
		if n.role == CA {
			if s.Cert, err = selfSign(k.Crypto(), f.Issuer, f.Now); err != nil {
				return err
			}
		}
		keys = append(keys, s)
		entries = append(entries, entry(audit.KeyCreate, s))
	}
	entries = append(entries, audit.Entry{
		Tenant: watchword.DefaultTenant, At: f.Now, Kind: audit.OperatorCreate, Object: string(f.Operator.ID), Outcome: audit.Done,
		Data: map[string]string{"labels": f.Operator.Labels.String(), "key": string(f.Operator.Keys[0].ID)},
	})
	return st.Found(ctx, Founding{Issuer: f.Issuer, Epoch: 1, At: f.Now}, keys, f.Operator, entries)
}

// sealContext ties a sealed private key to its role and public half, so that
// rows cannot be swapped.
func sealContext(s Sealed) string { return "key/" + string(s.Role) + "/" + string(s.ID) }

// Open reads the ring of a founded house. Codes: not_found before [Found];
// key_unwrap for a wrong key-encryption key, key_damaged for what is not as it was written.
func Open(ctx context.Context, st Store, kek KEK) (*Ring, error) {
	founding, err := st.Founding(ctx)
	if err != nil {
		return nil, err
	}
	keys, err := st.ServerKeys(ctx)
	if err != nil {
		return nil, err
	}
	r := &Ring{founding: founding, signers: map[Role]*jose.Signer{}, public: map[Role][]*jose.PublicKey{}, issuers: map[watchword.KeyID]*jose.PublicKey{}}
	for _, s := range keys {
		if s.Role != Data || s.State != Active {
			continue
		}
		if s.ID != kek.ID() {
			return nil, watchword.Refuse(watchword.KeyUnwrap, "the key-encryption key is another one than the keys were sealed with (it is %s, they want %s)", kek.ID(), s.ID)
		}
		if r.data, err = kek.Unwrap(s.Private); err != nil {
			return nil, watchword.Because(err, watchword.KeyDamaged, "the key-encryption key is the right one, but the data key is damaged")
		}
	}
	if r.data == nil {
		return nil, watchword.Refuse(watchword.KeyDamaged, "the store holds no data key")
	}
	for _, s := range keys {
		if s.Role == Data || s.State == Gone || s.State == Revoked {
			continue
		}
		if err := r.add(s); err != nil {
			return nil, err
		}
	}
	for _, role := range []Role{Root, CA, Issuer, Command, Time, Log} {
		if r.signers[role] == nil {
			return nil, watchword.Refuse(watchword.KeyDamaged, "the store holds no active %s key", role)
		}
	}
	return r, nil
}

func (r *Ring) add(s Sealed) error {
	plain, err := openBytes(r.data, sealContext(s), s.Private)
	if err != nil {
		return watchword.Because(err, watchword.KeyDamaged, "the %s key %s is damaged", s.Role, s.ID)
	}
	k, err := jose.ParsePrivateJWK(plain)
	if err != nil || k.Public().ID() != s.ID {
		return watchword.Because(err, watchword.KeyDamaged, "the %s key %s is damaged", s.Role, s.ID)
	}
	r.public[s.Role] = append(r.public[s.Role], k.Public())
	if s.Role == Issuer {
		r.issuers[s.ID] = k.Public()
	}
	if s.State != Active {
		return nil
	}
	if r.signers[s.Role], err = k.Signer(); err != nil {
		return err
	}
	if s.Role == CA {
		r.ca, err = newAuthority(k.Crypto(), s.Cert)
	}
	return err
}

// Issuer returns the issuer identifier of the default tenant.
func (r *Ring) Issuer() string { return r.founding.Issuer }

// Epoch returns the epoch that commands carry.
func (r *Ring) Epoch() int64 { return r.founding.Epoch }

// Signer returns the active signer of a role.
func (r *Ring) Signer(role Role) *jose.Signer { return r.signers[role] }

// IssuerSigner returns the active issuer key.
func (r *Ring) IssuerSigner() *jose.Signer { return r.signers[Issuer] }

// IssuerKeys returns every issuer key that counts, by id.
func (r *Ring) IssuerKeys() map[watchword.KeyID]*jose.PublicKey { return r.issuers }

// Public returns every public key of a role that counts for verifying.
func (r *Ring) Public(role Role) []*jose.PublicKey { return r.public[role] }

// Seal seals bytes for rest. context says what they are and whose, as
// "args/cmd_01…"; the same must be given to [Ring.Open].
func (r *Ring) Seal(context string, plaintext []byte) ([]byte, error) {
	return sealBytes(r.data, "row/"+context, plaintext)
}

// Open opens what Seal sealed for the same context. Code: key_damaged.
func (r *Ring) Open(context string, sealed []byte) ([]byte, error) {
	return openBytes(r.data, "row/"+context, sealed)
}
