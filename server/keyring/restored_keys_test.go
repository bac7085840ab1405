package keyring_test

import (
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/token"
)

// A key of an old folder counts only in the state of the log, and if a bundle of the end of the server names it.
func TestKeysOfAnOldFolder(t *testing.T) {
	root := func(state keyring.State) keyring.SealedKey {
		k, err := jose.GenerateKey("P-256")
		if err != nil {
			t.Fatal(err)
		}
		return keyring.SealedKey{ID: k.Public().ID(), Role: keyring.Root, State: state, Public: k.Public().JWK()}
	}
	public := func(s keyring.SealedKey) *jose.PublicKey {
		k, err := jose.ParseJWK(s.Public, jose.ForSigning)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	former, now, next := root(keyring.Retiring), root(keyring.Active), root(keyring.Next)
	both := token.Trust{Roots: []*jose.PublicKey{public(former), public(now)}}
	one := token.Trust{Roots: []*jose.PublicKey{public(now)}}
	of := func(ks ...keyring.SealedKey) map[watchword.KeyID]keyring.State {
		out := map[watchword.KeyID]keyring.State{}
		for _, k := range ks {
			out[k.ID] = k.State
		}
		return out
	}
	revoked, sealed, renamed := former, next, now
	revoked.State, sealed.Private, renamed.ID = keyring.Revoked, []byte{1}, former.ID
	for _, tc := range []struct {
		name    string
		keys    []keyring.SealedKey
		current int
		states  map[watchword.KeyID]keyring.State
		code    watchword.Code
	}{
		{"both are named", []keyring.SealedKey{former, now}, 0, of(former, now), ""},
		{"the log is damaged", []keyring.SealedKey{former, now}, 0, nil, ""},
		{"one is not named any more", []keyring.SealedKey{former, now}, 1, nil, watchword.KeyDamaged},
		{"one is revoked", []keyring.SealedKey{revoked, now}, 1, of(revoked, now), ""},
		{"one is revoked by the log", []keyring.SealedKey{former, now}, 0, of(revoked, now), watchword.KeyDamaged},
		{"one is missing", []keyring.SealedKey{now}, 0, of(former, now), watchword.KeyDamaged},
		{"a revoked one is missing", []keyring.SealedKey{now}, 1, of(revoked, now), ""}, // it could sign nothing
		{"one is not in the log", []keyring.SealedKey{former, now}, 0, of(now), watchword.KeyDamaged},
		{"one that no bundle names", []keyring.SealedKey{now, next}, 1, nil, watchword.KeyDamaged},
		{"one that no bundle names yet, and the server made", []keyring.SealedKey{now, sealed}, 1, nil, ""},
		{"another key with the ID of one that is named", []keyring.SealedKey{renamed}, 0, nil, watchword.KeyDamaged},
	} {
		err := keyring.FolderKeys{Keys: tc.keys, Bundles: []token.Trust{both, one}, Current: tc.current, States: tc.states}.Check()
		if got := watchword.CodeOf(err); err != nil && got != tc.code || err == nil && tc.code != "" {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.code)
		}
	}
	steps := []keyring.State{keyring.Next, keyring.Active, keyring.Retiring, keyring.Gone, keyring.Revoked}
	for i, a := range steps {
		for j, b := range steps {
			if a.Follows(b) != (i > j) {
				t.Errorf("%s follows %s: %t", a, b, a.Follows(b))
			}
		}
	}
}
