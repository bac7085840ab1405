package keyring_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/keyring"
)

func TestATurnFitsTheKeysThatStand(t *testing.T) {
	at := time.Unix(100, 0).UTC()
	end := at.Add(time.Hour)
	key := func(id watchword.KeyID, s keyring.State) keyring.Sealed {
		return keyring.Sealed{ID: id, Role: keyring.Issuer, State: s, Private: []byte("p"), Starts: at}
	}
	move := func(id watchword.KeyID, from, to keyring.State) keyring.Move {
		return keyring.Move{Role: keyring.Issuer, ID: id, From: from, To: to, Starts: at, Ends: end}
	}
	bundle := func(versions ...int64) (out []keyring.SignedBundle) {
		for _, v := range versions {
			out = append(out, keyring.SignedBundle{Version: v})
		}
		return out
	}
	stands := []keyring.Sealed{key("a", keyring.Active), key("n", keyring.Next)}
	stands[0].Role, stands[1].Role = keyring.Issuer, keyring.Issuer
	for _, c := range []struct {
		name string
		turn keyring.Turn
		had  []keyring.SignedBundle
		want string // states of a, n and what is added; empty: conflict
	}{
		{"nothing changes", keyring.Turn{}, bundle(1), "active next "},
		{"one takes the other's place", keyring.Turn{Move: []keyring.Move{move("a", keyring.Active, keyring.Retiring), move("n", keyring.Next, keyring.Active)}}, nil, "retiring active "},
		{"a key that moved meanwhile", keyring.Turn{Move: []keyring.Move{move("a", keyring.Next, keyring.Active)}}, nil, ""},
		{"a key that is not there", keyring.Turn{Move: []keyring.Move{move("b", keyring.Next, keyring.Active)}}, nil, ""},
		{"a key of another role", keyring.Turn{Move: []keyring.Move{{Role: keyring.Command, ID: "a", From: keyring.Active, To: keyring.Gone}}}, nil, ""},
		{"two steps of one key", keyring.Turn{Move: []keyring.Move{move("a", keyring.Active, keyring.Retiring), move("a", keyring.Retiring, keyring.Gone)}}, nil, "gone next "},
		{"the same step twice", keyring.Turn{Move: []keyring.Move{move("a", keyring.Active, keyring.Retiring), move("a", keyring.Active, keyring.Retiring)}}, nil, ""},
		{"a key is added", keyring.Turn{Add: []keyring.Sealed{key("c", keyring.Next)}}, nil, "active next next "},
		{"a later bundle", keyring.Turn{Bundles: bundle(3, 4)}, bundle(1, 2), "active next "},
		{"a bundle of the same version", keyring.Turn{Bundles: bundle(2)}, bundle(1, 2), ""},
		{"an earlier bundle", keyring.Turn{Bundles: bundle(1)}, bundle(2), ""},
		{"two bundles of one version", keyring.Turn{Bundles: bundle(3, 3)}, bundle(2), ""},
		{"a bundle in the place of one that is dropped", keyring.Turn{Bundles: bundle(2), Drop: []int64{2}}, bundle(1, 2), "active next "},
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
			if k.State.Counts() != (len(k.Private) > 0) {
				t.Errorf("%s: %s is %s, with %d private bytes", c.name, k.ID, k.State, len(k.Private))
			}
		}
		if err != nil || got != c.want {
			t.Errorf("%s: got %s, %v", c.name, got, err)
		}
	}
	if want := []keyring.Sealed{key("a", keyring.Active), key("n", keyring.Next)}; !reflect.DeepEqual(stands, want) {
		t.Errorf("what it got is %+v now", stands)
	}
}
