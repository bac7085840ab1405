package storetest

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/policy"
)

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

func forgottenDevice(t *T) {
	forget := func(id watchword.SubjectID) error {
		return t.ForgetSubject(t.ctx, tenant, id, t.entry(audit.DeviceForget, string(id)))
	}
	create := func(id watchword.SubjectID, kind watchword.Kind) error {
		return t.CreateSubject(t.ctx, watchword.Subject{Tenant: tenant, ID: id, Kind: kind, State: watchword.New, Labels: watchword.Labels{"life": "2"}, Created: t.now, Changed: t.now}, nil, t.entry(audit.DeviceCreate, string(id)))
	}
	before := t.enrolled("lamp-1")
	t.wantCode(watchword.NotFound, forget("lamp-1")) // it is not deleted
	t.wantCode(watchword.NotFound, forget("lamp-2"))
	equal(t, "number", t.order(1, "lamp-1").Seq, 1)
	t.must(t.DeleteSubject(t.ctx, tenant, "lamp-1", t.now, t.entry(audit.DeviceDelete, "lamp-1")))
	t.wantCode(watchword.Conflict, create("lamp-1", watchword.Device))
	n := t.log()
	t.must(forget("lamp-1"))
	equal(t, "entries", t.log(), n+1)
	t.must(forget("lamp-1"))
	equal(t, "entries of what is forgotten already", t.log(), n+1)
	_, err := t.Subject(t.ctx, tenant, "lamp-1")
	t.wantCode(watchword.NotFound, err)
	t.wantCode(watchword.Conflict, create("lamp-1", watchword.Operator)) // the id stays one of a device
	t.must(create("lamp-1", watchword.Device))
	t.wantCode(watchword.Conflict, create("lamp-1", watchword.Device))
	t.wantCode(watchword.NotFound, forget("lamp-1"))
	s, err := t.Subject(t.ctx, tenant, "lamp-1")
	t.must(err)
	equal(t, "state", s.State, watchword.New)
	equal(t, "labels", s.Labels.String(), "life=2")
	equal(t, "incarnation", s.Incarnation, before.Incarnation+1)
	if s.Version <= before.Version+1 || s.AuthorityVersion <= before.AuthorityVersion+1 {
		t.Errorf("version %d and authority version %d do not go on from %d and %d", s.Version, s.AuthorityVersion, before.Version, before.AuthorityVersion)
	}
	for _, k := range s.Keys {
		equal(t, "state of a key of before", k.State, watchword.KeyRevoked)
	}
	found, err := t.Subjects(t.ctx, tenant, watchword.Device, "", watchword.Labels{"life": "2"}, "", 10)
	t.must(err)
	equal(t, "found by its label", len(found), 1)
	equal(t, "incarnation after the enrollment", t.enroll("lamp-1", "k2").Incarnation, before.Incarnation+1)
	equal(t, "the next number", t.order(2, "lamp-1").Seq, 2)

	boss := watchword.Subject{Tenant: tenant, ID: "boss", Kind: watchword.Operator, Role: "viewer", State: watchword.New, Created: t.now, Changed: t.now}
	t.must(t.CreateSubject(t.ctx, boss, nil, t.entry(audit.KindFor(watchword.Operator, audit.DeviceCreate), "boss")))
	t.must(t.DeleteSubject(t.ctx, tenant, "boss", t.now, t.entry(audit.KindFor(watchword.Operator, audit.DeviceDelete), "boss")))
	t.wantCode(watchword.Conflict, forget("boss"))
}

func subjectNames(t *T) {
	before := t.enrolled("lamp-1")
	name := func(name string) watchword.Subject {
		s, err := t.SetName(t.ctx, tenant, "lamp-1", name, t.now, t.entry(audit.DeviceName, "lamp-1"))
		t.must(err)
		return s
	}
	s := name("Lampe im Büro, 2. Stock")
	equal(t, "name", s.Name, "Lampe im Büro, 2. Stock")
	equal(t, "version", s.Version, before.Version+1)
	equal(t, "authority version", s.AuthorityVersion, before.AuthorityVersion)
	n := t.log()
	equal(t, "version of the same name", name(s.Name).Version, s.Version)
	equal(t, "entries of the same name", t.log(), n)
	all, err := t.Subjects(t.ctx, tenant, watchword.Device, "", nil, "", 10)
	t.must(err)
	equal(t, "name in a list", all[0].Name, s.Name)
	_, err = t.SetName(t.ctx, tenant, "lamp-2", "x", t.now, t.entry(audit.DeviceName, "lamp-2"))
	t.wantCode(watchword.NotFound, err)
	equal(t, "no name", name("").Name, "")
}

// selectedSubjects are those of each selector, once each, in order of ids, and no more than have one of its labels.
func selectedSubjects(t *T) {
	for i := range 30 {
		t.add(watchword.SubjectID(fmt.Sprintf("lamp-%02d", i)), watchword.Labels{"kind": "lamp", "site": fmt.Sprint("s", i%10)})
	}
	t.add("pump-1", watchword.Labels{"kind": "pump", "site": "s1"})
	add := func(id watchword.SubjectID, kind watchword.Kind, role string) {
		s := watchword.Subject{Tenant: tenant, ID: id, Kind: kind, Role: role, State: watchword.New, Created: t.now, Changed: t.now}
		t.must(t.CreateSubject(t.ctx, s, nil, t.entry(audit.KindFor(kind, audit.DeviceCreate), string(id))))
	}
	add("anna", watchword.Operator, "installer")
	add("billing", watchword.Service, "")
	t.add("gone", watchword.Labels{"kind": "pump"})
	t.must(t.DeleteSubject(t.ctx, tenant, "gone", t.now, t.entry(audit.DeviceDelete, "gone")))
	_, err := t.SetProof(t.ctx, tenant, "pump-1", watchword.RequireProof, t.now, t.entry(audit.DeviceProof, "pump-1"))
	t.must(err)
	get := func(some ...policy.Selector) (all []watchword.Subject) {
		t.must(t.EachSubject(t.ctx, tenant, some, func(s *watchword.Subject) error {
			if slices.ContainsFunc(some, func(sel policy.Selector) bool { return sel.IDs != nil || s.Labels.Has(sel.Labels) }) {
				all = append(all, *s)
			}
			return nil
		}))
		return all
	}
	ids := func(all []watchword.Subject) (text string) {
		for i := range all {
			text += " " + string(all[i].ID)
		}
		return strings.TrimSpace(text)
	}
	site := policy.Selector{Labels: watchword.Labels{"kind": "lamp", "site": "s1"}}
	equal(t, "a site", ids(get(site)), "lamp-01 lamp-11 lamp-21")
	equal(t, "two sites", ids(get(site, policy.Selector{Labels: watchword.Labels{"kind": "lamp", "site": "s2"}})), "lamp-01 lamp-02 lamp-11 lamp-12 lamp-21 lamp-22")
	equal(t, "ids and a site", ids(get(policy.Selector{IDs: []watchword.SubjectID{"pump-1", "no", "gone", "anna"}}, site)), "anna lamp-01 lamp-11 lamp-21 pump-1")
	equal(t, "people", ids(get(policy.Selector{Kinds: []watchword.Kind{watchword.Operator, watchword.Service}})), "anna billing")
	equal(t, "operators", ids(get(policy.Selector{Kinds: []watchword.Kind{watchword.Operator}})), "anna")
	equal(t, "no ids", ids(get(policy.Selector{IDs: []watchword.SubjectID{}})), "")
	equal(t, "no selector", ids(get()), "")
	equal(t, "all", len(get(site, policy.Selector{})), 33)
	pump := get(policy.Selector{Labels: watchword.Labels{"kind": "pump"}})
	equal(t, "pumps", len(pump), 1)
	equal(t, "kind", pump[0].Kind, watchword.Device)
	equal(t, "state", pump[0].State, watchword.New)
	equal(t, "proof", pump[0].Proof, watchword.RequireProof)
	equal(t, "labels", pump[0].Labels.String(), "kind=pump,site=s1")
	equal(t, "role", get(policy.Selector{IDs: []watchword.SubjectID{"anna"}})[0].Role, "installer")
	calls := 0
	err = t.EachSubject(t.ctx, tenant, []policy.Selector{site}, func(*watchword.Subject) error {
		calls++
		return watchword.Refuse(watchword.TooLarge, "enough")
	})
	t.wantCode(watchword.TooLarge, err)
	equal(t, "calls after an error", calls, 1)
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
