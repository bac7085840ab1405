package storetest

import (
	"fmt"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/token"
)

func bundles(t *T) {
	none, err := t.Bundles(t.ctx)
	t.must(err)
	equal(t, "bundles before the first", len(none), 0)
	b := func(v int64) keyring.KeyUpdate {
		return keyring.KeyUpdate{Bundles: []keyring.SignedBundle{{Version: token.BundleVersion{Epoch: 1, Number: v}, JWS: []byte(fmt.Sprint("jws", v)), Starts: t.now, Expires: t.now.Add(time.Hour)}}}
	}
	e := t.entry(audit.BundleSign, "")
	t.must(t.RotateKeys(t.ctx, b(2), e))
	t.wantCode(watchword.Conflict, t.RotateKeys(t.ctx, b(2), e))
	t.wantCode(watchword.Conflict, t.RotateKeys(t.ctx, b(1), e))
	t.must(t.RotateKeys(t.ctx, b(3), e))
	got, err := t.Bundles(t.ctx)
	t.must(err)
	if len(got) != 2 || got[1].Version.Number != 3 || string(got[1].JWS) != "jws3" || !got[1].Expires.Equal(t.now.Add(time.Hour)) || !got[1].Starts.Equal(t.now) {
		t.Fatalf("got %+v", got)
	}
	turn := b(3)
	turn.DropBundles = []token.BundleVersion{{Epoch: 1, Number: 3}}
	t.must(t.RotateKeys(t.ctx, turn, e))
	higher := b(1) // a higher epoch counts more than a higher number
	higher.Bundles[0].Version.Epoch = 2
	t.must(t.RotateKeys(t.ctx, higher, e))
	t.wantCode(watchword.Conflict, t.RotateKeys(t.ctx, b(4), e))
	got, err = t.Bundles(t.ctx)
	t.must(err)
	if len(got) != 3 || got[2].Version != (token.BundleVersion{Epoch: 2, Number: 1}) {
		t.Fatalf("got %+v", got)
	}
	equal(t, "entries", t.log(), 4)
}

func rotatingKeys(t *T) {
	key := func(id watchword.KeyID, state keyring.State) keyring.SealedKey {
		return keyring.SealedKey{ID: id, Role: keyring.Issuer, State: state, Public: []byte("public"), Private: []byte("private"), Created: t.now, Starts: t.now}
	}
	state := func() map[watchword.KeyID]keyring.SealedKey {
		ks, err := t.ServerKeys(t.ctx)
		t.must(err)
		out := map[watchword.KeyID]keyring.SealedKey{}
		for _, k := range ks {
			out[k.ID] = k
		}
		return out
	}
	e := t.entry(audit.KeyCreate, "")
	t.must(t.RotateKeys(t.ctx, keyring.KeyUpdate{Add: []keyring.SealedKey{key("old", keyring.Active), key("new", keyring.Next)}}, e, e))
	end := t.now.Add(time.Hour)
	swap := keyring.KeyUpdate{Change: []keyring.StateChange{
		{Role: keyring.Issuer, ID: "old", From: keyring.Active, To: keyring.Retiring, Starts: t.now, Ends: end},
		{Role: keyring.Issuer, ID: "new", From: keyring.Next, To: keyring.Active, Starts: end},
	}}
	t.must(t.RotateKeys(t.ctx, swap, e))
	ks := state()
	if k := ks["old"]; k.State != keyring.Retiring || !k.Ends.Equal(end) || string(k.Private) != "private" {
		t.Fatalf("the old key: %+v", k)
	}
	if k := ks["new"]; k.State != keyring.Active || !k.Starts.Equal(end) {
		t.Fatalf("the new key: %+v", k)
	}

	// The second of two concurrent steps finds the keys changed, and writes nothing, not even its valid parts.
	late := swap
	late.Add = []keyring.SealedKey{key("third", keyring.Next)}
	t.wantCode(watchword.Conflict, t.RotateKeys(t.ctx, late, e))
	equal(t, "keys", len(state()), 2)
	errs := race(8, func(int) error {
		return t.RotateKeys(t.ctx, keyring.KeyUpdate{Change: []keyring.StateChange{{Role: keyring.Issuer, ID: "old", From: keyring.Retiring, To: keyring.Gone, Starts: t.now, Ends: end}}}, e)
	})
	if n := count(errs); n[""] != 1 || n[watchword.Conflict] != 7 {
		t.Fatalf("eight at once: %v", n)
	}
	ks = state()
	if k := ks["old"]; len(k.Private) != 0 || string(k.Public) != "public" {
		t.Fatalf("a key that is gone: %+v", k)
	}
	t.must(t.RotateKeys(t.ctx, keyring.KeyUpdate{Change: []keyring.StateChange{{Role: keyring.Issuer, ID: "new", From: keyring.Active, To: keyring.Active, Starts: end, Private: []byte{}}}}, e))
	equal(t, "private bytes of a key that was taken away", len(state()["new"].Private), 0)
	t.must(t.RotateKeys(t.ctx, keyring.KeyUpdate{Change: []keyring.StateChange{{Role: keyring.Issuer, ID: "new", From: keyring.Active, To: keyring.Active, Starts: end, Private: []byte("back")}}}, e))
	equal(t, "private bytes of a key that came back", string(state()["new"].Private), "back")
	equal(t, "entries", t.log(), 6)
}
