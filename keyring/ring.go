package keyring

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/jose"
)

// Store is what a ring needs from the store.
type Store interface {
	Instance(ctx context.Context) (Instance, error)
	Initialize(ctx context.Context, f Instance, keys []SealedKey, operator watchword.Subject, es []audit.Entry) error
	ServerKeys(ctx context.Context) ([]SealedKey, error)
	Bundles(ctx context.Context) ([]SignedBundle, error)
	RotateKeys(ctx context.Context, t KeyUpdate, es ...audit.Entry) error
}

// Ring holds the opened keys as they stand at this moment: ask it each time, and
// keep nothing that it lends. It is safe for concurrent use. A [Rotator] turns the keys
// in the store; the ring reads them from there ([Ring.Receive]).
type Ring struct {
	store     Store
	instance  Instance
	dataKey   []byte
	deriveKey []byte // made of data: no key has two uses
	state     atomic.Pointer[keyState]

	reading sync.Mutex               // held while the keys are read, so that a later reading is not overwritten
	missed  atomic.Bool              // the keys changed, and could not be read
	written atomic.Pointer[keyState] // what this process wrote since they were read; nil: nothing

	tenantBundles tenantBundles
}

// keyState is one state of the ring. It is immutable.
type keyState struct {
	all     []SealedKey                  // all, oldest first
	bundles []SignedBundle               // in order of their versions
	signers map[Role]*jose.Signer        // the active key of each role; no root where it lives offline
	public  map[Role][]*jose.PublicKey   // every valid key, oldest first
	private map[watchword.KeyID]*private // of every valid key whose private half is here
	issuers map[watchword.KeyID]*jose.PublicKey
	revoked map[watchword.KeyID]bool // of the issuer keys
	jwks    []byte
	ca      *authority
	anchors [][]byte // DER of every valid authority, oldest first
	root    *jose.PublicKey
}

type private struct {
	role Role
	key  *jose.PrivateKey
}

// sealContext ties a sealed private key to its role and public half, so that
// rows cannot be swapped.
func sealContext(s SealedKey) string { return "key/" + string(s.Role) + "/" + string(s.ID) }

// Open reads the ring of an initialized server. Codes: not_found before [Initialize];
// key_unwrap for a wrong key-encryption key, key_damaged for what is not as it was
// written.
func Open(ctx context.Context, st Store, kek KEK) (*Ring, error) {
	founding, err := st.Instance(ctx)
	if err != nil {
		return nil, err
	}
	sealed, err := st.ServerKeys(ctx)
	if err != nil {
		return nil, err
	}
	r := &Ring{store: st, instance: founding}
	for _, s := range sealed {
		if s.Role != Data || s.State != Active {
			continue
		}
		if s.ID != kek.ID() {
			return nil, watchword.Refuse(watchword.KeyUnwrap, "the key-encryption key is another one than the keys were sealed with (it is %s, they want %s)", kek.ID(), s.ID)
		}
		if r.dataKey, err = kek.Unwrap(s.Private); err != nil {
			return nil, watchword.Wrap(err, watchword.KeyDamaged, "the key-encryption key is the right one, but the data key is damaged")
		}
	}
	if r.dataKey == nil {
		return nil, watchword.Refuse(watchword.KeyDamaged, "the store holds no data key")
	}
	if r.deriveKey, err = hkdf.Key(sha256.New, r.dataKey, nil, "watchword mask", sha256.Size); err != nil {
		return nil, err
	}
	k, err := r.open(sealed)
	if err != nil {
		return nil, err
	}
	if k.bundles, err = st.Bundles(ctx); err != nil {
		return nil, err
	}
	r.state.Store(k)
	return r, nil
}

// Receive reads the keys and the trust bundles from the store again. Codes: unavailable, key_damaged; the keys are what this
// process wrote last then, and [Rotator.Step] has them read again.
func (r *Ring) Receive(ctx context.Context, c watchword.Change) error {
	if c.Kind != watchword.ServerKeysChanged {
		return nil
	}
	r.reading.Lock()
	defer r.reading.Unlock()
	k, err := r.read(ctx)
	r.missed.Store(err != nil)
	if err != nil {
		k = r.written.Load() // a key that was revoked here counts no more, whether or not the store can be read
	}
	if k != nil {
		r.state.Store(k)
		r.written.Store(nil)
	}
	return err
}

func (r *Ring) read(ctx context.Context) (*keyState, error) {
	sealed, err := r.store.ServerKeys(ctx)
	if err != nil {
		return nil, err
	}
	k, err := r.open(sealed)
	if err != nil {
		return nil, err
	}
	k.bundles, err = r.store.Bundles(ctx)
	return k, err
}

// version counts the steps that all keys have taken: see [watchword.ServerKeysChanged].
func (k *keyState) version() (n int64) {
	for _, s := range k.all {
		n += 1 + int64(slices.Index(steps, s.State))
	}
	return n
}

// steps is the states of a key in the order in which it takes them. One may be left out.
var steps = []State{Next, Active, Retiring, Gone, Revoked}

// open opens every key that counts, and refuses a ring that lacks one.
func (r *Ring) open(sealed []SealedKey) (*keyState, error) {
	k := &keyState{
		all: sealed, signers: map[Role]*jose.Signer{}, public: map[Role][]*jose.PublicKey{},
		private: map[watchword.KeyID]*private{}, issuers: map[watchword.KeyID]*jose.PublicKey{}, revoked: map[watchword.KeyID]bool{},
	}
	active := map[Role]bool{}
	for _, s := range sealed {
		if s.Role == Issuer && s.State == Revoked {
			k.revoked[s.ID] = true
		}
		if s.Role == Data || !s.State.Valid() {
			continue
		}
		if err := k.add(r.dataKey, s); err != nil {
			return nil, err
		}
		active[s.Role] = active[s.Role] || s.State == Active
	}
	for _, role := range Roles {
		if !active[role] {
			return nil, watchword.Refuse(watchword.KeyDamaged, "the store holds no active %s key", role)
		}
	}
	var err error
	k.jwks, err = jwkSet(k.public[Issuer])
	return k, err
}

func (k *keyState) add(data []byte, s SealedKey) error {
	damaged := func(err error) error {
		return watchword.Wrap(err, watchword.KeyDamaged, "the %s key %s is damaged", s.Role, s.ID)
	}
	pub, err := jose.ParseJWK(s.Public, jose.ForSigning)
	if err != nil || pub.ID() != s.ID {
		return damaged(err)
	}
	k.public[s.Role] = append(k.public[s.Role], pub)
	switch s.Role {
	case Issuer:
		k.issuers[s.ID] = pub
	case CA:
		k.anchors = append(k.anchors, s.Cert)
	case Root:
		if s.State == Active {
			k.root = pub
		}
		if len(s.Private) == 0 {
			return nil // it lives offline
		}
	}
	plain, err := openBytes(data, sealContext(s), s.Private)
	if err != nil {
		return damaged(err)
	}
	key, err := jose.ParsePrivateJWK(plain, jose.ForSigning)
	if err != nil || key.Public().ID() != s.ID {
		return damaged(err)
	}
	k.private[s.ID] = &private{s.Role, key}
	if s.State != Active {
		return nil
	}
	if k.signers[s.Role], err = key.Signer(); err != nil {
		return damaged(err)
	}
	if s.Role == CA {
		if k.ca, err = newAuthority(key.Crypto(), s.Cert); err != nil {
			return damaged(err)
		}
	}
	return nil
}

// jwkSet is keys as a JWK Set (RFC 7517 §5).
func jwkSet(ks []*jose.PublicKey) ([]byte, error) {
	set := struct {
		Keys []map[string]any `json:"keys"`
	}{}
	for _, k := range ks {
		e := map[string]any{}
		if err := json.Unmarshal(k.JWK(), &e); err != nil {
			return nil, err
		}
		e["kid"], e["use"], e["alg"] = k.ID(), "sig", k.Alg()
		set.Keys = append(set.Keys, e)
	}
	return json.Marshal(set)
}

// Issuer returns the issuer identifier of the default tenant.
func (r *Ring) Issuer() string { return r.instance.Issuer }

// Epoch returns the epoch that commands carry.
func (r *Ring) Epoch() int64 { return r.instance.Epoch }

// Signer returns the active signer of a role; nil for a root that lives offline.
func (r *Ring) Signer(role Role) *jose.Signer { return r.state.Load().signers[role] }

// Public returns every valid public key of a role for verifying, oldest first.
func (r *Ring) Public(role Role) []*jose.PublicKey { return r.state.Load().public[role] }

// Root returns the active root's public key.
func (r *Ring) Root() *jose.PublicKey { return r.state.Load().root }

// IssuerSigner returns the active issuer key.
func (r *Ring) IssuerSigner() *jose.Signer { return r.Signer(Issuer) }

// IssuerKeys returns every valid issuer key, by id. It is read only.
func (r *Ring) IssuerKeys() map[watchword.KeyID]*jose.PublicKey { return r.state.Load().issuers }

// CommandSigner returns the active command key.
func (r *Ring) CommandSigner() *jose.Signer { return r.Signer(Command) }

// CommandKeyValid reports whether a command key of that id is valid.
func (r *Ring) CommandKeyValid(id watchword.KeyID) bool {
	p := r.state.Load().private[id]
	return p != nil && p.role == Command
}

// LogSigner signs the log's checkpoints with the active log key.
func (r *Ring) LogSigner() ledger.Signer {
	s := r.Signer(Log)
	return ledger.Signer{Key: ledger.LogKeys(r.Issuer(), s.Public())[0], SignFunc: s.SignBytes} // log keys are Ed25519 (found.go)
}

// LogKeys returns every key that the log's checkpoints were ever signed with, or will be.
func (r *Ring) LogKeys() (out []ledger.Key) {
	for _, s := range r.state.Load().all {
		if s.Role != Log {
			continue
		}
		if pub, err := jose.ParseJWK(s.Public, jose.ForSigning); err == nil { // those that are valid were read when the ring was opened
			out = append(out, ledger.LogKeys(r.Issuer(), pub)...)
		}
	}
	return out
}

// IssuerKeyRevoked reports whether id was an issuer key and was revoked.
func (r *Ring) IssuerKeyRevoked(id watchword.KeyID) bool { return r.state.Load().revoked[id] }

// JWKS returns the valid issuer keys, as a JWK Set.
func (r *Ring) JWKS() []byte { return r.state.Load().jwks }

// Bundle returns the trust bundle of the default tenant that counts now; empty before a [Rotator] began.
func (r *Ring) Bundle(now time.Time) string {
	b, _ := currentBundle(r.state.Load().bundles, now)
	return string(b.JWS)
}

// Seal seals bytes for rest. context says what they are and whose, as
// "args/cmd_01…"; the same must be given to [Ring.Open].
func (r *Ring) Seal(context string, plaintext []byte) ([]byte, error) {
	return sealBytes(r.dataKey, "row/"+context, plaintext)
}

// Open opens what Seal sealed for the same context. Code: key_damaged.
func (r *Ring) Open(context string, sealed []byte) ([]byte, error) {
	return openBytes(r.dataKey, "row/"+context, sealed)
}

// DeriveSecret returns bytes that belong to a context, as "salt/cmd_01…", and that nobody
// knows who has not the data key.
func (r *Ring) DeriveSecret(context string) (out [32]byte) {
	h := hmac.New(sha256.New, r.deriveKey)
	h.Write([]byte(context)) // hashing does not fail
	h.Sum(out[:0])
	return out
}

// signer returns a valid key whose private half is here, active or not. Code: key_missing.
func (k *keyState) signer(id watchword.KeyID) (*jose.Signer, error) {
	p := k.private[id]
	if p == nil {
		return nil, watchword.Refuse(watchword.KeyMissing, "the key %s is not here: it lives offline", id)
	}
	return p.key.Signer()
}

// auditData returns what an entry says of a key.
func auditData(s SealedKey, more map[string]string) map[string]string {
	out := map[string]string{"role": string(s.Role)}
	maps.Copy(out, more)
	return out
}
