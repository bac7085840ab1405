package keyring_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/token"
)

func TestKeyUpdateAppliesToCurrentKeys(t *testing.T) {
	at := time.Unix(100, 0).UTC()
	end := at.Add(time.Hour)
	key := func(id watchword.KeyID, s keyring.State) keyring.SealedKey {
		return keyring.SealedKey{ID: id, Role: keyring.Issuer, State: s, Private: []byte("p"), Starts: at}
	}
	move := func(id watchword.KeyID, from, to keyring.State) keyring.StateChange {
		return keyring.StateChange{Role: keyring.Issuer, ID: id, From: from, To: to, Starts: at, Ends: end}
	}
	bundle := func(versions ...int64) (out []keyring.SignedBundle) {
		for _, v := range versions {
			out = append(out, keyring.SignedBundle{Version: token.BundleVersion{Epoch: 1, Number: v}})
		}
		return out
	}
	stands := []keyring.SealedKey{key("a", keyring.Active), key("n", keyring.Next)}
	stands[0].Role, stands[1].Role = keyring.Issuer, keyring.Issuer
	for _, c := range []struct {
		name string
		turn keyring.KeyUpdate
		had  []keyring.SignedBundle
		want string // states of a, n and what is added; empty: conflict
	}{
		{"nothing changes", keyring.KeyUpdate{}, bundle(1), "active next "},
		{"one takes the other's place", keyring.KeyUpdate{Change: []keyring.StateChange{move("a", keyring.Active, keyring.Retiring), move("n", keyring.Next, keyring.Active)}}, nil, "retiring active "},
		{"a key that moved meanwhile", keyring.KeyUpdate{Change: []keyring.StateChange{move("a", keyring.Next, keyring.Active)}}, nil, ""},
		{"a key that is not there", keyring.KeyUpdate{Change: []keyring.StateChange{move("b", keyring.Next, keyring.Active)}}, nil, ""},
		{"a key of another role", keyring.KeyUpdate{Change: []keyring.StateChange{{Role: keyring.Command, ID: "a", From: keyring.Active, To: keyring.Gone}}}, nil, ""},
		{"two steps of one key", keyring.KeyUpdate{Change: []keyring.StateChange{move("a", keyring.Active, keyring.Retiring), move("a", keyring.Retiring, keyring.Gone)}}, nil, "gone next "},
		{"the same step twice", keyring.KeyUpdate{Change: []keyring.StateChange{move("a", keyring.Active, keyring.Retiring), move("a", keyring.Active, keyring.Retiring)}}, nil, ""},
		{"a key is added", keyring.KeyUpdate{Add: []keyring.SealedKey{key("c", keyring.Next)}}, nil, "active next next "},
		{"a later bundle", keyring.KeyUpdate{Bundles: bundle(3, 4)}, bundle(1, 2), "active next "},
		{"a bundle of the same version", keyring.KeyUpdate{Bundles: bundle(2)}, bundle(1, 2), ""},
		{"an earlier bundle", keyring.KeyUpdate{Bundles: bundle(1)}, bundle(2), ""},
		{"two bundles of one version", keyring.KeyUpdate{Bundles: bundle(3, 3)}, bundle(2), ""},
		{"a bundle in the place of one that is dropped", keyring.KeyUpdate{Bundles: bundle(2), DropBundles: []token.BundleVersion{{Epoch: 1, Number: 2}}}, bundle(1, 2), "active next "},
		{"the first bundle of a higher epoch", keyring.KeyUpdate{Bundles: []keyring.SignedBundle{{Version: token.BundleVersion{Epoch: 2, Number: 1}}}}, bundle(1, 2), "active next "},
		{"a later bundle of a lower epoch", keyring.KeyUpdate{Bundles: bundle(3)}, []keyring.SignedBundle{{Version: token.BundleVersion{Epoch: 2, Number: 1}}}, ""},
	} {
		ks, err := c.turn.Apply(stands, c.had)
		if c.want == "" {
			if watchword.CodeOf(err) != watchword.Conflict {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		got := ""
		for _, k := range ks {
			got += string(k.State) + " "
			if k.State.Valid() != (len(k.Private) > 0) {
				t.Errorf("%s: %s is %s, with %d private bytes", c.name, k.ID, k.State, len(k.Private))
			}
		}
		if err != nil || got != c.want {
			t.Errorf("%s: got %s, %v", c.name, got, err)
		}
	}
	if want := []keyring.SealedKey{key("a", keyring.Active), key("n", keyring.Next)}; !reflect.DeepEqual(stands, want) {
		t.Errorf("what it got is %+v now", stands)
	}
}
