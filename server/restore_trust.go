package server

import (
	"context"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/backup"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/sqlite"
	"github.com/watchword-iot/watchword/token"
)

// bundleChain is the trust bundle of a backup's manifest, which the root of the backup signed, and those after it of which each was
// signed by a root of the one before.
type bundleChain struct {
	bundles []token.Trust // at least one
	// broken says why the next bundle does not follow. Then it is not known which bundle was the last one.
	broken error
}

// newBundleChain verifies stored bundles, sorted by version, from that of the manifest on. The manifest was verified. Code:
// bundle_invalid for a manifest with a damaged bundle.
func newBundleChain(m backup.Manifest, stored []keyring.SignedBundle) (c bundleChain, err error) {
	known, err := token.ReadTrust(m.Trust)
	if err != nil {
		return c, err
	}
	c.bundles = []token.Trust{known}
	for _, b := range stored {
		if !b.Version.NewerThan(known.BundleVersion()) && string(b.JWS) == m.Trust {
			continue
		}
		t, err := token.ReadTrust(string(b.JWS))
		if err == nil && c.bundles[0].BundleVersion().NewerThan(t.BundleVersion()) {
			continue // of before the backup
		}
		if err == nil {
			t, err = token.VerifyNextTrust(string(b.JWS), known, time.Time{})
		}
		if err == nil && t.BundleVersion() != b.Version {
			err = watchword.Refuse(watchword.BundleInvalid, "the row has another version than the bundle in it, %s", t.BundleVersion())
		}
		if err != nil {
			c.broken = watchword.Wrap(err, watchword.KeyDamaged, "the trust bundle of version %s is not signed by a root that the backup or a bundle before it names: %s", b.Version, err)
			return c, nil
		}
		known = t
		c.bundles = append(c.bundles, t)
	}
	return c, nil
}

// current returns the index of the bundle that was valid at a time.
func (c bundleChain) current(at time.Time) int {
	for i, t := range slices.Backward(c.bundles) {
		if !t.Issued.After(at) {
			return i
		}
	}
	return 0
}

// logKeys returns the log keys of the bundle that is valid now: a key that was revoked proves nothing, although an earlier bundle names
// it. None if the chain is broken.
func (c bundleChain) logKeys(now time.Time) []ledger.Key {
	if c.broken != nil {
		return nil
	}
	t := c.bundles[c.current(now)]
	return ledger.LogKeys(t.Origin(), t.Log...)
}

// introduces reports whether a bundle names the root of a pin. The root signed that bundle too.
func (c bundleChain) introduces(pin string) bool {
	return slices.ContainsFunc(c.bundles, func(t token.Trust) bool { return slices.Contains(rootPins(t.Roots), pin) })
}

func rootPins(roots []*jose.PublicKey) (pins []string) {
	for _, root := range roots {
		pins = append(pins, token.TrustPin(root))
	}
	return pins
}

// readFolderTrust returns the bundles of an old data folder, and the log keys that they name.
func (r *sourceReader) readFolderTrust(ctx context.Context, f *sqlite.LogFile, now time.Time) (err error) {
	stored, unreadable := f.Bundles(ctx)
	if ctx.Err() != nil {
		return unreadable
	}
	if r.chain, err = newBundleChain(r.m, stored); err != nil {
		return err
	}
	if unreadable != nil { // a damaged database: its entries may be whole
		r.chain.broken = watchword.Wrap(unreadable, watchword.KeyDamaged, "the trust bundles cannot be read: %s", unreadable)
	}
	r.logKeys = r.chain.logKeys(now)
	signed, err := f.Checkpoints(ctx)
	if err != nil {
		r.out.Warnings = append(r.out.Warnings, "the checkpoints in the database cannot be read, and prove no entry: "+err.Error())
	}
	for _, c := range signed {
		r.addProof(c.Size, c.Note)
	}
	return nil
}

// addProof adds a checkpoint that may prove the entries up to its size. Its signature is verified when its root is known.
func (r *sourceReader) addProof(size int64, note []byte) {
	if size > r.m.Log.Size {
		r.proofs[size] = append(r.proofs[size], note)
	}
}

// signedAtSize reports whether a checkpoint of the entries that were taken is signed by a log key of the newest bundle.
func (r *sourceReader) signedAtSize() bool {
	size := r.tree.Size()
	return slices.ContainsFunc(r.proofs[size], func(note []byte) bool {
		c, err := ledger.VerifyCheckpoint(note, r.logKeys...)
		return err == nil && c.Size == size && c.Root == r.tree.Root()
	})
}

// takeProved takes the changes of authority among entries that a signed checkpoint proves.
func (r *sourceReader) takeProved() {
	for _, e := range r.pending {
		r.takeChange(e)
	}
	r.pending = nil
}

// takeUnproved takes the entries that no signed checkpoint proves: a user who can write to the folder can have added them. Those that take
// authority away are applied if the operator accepts them; the others are not.
func (r *sourceReader) takeUnproved() {
	for _, e := range r.pending {
		if outlastsRestore(e) {
			r.out.Unproved = append(r.out.Unproved, e)
		}
		if restrictsSubject(e) || e.Kind == audit.OperatorRecover {
			r.takeChange(e)
		}
	}
	r.pending = nil
}

// restrictsSubject reports whether an act takes authority away from a subject, and gives none.
func restrictsSubject(e audit.Entry) bool {
	_, act, ok := audit.SubjectAct(e.Kind)
	if !ok || e.Outcome != audit.Done {
		return false
	}
	switch act {
	case audit.DeviceRevoke, audit.DeviceSuspend, audit.DeviceDelete, audit.DeviceKeyRevoke:
		return true
	}
	return false
}

// rootStates returns the states of the roots and TLS authorities: those of the backup, and of the acts after it. Nil if the log is damaged.
func (r *sourceReader) rootStates(before []keyring.SealedKey) map[watchword.KeyID]keyring.State {
	if r.out.Damage != "" || r.out.Missing > 0 {
		return nil
	}
	out := map[watchword.KeyID]keyring.State{}
	stays := func(role keyring.Role) bool { return role == keyring.Root || role == keyring.CA }
	for _, k := range before {
		if stays(k.Role) {
			out[k.ID] = k.State
		}
	}
	for _, e := range r.keyActs {
		if !stays(keyring.Role(e.Data["role"])) {
			continue
		}
		id, state := watchword.KeyID(e.Object), keyring.State(e.Data["after"])
		if e.Kind == audit.KeyCreate {
			state = keyring.State(e.Data["state"])
		}
		if before, known := out[id]; !known || state.Follows(before) { // an entry that was added must not undo a revocation
			out[id] = state
		}
	}
	return out
}

// checkFolderKeys compares the keys of an old data folder with its trust bundles and its log. Codes: key_damaged, unavailable.
func (s *Server) checkFolderKeys(ctx context.Context, f *sqlite.LogFile, r *sourceReader) error {
	if r.chain.broken != nil {
		return r.chain.broken
	}
	before, err := s.store.ServerKeys(ctx)
	if err != nil {
		return err
	}
	after, err := f.ServerKeys(ctx)
	if err != nil {
		return watchword.Wrap(err, watchword.KeyDamaged, "they cannot be read")
	}
	return keyring.FolderKeys{Keys: after, Known: before, Bundles: r.chain.bundles, Current: r.chain.current(r.newest), States: r.rootStates(before)}.Check()
}

// checkFolderAddress compares the address that was copied from an old data folder with the bundle that names it. Code: key_damaged.
func (s *Server) checkFolderAddress(ctx context.Context, r *sourceReader) error {
	history, err := s.store.IssuerHistory(ctx)
	if err != nil {
		return err
	}
	t := r.chain.bundles[r.chain.current(r.newest)]
	same := func(a, b token.IssuerPeriod) bool { return a.Issuer == b.Issuer && a.Until.Equal(b.Until) }
	if s.keys.Issuer() != t.Issuer || !slices.EqualFunc(history, t.History, same) {
		return watchword.Refuse(watchword.KeyDamaged, "its addresses are not those of the trust bundle of version %s: the rows were changed", t.BundleVersion())
	}
	return nil
}

// checkRestoredRoot refuses a restore whose chain of bundles, from that of the backup to those of the source, does not have the root of
// a pin, and returns the pins of the roots of the restored server. Code: pin_mismatch.
func (s *Server) checkRestoredRoot(ctx context.Context, m backup.Manifest, pin string) ([]string, error) {
	roots := rootPins(s.keys.Public(keyring.Root))
	stored, err := s.store.Bundles(ctx)
	if err != nil {
		return nil, err
	}
	c, err := newBundleChain(m, stored)
	if err != nil {
		return nil, err
	}
	if pin != "" && !c.introduces(pin) {
		return nil, watchword.Refuse(watchword.PinMismatch, "the backup is of a server with the root %s, and no trust bundle that this root signed, in the backup or in --log, introduces the root %s: it is of another server", m.Root, pin)
	}
	return roots, nil
}
