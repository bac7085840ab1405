package storetest

import (
	"fmt"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/enroll"
)

var (
	operatorEnroll    = audit.KindFor(watchword.Operator, audit.DeviceEnroll)
	operatorKeyRevoke = audit.KindFor(watchword.Operator, audit.DeviceKeyRevoke)
	operatorKeyRetire = audit.KindFor(watchword.Operator, audit.DeviceKeyRetire)
)

// addKey gives a subject the further signing key NAME-sign, which ends at ends.
func (t *T) addKey(id watchword.SubjectID, name string, ends time.Time) (watchword.Subject, error) {
	c := t.code(id, "code of "+name)
	c.KeyEnds = ends
	if err := t.AddCode(t.ctx, c, t.entry(audit.KindFor(watchword.Operator, audit.DeviceLink), string(id))); err != nil {
		return watchword.Subject{}, err
	}
	s, _, err := t.RedeemCode(t.ctx, t.signing(name), t.now, t.entry(operatorEnroll, string(id)))
	return s, err
}

// signing redeems the code of addKey.
func (t *T) signing(name string) enroll.Redemption {
	r := t.redemption("code of "+name, name)
	r.Seal, r.Sign.Name = watchword.Key{}, "machine "+name
	return r
}

// issueTo records a token that is issued to a key of alice and expires in ten minutes.
func (t *T) issueTo(key watchword.KeyID) error {
	jti := watchword.NewID("tok_", t.now)
	r := t.record(jti, "alice")
	r.Key = key
	return t.IssueToken(t.ctx, r, t.spend(jti), t.entry(audit.TokenIssue, jti))
}

// newKeysBound: keys that come by links and are revoked again leave a bounded history.
func newKeysBound(t *T) {
	t.operator("alice", watchword.OwnerRole)
	link, e := t.entry(audit.KindFor(watchword.Operator, audit.DeviceLink), "alice"), t.entry(operatorEnroll, "alice")
	maker := watchword.SubjectID("alice")
	add := func(name string) error {
		c := t.code("alice", "code of "+name)
		c.CreatedBy = maker
		if err := t.AddCode(t.ctx, c, link); err != nil {
			return err
		}
		_, _, err := t.RedeemCode(t.ctx, t.signing(name), t.now, e)
		t.must(err)
		_, err = t.RevokeKey(t.ctx, tenant, "alice", watchword.KeyID(name)+"-sign", t.now, link)
		t.must(err)
		return nil
	}
	made, err := 0, error(nil)
	for ; err == nil && made <= watchword.MaxNewKeys; made++ {
		err = add(fmt.Sprint("k", made))
	}
	t.wantCode(watchword.RateLimited, err)
	equal(t, "keys that were added", made-1, watchword.MaxNewKeys-2) // the enrollment brought two keys
	// Links of others still work after the subject itself, or the thief of its key, has used up its own.
	maker = "operator"
	for made, err = 0, nil; err == nil && made <= watchword.MaxNewKeysByOthers; made++ {
		err = add(fmt.Sprint("of-others-", made))
	}
	t.wantCode(watchword.RateLimited, err)
	equal(t, "keys that others added", made-1, watchword.MaxNewKeysByOthers-watchword.MaxNewKeys)
	t.now = t.now.Add(watchword.NewKeysWindow)
	link.At, e.At = t.now, t.now
	for i := range watchword.MaxKeysReturned {
		t.must(add(fmt.Sprint("a-day-later-", i)))
	}
	_, err = t.RevokeKey(t.ctx, tenant, "alice", "k0-sign", t.now, link) // it does not come with the subject any more
	t.must(err)
	_, err = t.RevokeKey(t.ctx, tenant, "alice", "unknown", t.now, link)
	t.wantCode(watchword.NotFound, err)
}

// keyEndSet: a key that is there gets an end, and the last owner keeps a key without one.
func keyEndSet(t *T) {
	before := t.operator("alice", watchword.OwnerRole)
	end, e := t.now.Add(time.Hour), t.entry(audit.KindFor(watchword.Operator, audit.DeviceKeyEnd), "alice")
	n := t.log()
	_, err := t.SetKeyEnd(t.ctx, tenant, "alice", "alice-sign", end, t.now, e)
	t.wantCode(watchword.Conflict, err)
	_, err = t.SetKeyEnd(t.ctx, tenant, "nobody", "alice-sign", end, t.now, e)
	t.wantCode(watchword.NotFound, err)
	_, err = t.SetKeyEnd(t.ctx, otherTenant, "alice", "alice-sign", end, t.now, e)
	t.wantCode(watchword.NotFound, err)
	equal(t, "entries of what was refused", t.log(), n)
	t.operator("bob", watchword.OwnerRole)
	s, err := t.SetKeyEnd(t.ctx, tenant, "alice", "alice-sign", end, t.now, e)
	t.must(err)
	equal(t, "the authority version has grown", s.AuthorityVersion > before.AuthorityVersion, true)
	got, err := t.Subject(t.ctx, tenant, "alice")
	t.must(err)
	k, ok := got.SignKey("alice-sign", end.Add(-time.Millisecond))
	equal(t, "the key before its end", ok && k.Ends.Equal(end), true)
	_, ok = got.SignKey("alice-sign", end)
	equal(t, "the key at its end", ok, false)
	t.must(t.issueTo("alice-sign"))
	_, err = t.SetKeyEnd(t.ctx, tenant, "bob", "bob-sign", end, t.now, e) // alice has a key, but with an end
	t.wantCode(watchword.Conflict, err)
	ids, err := t.SubjectsWithEndingKeys(t.ctx, tenant, t.now, end, 10)
	t.must(err)
	equal(t, "subjects with ending keys", fmt.Sprint(ids), "[alice]")
}

// keysOfAnOperator: a link of an active operator adds a key, and one key is revoked without the others.
func keysOfAnOperator(t *T) {
	before := t.operator("alice", watchword.OwnerRole)
	n := t.log()
	s, err := t.addKey("alice", "desktop", time.Time{})
	t.must(err)
	equal(t, "state", s.State, watchword.Active)
	equal(t, "incarnation", s.Incarnation, before.Incarnation)
	equal(t, "keys that sign", s.SignKeys(t.now), 2)
	if s.AuthorityVersion <= before.AuthorityVersion {
		t.Errorf("the authority version was %d and is %d", before.AuthorityVersion, s.AuthorityVersion)
	}
	got, err := t.Subject(t.ctx, tenant, "alice")
	t.must(err)
	k, ok := got.SignKey("desktop-sign", t.now)
	equal(t, "the key is there", ok, true)
	equal(t, "its name", k.Name, "machine desktop")
	equal(t, "its end", k.Ends.IsZero(), true)
	// The same code with the same key again changes nothing; another key is refused.
	_, replay, err := t.RedeemCode(t.ctx, t.signing("desktop"), t.now, t.entry(operatorEnroll, "alice"))
	t.must(err)
	equal(t, "replay", replay, true)
	other := t.signing("desktop")
	other.Sign.ID = "thief-sign"
	_, _, err = t.RedeemCode(t.ctx, other, t.now, t.entry(operatorEnroll, "alice"))
	t.wantCode(watchword.CodeInvalid, err)
	equal(t, "entries", t.log(), n+2) // the link and the enrollment

	for i := 2; i < watchword.MaxSignKeys; i++ {
		_, err := t.addKey("alice", fmt.Sprint("more-", i), time.Time{})
		t.must(err)
	}
	_, err = t.addKey("alice", "too-many", time.Time{})
	t.wantCode(watchword.Conflict, err)
	t.must(t.issueTo("desktop-sign"))
	// A link that is made before the key is revoked does not outlast it: its maker may have held that key.
	_, err = t.RevokeKey(t.ctx, tenant, "alice", "more-2-sign", t.now, t.entry(operatorKeyRevoke, "alice"))
	t.must(err)
	t.must(t.AddCode(t.ctx, t.code("alice", "code of spare"), t.entry(audit.KindFor(watchword.Operator, audit.DeviceLink), "alice")))
	n = t.log()
	s, err = t.RevokeKey(t.ctx, tenant, "alice", "desktop-sign", t.now, t.entry(operatorKeyRevoke, "alice"))
	t.must(err)
	_, signs := s.SignKey("desktop-sign", t.now)
	_, stays := s.SignKey("alice-sign", t.now)
	equal(t, "the revoked key signs", signs, false)
	equal(t, "the first key signs", stays, true)
	t.wantCode(watchword.ClientInvalid, t.issueTo("desktop-sign"))
	t.must(t.issueTo("alice-sign"))
	_, _, err = t.RedeemCode(t.ctx, t.signing("spare"), t.now, t.entry(operatorEnroll, "alice"))
	t.wantCode(watchword.CodeInvalid, err)
	_, err = t.RevokeKey(t.ctx, tenant, "alice", "desktop-sign", t.now, t.entry(operatorKeyRevoke, "alice")) // again
	t.must(err)
	equal(t, "entries", t.log(), n+2) // the revocation, and the token that was issued
	_, err = t.addKey("alice", "desktop", time.Time{})
	t.wantCode(watchword.Conflict, err) // the same key does not come back
	_, err = t.RevokeKey(t.ctx, tenant, "alice", "no-such", t.now, t.entry(operatorKeyRevoke, "alice"))
	t.wantCode(watchword.NotFound, err)
	_, err = t.RevokeKey(t.ctx, otherTenant, "alice", "alice-sign", t.now, t.entry(operatorKeyRevoke, "alice"))
	t.wantCode(watchword.NotFound, err)
	t.enrolled("lamp-1")
	_, err = t.RevokeKey(t.ctx, tenant, "lamp-1", "lamp-1-sign", t.now, t.entry(audit.DeviceKeyRevoke, "lamp-1"))
	t.wantCode(watchword.Conflict, err)
	t.wantCode(watchword.Conflict, t.AddCode(t.ctx, t.code("lamp-1", "c"), t.entry(audit.DeviceLink, "lamp-1")))
}

// keysEnd: a token does not outlive its key, a code gives no key past its end, and ended keys are retired, some at a time.
func keysEnd(t *T) {
	end := t.now.Add(5 * time.Minute)
	for i := range 3 {
		id := watchword.SubjectID(fmt.Sprint("alice-", i))
		t.operator(id, watchword.OwnerRole)
		_, err := t.addKey(id, string(id)+"-short", end)
		t.must(err)
		_, err = t.addKey(id, string(id)+"-long", end.Add(time.Hour))
		t.must(err)
	}
	s, err := t.Subject(t.ctx, tenant, "alice-0")
	t.must(err)
	k, ok := s.SignKey("alice-0-short-sign", end.Add(-time.Millisecond))
	equal(t, "the key is valid before its end", ok, true)
	equal(t, "its end", k.Ends.Equal(end), true)
	r := t.record("tok_1", "alice-0")
	r.Key, r.Expires = "alice-0-short-sign", end.Add(time.Second)
	t.wantCode(watchword.ClientInvalid, t.IssueToken(t.ctx, r, t.spend("a"), t.entry(audit.TokenIssue, "tok_1")))
	r.Expires = end
	t.must(t.IssueToken(t.ctx, r, t.spend("a"), t.entry(audit.TokenIssue, "tok_1")))

	c := t.code("alice-0", "code of late")
	c.KeyEnds = end
	t.must(t.AddCode(t.ctx, c, t.entry(audit.KindFor(watchword.Operator, audit.DeviceLink), "alice-0")))
	_, _, err = t.RedeemCode(t.ctx, t.signing("late"), end, t.entry(operatorEnroll, "alice-0"))
	t.wantCode(watchword.CodeInvalid, err)

	ending := func(tenant watchword.TenantID, now, until time.Time, limit, want int) {
		t.Helper()
		ids, err := t.SubjectsWithEndingKeys(t.ctx, tenant, now, until, limit)
		t.must(err)
		equal(t, fmt.Sprintf("subjects with a key that ends from %s to %s", now.Sub(end), until.Sub(end)), len(ids), want)
	}
	ending(tenant, t.now, end.Add(-time.Millisecond), 10, 0)
	ending(tenant, t.now, end, 10, 3)
	ending(tenant, t.now, end.Add(2*time.Hour), 10, 3) // each once, with two such keys
	ending(tenant, t.now, end, 2, 2)
	ending(tenant, end, end.Add(time.Minute), 10, 0)
	ending(otherTenant, t.now, end, 10, 0)
	for _, sub := range []watchword.Subject{{ID: "a-service", Kind: watchword.Service}, {ID: "z-owner", Kind: watchword.Operator, Role: watchword.OwnerRole}} {
		sub.Tenant, sub.State, sub.Created, sub.Changed = tenant, watchword.New, t.now, t.now
		c := t.code(sub.ID, "code of "+string(sub.ID))
		c.KeyEnds = end.Add(-time.Second)
		t.must(t.CreateSubject(t.ctx, sub, &c, t.entry(audit.KindFor(sub.Kind, audit.DeviceCreate), string(sub.ID))))
		_, _, err := t.RedeemCode(t.ctx, t.signing(string(sub.ID)), t.now, t.entry(audit.KindFor(sub.Kind, audit.DeviceEnroll), string(sub.ID)))
		t.must(err)
	}
	ids, err := t.SubjectsWithEndingKeys(t.ctx, tenant, t.now, end, 10)
	t.must(err)
	equal(t, "operators first, those that end first before the others", fmt.Sprint(ids), "[z-owner alice-0 alice-1 alice-2 a-service]")
	for _, id := range []watchword.SubjectID{"a-service", "z-owner"} {
		t.must(t.DeleteSubject(t.ctx, tenant, id, t.now, t.entry(audit.DeviceDelete, string(id))))
	}

	entry := audit.FixedEntry[watchword.Subject](t.entry(operatorKeyRetire, "x"))
	retire := func(now time.Time, limit, want int) {
		t.Helper()
		n := t.log()
		changed, err := t.RetireEndedKeys(t.ctx, now, limit, entry)
		t.must(err)
		equal(t, fmt.Sprintf("retired at %s of %d", now.Sub(end), limit), len(changed), want)
		equal(t, "entries", t.log(), n+want)
		for _, s := range changed {
			equal(t, "keys that sign", s.SignKeys(t.now), 2)
			for _, k := range s.Keys {
				ended := k.Ends.Equal(end)
				equal(t, string(k.ID)+" is retired", k.State == watchword.KeyRetired, ended)
				equal(t, string(k.ID)+" is retired at its end", k.Retired.Equal(end), ended)
			}
		}
	}
	retire(end.Add(-time.Millisecond), 100, 0)
	retire(end, 2, 2)
	retire(end, 2, 1)
	retire(end, 2, 0)
}

// lastOwnerKeepsAKey: the last key without an end of the last owner who has one is not revoked, and keys with an end do not count.
func lastOwnerKeepsAKey(t *T) {
	t.operator("alice", watchword.OwnerRole)
	revoke := func(id watchword.SubjectID, key watchword.KeyID) error {
		_, err := t.RevokeKey(t.ctx, tenant, id, key, t.now, t.entry(operatorKeyRevoke, string(id)))
		return err
	}
	suspend := func(id watchword.SubjectID) error {
		_, err := t.Suspend(t.ctx, tenant, id, t.now, t.entry(audit.KindFor(watchword.Operator, audit.DeviceSuspend), string(id)))
		return err
	}
	t.wantCode(watchword.Conflict, revoke("alice", "alice-sign"))
	_, err := t.addKey("alice", "console", t.now.Add(time.Hour))
	t.must(err)
	t.wantCode(watchword.Conflict, revoke("alice", "alice-sign")) // the console's ends
	_, err = t.addKey("alice", "desktop", time.Time{})
	t.must(err)
	t.must(revoke("alice", "alice-sign"))
	t.wantCode(watchword.Conflict, revoke("alice", "desktop-sign"))
	t.must(revoke("alice", "console-sign"))

	// An owner whose keys all end is no other owner.
	t.operator("bob", watchword.OwnerRole)
	_, err = t.addKey("bob", "bob-console", t.now.Add(time.Hour))
	t.must(err)
	t.must(revoke("bob", "bob-sign"))
	t.wantCode(watchword.Conflict, suspend("alice"))
	t.wantCode(watchword.Conflict, revoke("alice", "desktop-sign"))
	t.must(suspend("bob"))

	// Two owners whose last keys are revoked at once: one keeps its key.
	t.operator("carol", watchword.OwnerRole)
	errs := count(race(2, func(i int) error {
		return revoke([]watchword.SubjectID{"alice", "carol"}[i], []watchword.KeyID{"desktop-sign", "carol-sign"}[i])
	}))
	if errs[""] != 1 || errs[watchword.Conflict] != 1 {
		t.Errorf("both keys at once: %v", errs)
	}
}
