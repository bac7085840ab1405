package storetest

import (
	"fmt"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
)

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
