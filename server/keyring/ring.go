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
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/token"
)

// Store is the part of the store that a Ring uses.
type Store interface {
	Instance(ctx context.Context) (Instance, error)
	Initialize(ctx context.Context, f Instance, keys []SealedKey, operator watchword.Subject, es []audit.Entry) error
	ServerKeys(ctx context.Context) ([]SealedKey, error)
	Bundles(ctx context.Context) ([]SignedBundle, error)
	// IssuerHistory returns every issuer that the server has had, in the order of first use; none before the first move.
	IssuerHistory(ctx context.Context) ([]token.IssuerPeriod, error)
	RotateKeys(ctx context.Context, t KeyUpdate, es ...audit.Entry) error
	// SetSuperseded raises [Instance.SupersededBy].
	SetSuperseded(ctx context.Context, epoch int64, e audit.Entry) error
}

// Ring holds the decrypted current keys. Callers must get a key each time they use one, and not store it. It is safe for
// concurrent use. A [Rotator] rotates the keys in the store; the ring reads them from there ([Ring.HandleChange]).
type Ring struct {
	store     Store
	clock     Clock // nil: always trusted
	instance  Instance
	dataKey   []byte
	deriveKey []byte // derived from data, so that no key has two uses
	state     atomic.Pointer[keyState]

	reading sync.Mutex               // held while the keys are read, so that an earlier read does not overwrite a later one
	missed  atomic.Bool              // the keys changed, and could not be read
	written atomic.Pointer[keyState] // state that this process wrote since the keys were last read; nil: none

	tenantBundles tenantBundles
	supersededBy  atomic.Int64 // see [Instance.SupersededBy]
}

// keyState is one immutable state of the ring.
type keyState struct {
	all     []SealedKey                  // all, oldest first
	bundles []SignedBundle               // sorted by version
	signers map[Role]*jose.Signer        // the active key of each role; no root if it is offline
	public  map[Role][]*jose.PublicKey   // every valid key, oldest first
	private map[watchword.KeyID]*private // of every valid key whose private key is here
	issuers map[watchword.KeyID]*jose.PublicKey
	revoked map[watchword.KeyID]bool // of the issuer keys
	jwks    []byte
	ca      *authority
	anchors [][]byte // DER of every valid certificate authority, oldest first
	root    *jose.PublicKey

	addresses addresses
}

type private struct {
	role  Role
	key   *jose.PrivateKey
	check func() error // before each signature
}

// signer returns the key as a signer that asks before each signature.
func (p *private) signer() (*jose.Signer, error) {
	s, err := p.key.Signer()
	if err != nil {
		return nil, err
	}
	if !StatesTime[p.role] {
		return s, nil
	}
	return s.WithCheck(p.check), nil
}

// sealContext binds an encrypted private key to its role and public key, so that rows cannot be swapped.
func sealContext(s SealedKey) string { return "key/" + string(s.Role) + "/" + string(s.ID) }

// Open reads the ring of an initialized server. Keys of the roles in [StatesTime] sign only while clock is trusted; nil means
// always. Codes: not_found before [Initialize]; key_unwrap for a wrong key-encryption key, key_damaged for data that was changed.
func Open(ctx context.Context, st Store, kek KEK, clock Clock) (*Ring, error) {
	instance, err := st.Instance(ctx)
	if err != nil {
		return nil, err
	}
	sealed, err := st.ServerKeys(ctx)
	if err != nil {
		return nil, err
	}
	r := &Ring{store: st, clock: clock, instance: instance}
	r.supersededBy.Store(instance.SupersededBy)
	if r.dataKey, err = openDataKey(kek, sealed); err != nil {
		return nil, err
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
	if err := r.readAddresses(ctx, k); err != nil {
		return nil, err
	}
	r.state.Store(k)
	return r, nil
}

// HandleChange reads the keys and the trust bundles from the store again. If that fails, the keys are those that this process
// wrote last, and [Rotator.Step] reads them again. Codes: unavailable, key_damaged.
func (r *Ring) HandleChange(ctx context.Context, c watchword.Change) error {
	if c.Kind != watchword.ServerKeysChanged {
		return nil
	}
	r.reading.Lock()
	defer r.reading.Unlock()
	k, err := r.read(ctx)
	r.missed.Store(err != nil)
	if err != nil {
		k = r.written.Load() // a key that was revoked here is invalid, whether or not the store can be read
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
	if k.bundles, err = r.store.Bundles(ctx); err != nil {
		return nil, err
	}
	is, err := r.store.Instance(ctx)
	if err != nil {
		return nil, err
	}
	r.supersededBy.Store(is.SupersededBy)
	return k, r.readAddresses(ctx, k)
}

// version returns the number of steps that all keys have taken: see [watchword.ServerKeysChanged].
func (k *keyState) version() (n int64) {
	for _, s := range k.all {
		n += 1 + int64(slices.Index(steps, s.State))
	}
	return n
}

// steps are the states of a key in order. One may be skipped.
var steps = []State{Next, Active, Retiring, Gone, Revoked}

// Follows reports whether a key can come to the state s from another one.
func (s State) Follows(before State) bool {
	return slices.Index(steps, s) > slices.Index(steps, before)
}

func newKeyState(sealed []SealedKey) *keyState {
	return &keyState{
		all: sealed, signers: map[Role]*jose.Signer{}, public: map[Role][]*jose.PublicKey{},
		private: map[watchword.KeyID]*private{}, issuers: map[watchword.KeyID]*jose.PublicKey{}, revoked: map[watchword.KeyID]bool{},
	}
}

// openDataKey decrypts the data key. Codes: key_unwrap for another key-encryption key, key_damaged.
func openDataKey(kek KEK, sealed []SealedKey) (data []byte, err error) {
	for _, s := range sealed {
		if s.Role != Data || s.State != Active {
			continue
		}
		if s.ID != kek.ID() {
			return nil, watchword.Refuse(watchword.KeyUnwrap, "the key-encryption key is %s, and must be %s, which sealed the keys", kek.ID(), s.ID)
		}
		if data, err = kek.Unwrap(s.Private); err != nil {
			return nil, watchword.Wrap(err, watchword.KeyDamaged, "the key-encryption key is the right one, but the data key is damaged")
		}
	}
	if data == nil {
		return nil, watchword.Refuse(watchword.KeyDamaged, "the store holds no data key")
	}
	return data, nil
}

// OpenLogKey decrypts the active log key among the keys of a store that is only read. Codes: key_unwrap for another key-encryption
// key, key_damaged.
func OpenLogKey(kek KEK, sealed []SealedKey) (*jose.Signer, error) {
	data, err := openDataKey(kek, sealed)
	if err != nil {
		return nil, err
	}
	k := newKeyState(sealed)
	for _, s := range keysOf(sealed, Log, Active) {
		if err := k.add(data, s, nil); err != nil { // a log key states no time: nothing is asked before it signs
			return nil, err
		}
	}
	if k.signers[Log] == nil {
		return nil, watchword.Refuse(watchword.KeyDamaged, "the store holds no active %s key", Log)
	}
	return k.signers[Log], nil
}

// open decrypts every valid key, and returns an error if a required key is missing.
func (r *Ring) open(sealed []SealedKey) (*keyState, error) {
	k := newKeyState(sealed)
	active := map[Role]bool{}
	for _, s := range sealed {
		if s.Role == Issuer && s.State == Revoked {
			k.revoked[s.ID] = true
		}
		if s.Role == Data || !s.State.Valid() {
			continue
		}
		if err := k.add(r.dataKey, s, check(s.Role, r.clock)); err != nil {
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

func (k *keyState) add(data []byte, s SealedKey, check func() error) error {
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
			return nil // it is offline
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
	own := &private{s.Role, key, check}
	k.private[s.ID] = own
	if s.State != Active {
		return nil
	}
	if k.signers[s.Role], err = own.signer(); err != nil {
		return damaged(err)
	}
	if s.Role == CA {
		if k.ca, err = newAuthority(checkedKey{key.Crypto(), check}, s.Cert); err != nil {
			return damaged(err)
		}
	}
	return nil
}

// jwkSet returns keys as a JWK Set (RFC 7517 §5).
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

// Epoch returns the epoch that commands carry.
func (r *Ring) Epoch() int64 { return r.instance.Epoch }

// LogOrigin returns the origin of the log.
func (r *Ring) LogOrigin() string { return r.instance.Origin() }

// Restored reports whether the server was restored from a backup.
func (r *Ring) Restored() bool { return r.instance.LogOrigin != "" }

// Signer returns the active signer of a role; nil for an offline root.
func (r *Ring) Signer(role Role) *jose.Signer { return r.state.Load().signers[role] }

// Public returns every valid public key of a role for verifying, oldest first.
func (r *Ring) Public(role Role) []*jose.PublicKey { return r.state.Load().public[role] }

// Root returns the active root's public key.
func (r *Ring) Root() *jose.PublicKey { return r.state.Load().root }

// IssuerSigner returns the active issuer key.
func (r *Ring) IssuerSigner() *jose.Signer { return r.Signer(Issuer) }

// IssuerKeys returns every valid issuer key, by ID. The result must not be modified.
func (r *Ring) IssuerKeys() map[watchword.KeyID]*jose.PublicKey { return r.state.Load().issuers }

// CommandSigner returns the active command key.
func (r *Ring) CommandSigner() *jose.Signer { return r.Signer(Command) }

// CommandKeyValid reports whether a command key of that id is valid.
func (r *Ring) CommandKeyValid(id watchword.KeyID) bool {
	p := r.state.Load().private[id]
	return p != nil && p.role == Command
}

// LogSigner returns the signer of the log's checkpoints, with the active log key.
func (r *Ring) LogSigner() ledger.Signer {
	s := r.Signer(Log)
	return ledger.Signer{Key: ledger.LogKeys(r.LogOrigin(), s.Public())[0], SignFunc: s.SignBytes} // log keys are Ed25519 (initialize.go)
}

// LogKeys returns every key with which checkpoints of the log were signed or will be, each under the origin of its time: a
// key of before a restore signs nothing of the restored log.
func (r *Ring) LogKeys() (out []ledger.Key) {
	for _, s := range r.state.Load().all {
		if s.Role != Log {
			continue
		}
		if pub, err := jose.ParseJWK(s.Public, jose.ForSigning); err == nil { // those of valid keys were parsed when the ring was opened
			out = append(out, ledger.LogKeys(s.OriginOf(r.instance), pub)...)
		}
	}
	return out
}

// IssuerKeyRevoked reports whether id is a revoked issuer key.
func (r *Ring) IssuerKeyRevoked(id watchword.KeyID) bool { return r.state.Load().revoked[id] }

// JWKS returns the valid issuer keys, as a JWK Set.
func (r *Ring) JWKS() []byte { return r.state.Load().jwks }

// Bundle returns the current trust bundle of the default tenant; empty before the first [Rotator] was created.
func (r *Ring) Bundle(now time.Time) string {
	b, _ := currentBundle(r.state.Load().bundles, now)
	return string(b.JWS)
}

// Seal encrypts bytes for storage. context identifies the data, as "args/cmd_01…"; [Ring.Open] needs the same context.
func (r *Ring) Seal(context string, plaintext []byte) ([]byte, error) {
	return sealBytes(r.dataKey, "row/"+context, plaintext)
}

// Open decrypts the output of Seal for the same context. Code: key_damaged.
func (r *Ring) Open(context string, sealed []byte) ([]byte, error) {
	return openBytes(r.dataKey, "row/"+context, sealed)
}

// DeriveSecret returns secret bytes for a context, as "salt/cmd_01…". They are the same each time, and cannot be computed
// without the data key.
func (r *Ring) DeriveSecret(context string) (out [32]byte) {
	h := hmac.New(sha256.New, r.deriveKey)
	h.Write([]byte(context)) // hashing does not fail
	h.Sum(out[:0])
	return out
}

// signer returns a valid key whose private key is here, active or not. Code: key_missing.
func (k *keyState) signer(id watchword.KeyID) (*jose.Signer, error) {
	p := k.private[id]
	if p == nil {
		return nil, watchword.Refuse(watchword.KeyMissing, "the key %s is offline: it is not on this server", id)
	}
	return p.signer()
}

// auditData returns the audit data of a key.
func auditData(s SealedKey, more map[string]string) map[string]string {
	out := map[string]string{"role": string(s.Role)}
	maps.Copy(out, more)
	return out
}
