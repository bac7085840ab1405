package storetest

import (
	"bytes"
	"fmt"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/token"
)

func initialized(t *T) {
	_, err := t.Instance(t.ctx)
	t.wantCode(watchword.NotFound, err)
	f := keyring.Instance{Issuer: "https://localhost:1", Epoch: 1, At: t.now}
	keys := []keyring.SealedKey{
		{ID: "kek", Role: keyring.Data, State: keyring.Active, Private: []byte{1}, Created: t.now},
		{ID: "ca", Role: keyring.CA, State: keyring.Active, Public: []byte("{}"), Private: []byte{2}, Cert: []byte{3}, Created: t.now},
	}
	operator := watchword.Subject{
		Tenant: tenant, ID: "operator", Kind: watchword.Operator, State: watchword.Active, Role: "owner", Version: 1, Incarnation: 1,
		Created: t.now, Changed: t.now, Keys: []watchword.Key{{ID: "op", Purpose: watchword.Sign, JWK: []byte("{}"), State: watchword.KeyActive, Added: t.now}},
	}
	es := []audit.Entry{t.entry(audit.KeyCreate, "ca"), t.entry(audit.KindFor(watchword.Operator, audit.DeviceCreate), "operator")}
	errs := count(race(4, func(int) error { return t.Initialize(t.ctx, f, keys, operator, es) }))
	if errs[""] != 1 || errs[watchword.Conflict] != 3 {
		t.Fatalf("four foundings ended with %v", errs)
	}
	got, err := t.Instance(t.ctx)
	t.must(err)
	equal(t, "founding", got, f)
	ks, err := t.ServerKeys(t.ctx)
	t.must(err)
	if len(ks) != 2 || ks[0].ID != "kek" || ks[1].Role != keyring.CA || !bytes.Equal(ks[1].Cert, []byte{3}) || !ks[1].Created.Equal(t.now) || ks[0].Public != nil {
		t.Fatalf("server keys: %+v", ks)
	}
	s, err := t.Subject(t.ctx, tenant, "operator")
	t.must(err)
	equal(t, "operator's state", s.State, watchword.Active)
	equal(t, "operator's role", s.Role, "owner")
	if _, ok := s.SignKey("op", t.now); !ok {
		t.Fatal("the operator's key is not there")
	}
	equal(t, "entries", t.log(), 2)
}

func subjectLife(t *T) {
	s := t.add("lamp-1", watchword.Labels{"kind": "lamp"})
	got, err := t.Subject(t.ctx, tenant, "lamp-1")
	t.must(err)
	equal(t, "state", got.State, watchword.New)
	equal(t, "version", got.Version, 1)
	equal(t, "incarnation", got.Incarnation, 1)
	equal(t, "labels", got.Labels.String(), "kind=lamp")
	equal(t, "created", got.Created.Equal(s.Created), true)
	t.wantCode(watchword.Conflict, t.CreateSubject(t.ctx, s, nil, t.entry(audit.DeviceCreate, "lamp-1")))
	got = t.enroll("lamp-1", "k1")
	equal(t, "state after enrollment", got.State, watchword.Active)
	equal(t, "keys", len(got.Keys), 2)
	if _, ok := got.SignKey("k1-sign", t.now); !ok {
		t.Fatal("no signing key")
	}
	if k, ok := got.SealKey(t.now); !ok || k.ID != "k1-seal" {
		t.Fatal("no sealing key")
	}
	if got.Version <= 1 {
		t.Fatal("the version did not grow")
	}
	_, err = t.Subject(t.ctx, tenant, "lamp-2")
	t.wantCode(watchword.NotFound, err)
}

func tombstones(t *T) {
	t.enrolled("lamp-1")
	t.must(t.DeleteSubject(t.ctx, tenant, "lamp-1", t.now, t.entry(audit.DeviceDelete, "lamp-1")))
	_, err := t.Subject(t.ctx, tenant, "lamp-1")
	t.wantCode(watchword.NotFound, err)
	t.wantCode(watchword.NotFound, t.DeleteSubject(t.ctx, tenant, "lamp-1", t.now, t.entry(audit.DeviceDelete, "lamp-1")))
	t.wantCode(watchword.Conflict, t.CreateSubject(t.ctx, watchword.Subject{Tenant: tenant, ID: "lamp-1", Kind: watchword.Device, State: watchword.New}, nil, t.entry(audit.DeviceCreate, "lamp-1")))
	t.wantCode(watchword.NotFound, t.AddCode(t.ctx, t.code("lamp-1", "x"), t.entry(audit.DeviceLink, "lamp-1")))
	ss, err := t.Subjects(t.ctx, tenant, "", "", nil, "", 10)
	t.must(err)
	equal(t, "subjects listed", len(ss), 0)
}

func subjectPages(t *T) {
	for i := range 25 {
		site := "a"
		if i%2 == 1 {
			site = "b"
		}
		t.add(watchword.SubjectID(fmt.Sprintf("lamp-%02d", i)), watchword.Labels{"kind": "lamp", "site": site})
	}
	t.add("pump-1", watchword.Labels{"kind": "pump", "site": "a"})
	var ids []string
	for after := watchword.SubjectID(""); ; {
		page, err := t.Subjects(t.ctx, tenant, watchword.Device, watchword.New, watchword.Labels{"kind": "lamp", "site": "a"}, after, 5)
		t.must(err)
		if len(page) == 0 {
			break
		}
		for _, s := range page {
			ids = append(ids, string(s.ID))
			equal(t, "label", s.Labels["site"], "a")
		}
		after = page[len(page)-1].ID
	}
	equal(t, "lamps of site a", len(ids), 13)
	equal(t, "the last", ids[12], "lamp-24")
	for _, q := range []struct {
		kind  watchword.Kind
		state watchword.State
		want  int
	}{{watchword.Operator, "", 0}, {"", watchword.Active, 0}, {"", "", 26}} {
		got, err := t.Subjects(t.ctx, tenant, q.kind, q.state, nil, "", 100)
		t.must(err)
		equal(t, fmt.Sprint(q), len(got), q.want)
	}
}

func labelsUnderVersion(t *T) {
	t.add("lamp-1", watchword.Labels{"site": "a"})
	s, err := t.SetLabels(t.ctx, tenant, "lamp-1", watchword.Labels{"site": "b"}, 1, t.now, t.entry(audit.DeviceLabel, "lamp-1"))
	t.must(err)
	equal(t, "version", s.Version, 2)
	equal(t, "labels", s.Labels.String(), "site=b")
	_, err = t.SetLabels(t.ctx, tenant, "lamp-1", watchword.Labels{"site": "c"}, 1, t.now, t.entry(audit.DeviceLabel, "lamp-1"))
	t.wantCode(watchword.PreconditionFailed, err)
	_, err = t.SetLabels(t.ctx, tenant, "lamp-1", nil, 0, t.now, t.entry(audit.DeviceLabel, "lamp-1"))
	t.must(err)
	for sel, want := range map[string]int{"a": 0, "b": 0, "c": 0} {
		got, err := t.Subjects(t.ctx, tenant, "", "", watchword.Labels{"site": sel}, "", 10)
		t.must(err)
		equal(t, "found by "+sel, len(got), want)
	}
	_, err = t.SetLabels(t.ctx, tenant, "nobody", nil, 0, t.now, t.entry(audit.DeviceLabel, "nobody"))
	t.wantCode(watchword.NotFound, err)
	es, err := t.Entries(0, 10)
	t.must(err)
	equal(t, "entries", len(es), 3)
	for i, want := range []string{"site=a > site=b", "site=b > "} { // what the caller read before has no say
		equal(t, "what changed", es[i+1].Data["before"]+" > "+es[i+1].Data["after"], want)
	}
}

// labelsOfManyEditors: each of many edits at once says what it replaced: the entries are one chain, in their order.
func labelsOfManyEditors(t *T) {
	const editors, each = 8, 5
	t.add("lamp-1", nil)
	var wg sync.WaitGroup
	for i := range editors {
		wg.Go(func() {
			for n := range each {
				_, err := t.SetLabels(t.ctx, tenant, "lamp-1", watchword.Labels{"by": fmt.Sprintf("%d-%d", i, n)}, 0, t.now, t.entry(audit.DeviceLabel, "lamp-1"))
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	testwait.All(t, "the end of all edits", &wg)
	es, err := t.Entries(0, 100)
	t.must(err)
	last := ""
	for _, e := range es {
		if e.Kind != audit.DeviceLabel {
			continue
		}
		equal(t, "the labels before", e.Data["before"], last)
		last = e.Data["after"]
	}
	s, err := t.Subject(t.ctx, tenant, "lamp-1")
	t.must(err)
	equal(t, "the last", s.Labels.String(), last)
	equal(t, "entries", len(es), 1+editors*each)
}

// operator adds an operator with a role and a signing key.
func (t *T) operator(id watchword.SubjectID, role string) watchword.Subject {
	t.Helper()
	s := watchword.Subject{Tenant: tenant, ID: id, Kind: watchword.Operator, Role: role, State: watchword.New, Created: t.now, Changed: t.now}
	t.must(t.CreateSubject(t.ctx, s, nil, t.entry(audit.KindFor(watchword.Operator, audit.DeviceCreate), string(id))))
	return t.enroll(id, string(id))
}

func rolesAreSet(t *T) {
	before := t.operator("alice", "viewer")
	equal(t, "role", before.Role, "viewer")
	n := t.log()
	e := t.entry(audit.OperatorRole, "alice")
	after, err := t.SetRole(t.ctx, tenant, "alice", "admin", t.now, e)
	t.must(err)
	equal(t, "role", after.Role, "admin")
	equal(t, "version", after.Version, before.Version+1)
	if after.AuthorityVersion <= before.AuthorityVersion {
		t.Errorf("the authority version was %d and is %d", before.AuthorityVersion, after.AuthorityVersion)
	}
	again, err := t.SetRole(t.ctx, tenant, "alice", "admin", t.now, e)
	t.must(err)
	equal(t, "version after the same role again", again.Version, after.Version)
	equal(t, "entries", t.log(), n+1)
	t.enrolled("lamp-1")
	_, err = t.SetRole(t.ctx, tenant, "lamp-1", "admin", t.now, e)
	t.wantCode(watchword.Conflict, err)
	listed, err := t.Subjects(t.ctx, tenant, watchword.Operator, "", nil, "", 10)
	t.must(err)
	if len(listed) != 1 || listed[0].Role != "admin" {
		t.Errorf("listed: %+v", listed)
	}
}

// lastOwnerStays: whatever ends an owner is refused for the last one who can act, also where two owners end each other at once.
func lastOwnerStays(t *T) {
	t.operator("alice", watchword.OwnerRole)
	waiting := watchword.Subject{Tenant: tenant, ID: "invited", Kind: watchword.Operator, Role: watchword.OwnerRole, State: watchword.New, Created: t.now, Changed: t.now}
	t.must(t.CreateSubject(t.ctx, waiting, nil, t.entry(audit.KindFor(watchword.Operator, audit.DeviceCreate), "invited"))) // has no key yet
	t.operator("carol", watchword.OwnerRole)
	_, err := t.Suspend(t.ctx, tenant, "carol", t.now, t.entry(audit.KindFor(watchword.Operator, audit.DeviceSuspend), "carol"))
	t.must(err)
	t.operator("admin", "admin")
	ends := map[string]func(id watchword.SubjectID) error{
		"suspend": func(id watchword.SubjectID) error {
			_, err := t.Suspend(t.ctx, tenant, id, t.now, t.entry(audit.KindFor(watchword.Operator, audit.DeviceSuspend), string(id)))
			return err
		},
		"revoke": func(id watchword.SubjectID) error {
			_, err := t.Revoke(t.ctx, tenant, id, t.now, t.entry(audit.KindFor(watchword.Operator, audit.DeviceRevoke), string(id)))
			return err
		},
		"delete": func(id watchword.SubjectID) error {
			return t.DeleteSubject(t.ctx, tenant, id, t.now, t.entry(audit.KindFor(watchword.Operator, audit.DeviceDelete), string(id)))
		},
		"role": func(id watchword.SubjectID) error {
			_, err := t.SetRole(t.ctx, tenant, id, "admin", t.now, t.entry(audit.OperatorRole, string(id)))
			return err
		},
	}
	n := t.log()
	for name, end := range ends {
		if err := end("alice"); watchword.CodeOf(err) != watchword.Conflict {
			t.Errorf("%s of the last owner: got %v, want conflict", name, err)
		}
	}
	equal(t, "entries", t.log(), n)
	s, err := t.Subject(t.ctx, tenant, "alice")
	t.must(err)
	if !s.IsOwner() || !s.HasPermanentKey() {
		t.Fatalf("the last owner is %+v", s)
	}
	for i, name := range []string{"suspend", "revoke", "delete", "role"} {
		other := watchword.SubjectID(fmt.Sprint("owner-", i))
		t.operator(other, watchword.OwnerRole)
		last := "alice"
		if i > 0 {
			last = fmt.Sprint("survivor-", i-1)
		}
		two := []watchword.SubjectID{watchword.SubjectID(last), other}
		errs := count(race(2, func(i int) error { return ends[name](two[i]) }))
		if errs[""] != 1 || errs[watchword.Conflict] != 1 {
			t.Fatalf("%s of both owners at once ended with %v", name, errs)
		}
		// One owner is left; the next round starts with another one in its place.
		next := watchword.SubjectID(fmt.Sprint("survivor-", i))
		t.operator(next, watchword.OwnerRole)
		for _, id := range two {
			if s, err := t.Subject(t.ctx, tenant, id); err == nil && s.IsOwner() && s.HasPermanentKey() {
				t.must(ends["role"](id))
			}
		}
	}
}

func revocationEndsAccess(t *T) {
	t.enrolled("lamp-1")
	n := t.log()
	e := t.entry(audit.DeviceSuspend, "lamp-1")
	s, err := t.Suspend(t.ctx, tenant, "lamp-1", t.now, e)
	t.must(err)
	equal(t, "state", s.State, watchword.Suspended)
	_, err = t.Suspend(t.ctx, tenant, "lamp-1", t.now, e)
	t.must(err)
	equal(t, "entries after suspending twice", t.log(), n+1)
	s, err = t.Resume(t.ctx, tenant, "lamp-1", t.now, e)
	t.must(err)
	equal(t, "state", s.State, watchword.Active)
	if _, ok := s.SignKey("lamp-1-sign", t.now); !ok {
		t.Fatal("the key did not come back")
	}
	t.must(t.IssueToken(t.ctx, t.record("tok_1", "lamp-1"), t.spend("a1"), e))
	s, err = t.Revoke(t.ctx, tenant, "lamp-1", t.now, e)
	t.must(err)
	equal(t, "state", s.State, watchword.Revoked)
	for _, k := range s.Keys {
		equal(t, "key state", k.State, watchword.KeyRevoked)
	}
	r, err := t.TokenRecord(t.ctx, tenant, "tok_1")
	t.must(err)
	equal(t, "token revoked", r.Revoked, true)
	n = t.log()
	_, err = t.Revoke(t.ctx, tenant, "lamp-1", t.now, e)
	t.must(err)
	equal(t, "entries after revoking twice", t.log(), n)
	_, err = t.Suspend(t.ctx, tenant, "lamp-1", t.now, e)
	t.wantCode(watchword.Conflict, err)
	_, err = t.Resume(t.ctx, tenant, "lamp-1", t.now, e)
	t.wantCode(watchword.Conflict, err)

	t.add("lamp-2", nil)
	_, err = t.Suspend(t.ctx, tenant, "lamp-2", t.now, e)
	t.must(err)
	s, err = t.Resume(t.ctx, tenant, "lamp-2", t.now, e)
	t.must(err)
	equal(t, "state of one without keys", s.State, watchword.New)
}

func codeOnce(t *T) {
	t.add("lamp-1", nil)
	t.must(t.AddCode(t.ctx, t.code("lamp-1", "old"), t.entry(audit.DeviceLink, "lamp-1")))
	t.must(t.AddCode(t.ctx, t.code("lamp-1", "new"), t.entry(audit.DeviceLink, "lamp-1")))
	e := t.entry(audit.DeviceEnroll, "")
	_, _, err := t.RedeemCode(t.ctx, t.redemption("old", "k"), t.now, t.entry(audit.DeviceEnroll, ""))
	t.wantCode(watchword.CodeInvalid, err)
	n := t.log()
	_, replay, err := t.RedeemCode(t.ctx, t.redemption("new", "k"), t.now, t.entry(audit.DeviceEnroll, ""))
	t.must(err)
	equal(t, "replay", replay, false)
	es, err := t.Entries(int64(n), 10)
	t.must(err)
	if len(es) != 1 || es[0].Object != "lamp-1" || es[0].Actor != "lamp-1" {
		t.Fatalf("entries: %+v", es)
	}
	s, replay, err := t.RedeemCode(t.ctx, t.redemption("new", "k"), t.now.Add(time.Minute), e)
	t.must(err)
	equal(t, "the same keys again", replay, true)
	equal(t, "the same subject", s.ID, "lamp-1")
	equal(t, "no entry for it", t.log(), n+1)
	_, _, err = t.RedeemCode(t.ctx, t.redemption("new", "others"), t.now, t.entry(audit.DeviceEnroll, ""))
	t.wantCode(watchword.CodeInvalid, err)
	_, _, err = t.RedeemCode(t.ctx, t.redemption("new", "k"), t.now.Add(time.Hour), e)
	t.wantCode(watchword.CodeInvalid, err)
}

func codeRace(t *T) {
	t.add("lamp-1", nil)
	t.must(t.AddCode(t.ctx, t.code("lamp-1", "c"), t.entry(audit.DeviceLink, "lamp-1")))
	errs := count(race(16, func(i int) error {
		_, _, err := t.RedeemCode(t.ctx, t.redemption("c", fmt.Sprint("k", i)), t.now, t.entry(audit.DeviceEnroll, ""))
		return err
	}))
	if errs[""] != 1 || errs[watchword.CodeInvalid] != 15 {
		t.Fatalf("sixteen devices with one code: %v", errs)
	}
	s, err := t.Subject(t.ctx, tenant, "lamp-1")
	t.must(err)
	equal(t, "keys", len(s.Keys), 2)
}

// codeRefused leaves a code as it was where it is refused.
func codeRefused(t *T) {
	t.add("lamp-1", nil)
	e := t.entry(audit.DeviceLink, "lamp-1")
	t.must(t.AddCode(t.ctx, t.code("lamp-1", "c"), e))
	redeem := func(code string, now time.Time) error {
		_, _, err := t.RedeemCode(t.ctx, t.redemption(code, "k"), now, t.entry(audit.DeviceEnroll, ""))
		return err
	}
	t.wantCode(watchword.CodeInvalid, redeem("unknown", t.now))
	t.wantCode(watchword.CodeInvalid, redeem("c", t.now.Add(time.Hour)))
	_, err := t.Suspend(t.ctx, tenant, "lamp-1", t.now, e)
	t.must(err)
	t.wantCode(watchword.CodeInvalid, redeem("c", t.now))
	t.wantCode(watchword.Conflict, t.AddCode(t.ctx, t.code("lamp-1", "d"), e)) // which would have taken the place of c
	_, err = t.Resume(t.ctx, tenant, "lamp-1", t.now, e)
	t.must(err)
	t.must(redeem("c", t.now))
	_, err = t.Revoke(t.ctx, tenant, "lamp-1", t.now, e)
	t.must(err)
	t.wantCode(watchword.CodeInvalid, redeem("c", t.now)) // revoking deletes codes
}

func keysOnce(t *T) {
	t.enrolled("lamp-1")
	t.add("lamp-2", nil)
	e := t.entry(audit.DeviceLink, "lamp-2")
	t.must(t.AddCode(t.ctx, t.code("lamp-2", "c"), e))
	n := t.log()
	_, _, err := t.RedeemCode(t.ctx, t.redemption("c", "lamp-1"), t.now, t.entry(audit.DeviceEnroll, ""))
	t.wantCode(watchword.Conflict, err)
	equal(t, "entries", t.log(), n)
	_, _, err = t.RedeemCode(t.ctx, t.redemption("c", "fresh"), t.now, t.entry(audit.DeviceEnroll, ""))
	t.must(err) // the code was not spent
	_, err = t.Revoke(t.ctx, tenant, "lamp-2", t.now, e)
	t.must(err)
	t.must(t.AddCode(t.ctx, t.code("lamp-2", "d"), e))
	_, _, err = t.RedeemCode(t.ctx, t.redemption("d", "fresh"), t.now, t.entry(audit.DeviceEnroll, ""))
	t.wantCode(watchword.Conflict, err)
	s, _, err := t.RedeemCode(t.ctx, t.redemption("d", "fresher"), t.now, t.entry(audit.DeviceEnroll, ""))
	t.must(err)
	equal(t, "incarnation", s.Incarnation, 2)
	equal(t, "keys it has or had", len(s.Keys), 4)
	if _, ok := s.SignKey("fresh-sign", t.now); ok {
		t.Fatal("a revoked key came back")
	}
}

func (t *T) record(jti string, id watchword.SubjectID) token.Record {
	return token.Record{
		Tenant: tenant, JTI: jti, Subject: id, Incarnation: 1, Key: watchword.KeyID(id + "-sign"), Issued: t.now, Expires: t.now.Add(10 * time.Minute),
	}
}

func (t *T) spend(jti string) token.SingleUse {
	return token.SingleUse{JTI: jti, Expires: t.now.Add(time.Minute)}
}

func tokens(t *T) {
	e := t.entry(audit.TokenIssue, "tok")
	t.wantCode(watchword.ClientInvalid, t.IssueToken(t.ctx, t.record("tok_0", "nobody"), t.spend("a"), e))
	t.add("lamp-1", nil)
	t.wantCode(watchword.SubjectNew, t.IssueToken(t.ctx, t.record("tok_1", "lamp-1"), t.spend("a"), e))
	t.enroll("lamp-1", "lamp-1")
	r := t.record("tok_1", "lamp-1")
	r.ClaimsDigest = [32]byte{1, 31: 2}
	t.must(t.IssueToken(t.ctx, r, t.spend("a"), e))
	got, err := t.TokenRecord(t.ctx, tenant, "tok_1")
	t.must(err)
	equal(t, "record", got, r)
	t.wantCode(watchword.TokenReplayed, t.IssueToken(t.ctx, t.record("tok_2", "lamp-1"), t.spend("a"), e))
	_, err = t.TokenRecord(t.ctx, tenant, "tok_2")
	t.wantCode(watchword.NotFound, err)
	foreign := t.record("tok_3", "lamp-1")
	foreign.Key = "lamp-1-seal"
	t.wantCode(watchword.ClientInvalid, t.IssueToken(t.ctx, foreign, t.spend("b"), e))
	early := t.record("tok_4", "lamp-1")
	early.Incarnation = 2
	t.wantCode(watchword.ClientInvalid, t.IssueToken(t.ctx, early, t.spend("b"), e))
	t.must(t.IssueToken(t.ctx, t.record("tok_5", "lamp-1"), t.spend("b"), e)) // what was refused spent nothing
	t.enrolled("lamp-2")
	t.must(t.IssueToken(t.ctx, t.record("tok_6", "lamp-2"), t.spend("a"), e)) // jti counts for its subject alone
	// An assertion counts once, for a token or for anything else.
	t.wantCode(watchword.TokenReplayed, t.ConsumeAssertion(t.ctx, tenant, "lamp-1", t.spend("a")))
	t.must(t.ConsumeAssertion(t.ctx, tenant, "lamp-1", t.spend("d")))
	t.wantCode(watchword.TokenReplayed, t.ConsumeAssertion(t.ctx, tenant, "lamp-1", t.spend("d")))
	t.wantCode(watchword.TokenReplayed, t.IssueToken(t.ctx, t.record("tok_9", "lamp-1"), t.spend("d"), e))
	_, err = t.Suspend(t.ctx, tenant, "lamp-1", t.now, e)
	t.must(err)
	t.wantCode(watchword.SubjectSuspended, t.IssueToken(t.ctx, t.record("tok_7", "lamp-1"), t.spend("c"), e))
	_, err = t.Revoke(t.ctx, tenant, "lamp-1", t.now, e)
	t.must(err)
	t.wantCode(watchword.SubjectRevoked, t.IssueToken(t.ctx, t.record("tok_8", "lamp-1"), t.spend("c"), e))
}

func assertionRace(t *T) {
	t.enrolled("lamp-1")
	n := t.log()
	errs := count(race(16, func(i int) error {
		return t.IssueToken(t.ctx, t.record(fmt.Sprint("tok_", i), "lamp-1"), t.spend("same"), t.entry(audit.TokenIssue, "tok"))
	}))
	if errs[""] != 1 || errs[watchword.TokenReplayed] != 15 {
		t.Fatalf("sixteen uses of one assertion: %v", errs)
	}
	equal(t, "entries", t.log(), n+1)
}

func prune(t *T) {
	t.enrolled("lamp-1")
	e := t.entry(audit.TokenIssue, "tok")
	for i := range 5 {
		t.must(t.IssueToken(t.ctx, t.record(fmt.Sprint("tok_", i), "lamp-1"), t.spend(fmt.Sprint("a", i)), e))
		t.must(t.ConsumeAssertion(t.ctx, tenant, "lamp-1", t.spend(fmt.Sprint("b", i))))
	}
	n, err := t.DeleteExpired(t.ctx, t.now, 100)
	t.must(err)
	equal(t, "gone while all counts", n, 0)
	n, err = t.DeleteExpired(t.ctx, t.now.Add(2*time.Minute), 3)
	t.must(err)
	equal(t, "gone, at most the limit", n, 3)
	n, err = t.DeleteExpired(t.ctx, t.now.Add(2*time.Minute), 100)
	t.must(err)
	equal(t, "the other assertions", n, 2)
	_, err = t.TokenRecord(t.ctx, tenant, "tok_0")
	t.must(err)
	n, err = t.DeleteExpired(t.ctx, t.now.Add(2*time.Hour), 100)
	t.must(err)
	equal(t, "tokens and the code", n, 6)
	_, err = t.TokenRecord(t.ctx, tenant, "tok_0")
	t.wantCode(watchword.NotFound, err)
}

func policies(t *T) {
	e := t.entry(audit.PolicyApply, "lamps")
	p, _, err := t.PutPolicy(t.ctx, tenant, "lamps", []byte("one"), 0, t.now, e)
	t.must(err)
	equal(t, "version", p.Version, 1)
	_, _, err = t.PutPolicy(t.ctx, tenant, "lamps", []byte("two"), 0, t.now, e)
	t.wantCode(watchword.PreconditionFailed, err)
	p, _, err = t.PutPolicy(t.ctx, tenant, "lamps", []byte("one"), -1, t.now, e)
	t.must(err)
	equal(t, "version of the same text", p.Version, 1)
	equal(t, "entries", t.log(), 1)
	p, _, err = t.PutPolicy(t.ctx, tenant, "lamps", []byte("two"), 1, t.now, e)
	t.must(err)
	equal(t, "version", p.Version, 2)
	_, _, err = t.PutPolicy(t.ctx, tenant, "lamps", []byte("three"), 1, t.now, e)
	t.wantCode(watchword.PreconditionFailed, err)
	_, _, err = t.PutPolicy(t.ctx, tenant, "none", []byte("x"), 3, t.now, e)
	t.wantCode(watchword.PreconditionFailed, err)
	_, _, err = t.PutPolicy(t.ctx, tenant, "attic", []byte("x"), -1, t.now, e)
	t.must(err)
	ps, err := t.Policies(t.ctx, tenant)
	t.must(err)
	if len(ps) != 2 || ps[0].Name != "attic" || ps[1].Name != "lamps" || string(ps[1].Source) != "two" {
		t.Fatalf("policies: %+v", ps)
	}
	_, err = t.DeletePolicy(t.ctx, tenant, "none", -1, t.now, e)
	t.wantCode(watchword.NotFound, err)
	_, err = t.DeletePolicy(t.ctx, tenant, "lamps", 1, t.now, e)
	t.wantCode(watchword.PreconditionFailed, err)
	_, err = t.DeletePolicy(t.ctx, tenant, "lamps", 2, t.now, e)
	t.must(err)
	_, err = t.DeletePolicy(t.ctx, tenant, "lamps", -1, t.now, e)
	t.wantCode(watchword.NotFound, err)
	p, _, err = t.PutPolicy(t.ctx, tenant, "lamps", []byte("two"), 0, t.now, e)
	t.must(err)
	equal(t, "version after deletion", p.Version, 3)
}
