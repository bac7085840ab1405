package keyring

import (
	"bytes"
	"slices"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// FolderKeys are the keys in the data folder of an old server, and what they are compared with. A user who can write to the folder
// can change its rows, and cannot sign a trust bundle or an entry of its log.
type FolderKeys struct {
	Keys  []SealedKey
	Known []SealedKey // of the backup
	// Bundles are those that the root of the backup signed, and the roots that they introduce: that of the backup, and all after it.
	Bundles []token.Trust
	Current int // index of the one that was valid when the server ended
	// States are the states of the roots and TLS authorities by the log; nil: the log is not known whole.
	States map[watchword.KeyID]State
}

// Check returns an error if a root, a TLS authority or a log key is neither named by a trust bundle nor was made by the server: a
// valid root or TLS authority must be in the bundle that was valid at the end or in a later one, and have its state of the log.
// Private keys are not opened. Code: key_damaged.
func (f FolderKeys) Check() error {
	seen := map[watchword.KeyID]bool{}
	for _, s := range f.Keys {
		if s.Role != Root && s.Role != CA && s.Role != Log {
			continue // a restore replaces them
		}
		seen[s.ID] = true
		if s.Role != Log && f.States != nil && f.States[s.ID] != s.State {
			return watchword.Refuse(watchword.KeyDamaged, "the %s key %s is %s, and by the log it is %q", s.Role, s.ID, s.State, f.States[s.ID])
		}
		if s.Role != Log && !s.State.Valid() {
			continue
		}
		if pub, err := jose.ParseJWK(s.Public, jose.ForSigning); err != nil || pub.ID() != s.ID {
			return watchword.Wrap(err, watchword.KeyDamaged, "the %s key %s is damaged", s.Role, s.ID)
		}
		if !f.authentic(s) {
			return watchword.Refuse(watchword.KeyDamaged, "the %s key %s is %s, and no trust bundle that a root of this server signed names it: the row was changed", s.Role, s.ID, s.State)
		}
	}
	for id, state := range f.States {
		if state.Valid() && !seen[id] {
			return watchword.Refuse(watchword.KeyDamaged, "the key %s is missing, and by the log it is %s", id, state)
		}
	}
	return nil
}

func (f FolderKeys) authentic(s SealedKey) bool {
	bundles := f.Bundles[f.Current:]
	if s.Role == Log { // former keys verify former checkpoints
		bundles = f.Bundles
		if slices.ContainsFunc(f.Known, func(k SealedKey) bool { return k.Role == Log && k.ID == s.ID && bytes.Equal(k.Public, s.Public) }) {
			return true
		}
	}
	if slices.ContainsFunc(bundles, func(t token.Trust) bool { return bundleHasKey(t, s) }) {
		return true
	}
	// A key that does not sign yet may be in no bundle, while its root is offline. Only the server can have encrypted its private part.
	return s.State == Next && len(s.Private) > 0
}
