package storetest

import (
	"fmt"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/enroll"
)

// rekeying is lamp-1's change to the keys NAME-sign and NAME-seal.
func (t *T) rekeying(from watchword.KeyID, sign, seal, jti string) enroll.KeyChange {
	key := func(id string, p watchword.Purpose) watchword.Key {
		return watchword.Key{ID: watchword.KeyID(id), Purpose: p, JWK: []byte(`{"kty":"test"}`), State: watchword.KeyActive, Added: t.now}
	}
	return enroll.KeyChange{
		Tenant: tenant, Subject: "lamp-1", Incarnation: 1, From: from, Sign: key(sign, watchword.Sign), Seal: key(seal, watchword.Seal), Spent: t.spend(jti),
	}
}

func (t *T) rekey(r enroll.KeyChange) (watchword.Subject, bool, error) {
	return t.Rekey(t.ctx, r, t.now, t.entry(audit.DeviceRekey, "lamp-1"))
}

func rekeyOnce(t *T) {
	before := t.enrolled("lamp-1")
	n := t.log()
	t.now = t.now.Add(time.Minute)
	first := t.rekeying("lamp-1-sign", "b-sign", "b-seal", "j1")
	s, replay, err := t.rekey(first)
	t.must(err)
	equal(t, "replay", replay, false)
	equal(t, "version", s.Version, before.Version+1)
	equal(t, "incarnation", s.Incarnation, 1)
	equal(t, "state", s.State, watchword.Active)
	equal(t, "entries", t.log(), n+1)
	for id, want := range map[watchword.KeyID]watchword.KeyState{
		"lamp-1-sign": watchword.KeyRetired, "lamp-1-seal": watchword.KeyRetired, "b-sign": watchword.KeyActive, "b-seal": watchword.KeyActive,
	} {
		for _, k := range s.Keys {
			if k.ID == id && (k.State != want || k.Retired.Equal(t.now) != (want == watchword.KeyRetired)) {
				t.Fatalf("%s is %s, retired at %s", id, k.State, k.Retired)
			}
		}
	}
	seal, _ := s.SealKey(t.now)
	equal(t, "sealing key", seal.ID, "b-seal")

	_, replay, err = t.rekey(first)
	t.must(err)
	equal(t, "the same again", replay, true)
	equal(t, "entries after the same again", t.log(), n+1)
	t.wantCode(watchword.ClientInvalid, t.IssueToken(t.ctx, t.record("tok_1", "lamp-1"), t.spend("a"), t.entry(audit.TokenIssue, "tok_1")))

	_, _, err = t.rekey(t.rekeying("lamp-1-sign", "c-sign", "c-seal", "j2"))
	t.wantCode(watchword.ClientInvalid, err) // by the retired key
	_, _, err = t.rekey(t.rekeying("b-sign", "c-sign", "c-seal", "j1"))
	t.wantCode(watchword.TokenReplayed, err)
	_, _, err = t.rekey(t.rekeying("b-sign", "lamp-1-sign", "c-seal", "j3"))
	t.wantCode(watchword.Conflict, err) // back to a key that was used
	t.add("lamp-2", nil)
	t.enroll("lamp-2", "lamp-2")
	_, _, err = t.rekey(t.rekeying("b-sign", "c-sign", "lamp-2-seal", "j3"))
	t.wantCode(watchword.Conflict, err) // another's
	n = t.log()

	s, _, err = t.rekey(t.rekeying("b-sign", "b-sign", "c-seal", "j3")) // a refused one spends nothing
	t.must(err)
	if k, ok := s.SignKey("b-sign", t.now); !ok || !k.Retired.IsZero() {
		t.Fatal("the signing key did not stay")
	}
	s, _, err = t.rekey(t.rekeying("b-sign", "c-sign", "c-seal", "j4"))
	t.must(err)
	seal, _ = s.SealKey(t.now)
	equal(t, "the sealing key that stayed", seal.ID, "c-seal")
	equal(t, "entries", t.log(), n+2)

	e := t.entry(audit.DeviceSuspend, "lamp-1")
	_, err = t.Suspend(t.ctx, tenant, "lamp-1", t.now, e)
	t.must(err)
	_, _, err = t.rekey(t.rekeying("c-sign", "d-sign", "d-seal", "j5"))
	t.wantCode(watchword.SubjectSuspended, err)
	_, err = t.Revoke(t.ctx, tenant, "lamp-1", t.now, e)
	t.must(err)
	_, _, err = t.rekey(t.rekeying("c-sign", "d-sign", "d-seal", "j5"))
	t.wantCode(watchword.SubjectRevoked, err)
	s = t.enroll("lamp-1", "e")
	for _, k := range s.Keys {
		equal(t, string(k.ID)+" of an earlier life", k.State == watchword.KeyRevoked, k.ID != "e-sign" && k.ID != "e-seal")
	}
	_, _, err = t.rekey(t.rekeying("e-sign", "f-sign", "f-seal", "j6")) // as of its first life
	t.wantCode(watchword.ClientInvalid, err)
}

func rekeyRace(t *T) {
	t.enrolled("lamp-1")
	n := t.log()
	errs := count(race(8, func(i int) error {
		_, _, err := t.rekey(t.rekeying("lamp-1-sign", fmt.Sprint("s", i), fmt.Sprint("e", i), fmt.Sprint("j", i)))
		return err
	}))
	if errs[""] != 1 || errs[watchword.ClientInvalid] != 7 {
		t.Fatalf("eight key changes from one key ended with %v", errs)
	}
	equal(t, "entries", t.log(), n+1)
}

func rekeyBound(t *T) {
	t.enrolled("lamp-1")
	from, made := watchword.KeyID("lamp-1-sign"), 0
	var err error
	for ; err == nil && made < 2*watchword.MaxNewKeys; made++ {
		r := t.rekeying(from, fmt.Sprint("s", made), "lamp-1-seal", fmt.Sprint("j", made))
		if _, _, err = t.rekey(r); err == nil {
			from = r.Sign.ID
		}
	}
	t.wantCode(watchword.RateLimited, err)
	equal(t, "changes that passed", made-1, watchword.MaxNewKeys-2) // enrollment brought two keys
	_, err = t.Revoke(t.ctx, tenant, "lamp-1", t.now, t.entry(audit.DeviceRevoke, "lamp-1"))
	t.must(err)
	t.enroll("lamp-1", "back") // the thief of a key cannot keep a revoked device from coming back
	from = "back-sign"
	for i := range 2 * (watchword.MaxNewKeys - 2) {
		if i%(watchword.MaxNewKeys-2) == 0 {
			t.now = t.now.Add(watchword.NewKeysWindow)
		}
		r := t.rekeying(from, fmt.Sprint("late", i), "back-seal", fmt.Sprint("l", i))
		r.Incarnation = 2
		_, _, err = t.rekey(r)
		t.must(err)
		from = r.Sign.ID
	}
	s, err := t.Subject(t.ctx, tenant, "lamp-1")
	t.must(err)
	if len(s.Keys) > watchword.MaxKeysReturned+1 {
		t.Fatalf("%d keys come with the subject", len(s.Keys))
	}
	if k, ok := s.SealKey(t.now); !ok || k.ID != "back-seal" {
		t.Fatal("an old key, which is active, does not come with the subject")
	}
	r := t.rekeying(from, "lamp-1-sign", "back-seal", "again")
	r.Incarnation = 2
	_, _, err = t.rekey(r)
	t.wantCode(watchword.Conflict, err) // used long ago, and not shown any more
}
