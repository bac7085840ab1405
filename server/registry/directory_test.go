package registry_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/registry"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/token"
)

const here, there = watchword.TenantID("here"), watchword.TenantID("there")

// truth is a store of two tenants whose subjects have the same ids.
type truth struct {
	subjects map[watchword.TenantID]*watchword.Subject
	policies map[watchword.TenantID]string
	version  atomic.Int64
	reads    atomic.Int64 // of subjects
	down     atomic.Bool
}

func (s *truth) Subject(_ context.Context, t watchword.TenantID, id watchword.SubjectID) (watchword.Subject, error) {
	s.reads.Add(1)
	if x := s.subjects[t]; x != nil && x.ID == id {
		return *x, nil
	}
	return watchword.Subject{}, watchword.Refuse(watchword.NotFound, "nobody")
}

func (s *truth) Policies(_ context.Context, t watchword.TenantID) ([]policy.Stored, error) {
	if s.down.Load() {
		return nil, watchword.Refuse(watchword.Unavailable, "down")
	}
	return []policy.Stored{{Tenant: t, Name: "one", Version: s.version.Load(), Source: []byte(s.policies[t])}}, nil
}

func (s *truth) PolicyVersion(context.Context, watchword.TenantID) (int64, error) {
	return s.version.Load(), nil
}

func (s *truth) CheckToken(context.Context, watchword.TenantID, string, watchword.KeyID) error {
	return nil
}

func (s *truth) TokenRecord(context.Context, watchword.TenantID, string) (token.Record, error) {
	return token.Record{}, watchword.Refuse(watchword.NotFound, "no token")
}

func newTruth(t *testing.T) *truth {
	t.Helper()
	s := &truth{subjects: map[watchword.TenantID]*watchword.Subject{}, policies: map[watchword.TenantID]string{}}
	s.version.Store(1)
	for _, tenant := range []watchword.TenantID{here, there} {
		k, err := jose.GenerateKey(jose.P256)
		if err != nil {
			t.Fatal(err)
		}
		s.subjects[tenant] = &watchword.Subject{Tenant: tenant, ID: "lamp", Kind: watchword.Device, State: watchword.Active, Keys: []watchword.Key{
			{ID: k.Public().ID(), Purpose: watchword.Sign, State: watchword.KeyActive, JWK: k.Public().JWK()},
		}}
		s.policies[tenant] = "subjects = [\"lamp\"]\n[[allow]]\npublish = [\"" + string(tenant) + "\"]\n"
	}
	return s
}

func principal(t *testing.T, d *registry.Directory, tenant watchword.TenantID) *session.Principal {
	t.Helper()
	p, err := d.Principal(t.Context(), tenant, "lamp")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDirectorySeparatesTenants(t *testing.T) {
	s := newTruth(t)
	d := registry.NewDirectory(s)
	for range 2 { // from the store, and from memory
		for _, tenant := range []watchword.TenantID{here, there} {
			p := principal(t, d, tenant)
			keys, err := p.Keys.ActiveSigningKeys(time.Now())
			if err != nil || len(keys) != 1 || keys[s.subjects[tenant].Keys[0].ID] == nil {
				t.Errorf("%s: keys %v, %v", tenant, keys, err)
			}
			if p.Subject.Tenant != tenant || !p.Grant.Publish(string(tenant)).Allowed {
				t.Errorf("%s: %+v", tenant, p.Subject)
			}
			if other := map[watchword.TenantID]watchword.TenantID{here: there, there: here}[tenant]; p.Grant.Publish(string(other)).Allowed {
				t.Errorf("%s may publish by the policies of %s", tenant, other)
			}
		}
	}
	if err := d.HandleChange(t.Context(), watchword.Change{Tenant: here, Kind: watchword.SubjectChanged, ID: "lamp"}); err != nil {
		t.Fatal(err)
	}
	before := s.reads.Load()
	principal(t, d, there)
	if s.reads.Load() != before {
		t.Error("a change in one tenant took the subject of the other out of memory")
	}
	if principal(t, d, here); s.reads.Load() != before+1 {
		t.Error("a subject that has changed was not read again")
	}
}

func TestAPrincipalIsRememberedWithItsParsedKeys(t *testing.T) {
	s := newTruth(t)
	d := registry.NewDirectory(s)
	first := principal(t, d, here)
	if again := principal(t, d, here); again != first || s.reads.Load() != 1 {
		t.Errorf("read %d times", s.reads.Load())
	}
	id := s.subjects[here].Keys[0].ID
	a, err1 := first.Keys.Key(id)
	b, err2 := principal(t, d, here).Keys.Key(id)
	if a != b || err1 != nil || err2 != nil {
		t.Error("a key was parsed twice", err1, err2)
	}
	if _, err := first.Keys.Key("other"); watchword.CodeOf(err) != watchword.KeyUnknown {
		t.Errorf("of a key that it has not: %v", err)
	}
}

// The store's policies are read again when their version has grown, and subjects that were cached under the older ones get
// what the newer ones give, without being read again.
func TestRenewReadsNewerPolicies(t *testing.T) {
	s := newTruth(t)
	d := registry.NewDirectory(s)
	old := principal(t, d, here)
	s.policies[here] = "subjects = [\"lamp\"]\n[[allow]]\npublish = [\"new\"]\n"
	if err := d.Refresh(t.Context(), here, "somebody", "", ""); err != nil {
		t.Fatal(err)
	}
	if principal(t, d, here) != old {
		t.Error("policies of the same version were read again")
	}
	s.version.Store(2)
	s.down.Store(true)
	if err := d.Refresh(t.Context(), here, "somebody", "", ""); watchword.CodeOf(err) != watchword.Unavailable {
		t.Errorf("from a store that is down: %v", err)
	}
	s.down.Store(false)
	if err := d.Refresh(t.Context(), here, "somebody", "", ""); err != nil {
		t.Fatal(err)
	}
	p := principal(t, d, here)
	if !p.Grant.Publish("new").Allowed || p.Grant.Publish(string(here)).Allowed || p.Grant.Version() != 2 {
		t.Errorf("the older policies are in force, version %d", p.Grant.Version())
	}
	if p.Keys != old.Keys || s.reads.Load() != 1 {
		t.Error("the subject was read again")
	}
}

// A directory that cannot read policies answers nothing: what they deny is not known.
func TestUnreadablePoliciesGrantNothing(t *testing.T) {
	s := newTruth(t)
	s.down.Store(true)
	d := registry.NewDirectory(s)
	if _, err := d.Principal(t.Context(), here, "lamp"); watchword.CodeOf(err) != watchword.Unavailable {
		t.Fatalf("got %v", err)
	}
	s.down.Store(false)
	principal(t, d, here)
}

// What a principal counts is what it takes of memory, within a factor of two, whatever it has.
func TestPrincipalBytes(t *testing.T) {
	k, err := jose.GenerateKey(jose.P256)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ keys, labels, rules int }{
		"nothing": {}, "keys": {keys: 34}, "labels": {labels: 32}, "rules": {rules: 200},
	} {
		t.Run(name, func(t *testing.T) {
			src := "for = {}\n"
			for i := range c.rules {
				src += fmt.Sprintf("[[allow]]\npublish = [\"a/{id}/%d/%s\"]\n", i, strings.Repeat("x", 50))
			}
			doc, err := policy.Parse("one", []byte(src+"[[allow]]\npublish = [\"a\"]\n"))
			if err != nil {
				t.Fatal(err)
			}
			set := policy.NewSet(doc)
			const n = 200
			all := make([]*session.Principal, n)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.GC() // objects of other tests with a finalizer are freed in the second collection
			runtime.ReadMemStats(&before)
			counted := 0
			for i := range all {
				s := &watchword.Subject{ID: watchword.SubjectID(fmt.Sprint("lamp-", i)), Kind: watchword.Device, Labels: watchword.Labels{}}
				for j := range c.keys {
					s.Keys = append(s.Keys, watchword.Key{ID: watchword.KeyID(fmt.Sprintf("%043d", j)), Purpose: watchword.Sign, State: watchword.KeyActive, JWK: append([]byte{}, k.Public().JWK()...)})
				}
				for j := range c.labels {
					s.Labels[fmt.Sprint("label-", j)] = fmt.Sprint("value-", i, j)
				}
				p := session.NewPrincipal(s, set)
				if _, err := p.Keys.ActiveSigningKeys(time.Now()); err != nil {
					t.Fatal(err)
				}
				p.Grant.Perm()
				all[i] = p
				counted += p.Bytes()
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			took := int(after.HeapAlloc-before.HeapAlloc) / n
			if counted /= n; counted < took*4/5 || counted > 5*took/2 {
				t.Errorf("counts %d bytes, takes %d", counted, took)
			}
			runtime.KeepAlive(all)
		})
	}
}

func BenchmarkPrincipal(b *testing.B) {
	s := &truth{subjects: map[watchword.TenantID]*watchword.Subject{here: {Tenant: here, ID: "lamp", Kind: watchword.Device}}, policies: map[watchword.TenantID]string{here: "for = {}\n[[allow]]\npublish = [\"a\"]\n"}}
	d := registry.NewDirectory(s)
	for b.Loop() {
		if _, err := d.Principal(b.Context(), here, "lamp"); err != nil {
			b.Fatal(err)
		}
	}
}

// A directory remembers all subjects of the sessions that it serves: a change of the policies reads none of them again. Without
// sessions it remembers as many as fit into its least size.
func TestADirectoryIsSizedByItsSessions(t *testing.T) {
	w := newWorld(t)
	const subjects, few = 300, 100 << 10
	for i := range subjects {
		w.add(watchword.SubjectID(fmt.Sprintf("dev-%03d", i)), watchword.Device, "", watchword.Labels{"kind": "lamp"})
	}
	read := func() int64 {
		before, _ := w.store.Reads()
		for i := range subjects {
			if _, err := w.dir.Principal(t.Context(), here, watchword.SubjectID(fmt.Sprintf("dev-%03d", i))); err != nil {
				t.Fatal(err)
			}
		}
		after, _ := w.store.Reads()
		return after - before
	}
	sessions := 0
	w.dir.SizeBySessions(func() int { return sessions })
	w.dir.SetMinBytes(few)
	read()
	if n := read(); n < subjects/2 || w.dir.CachedBytes() > few {
		t.Errorf("without sessions %d of %d subjects are read again, and %d bytes are taken", n, subjects, w.dir.CachedBytes())
	}
	sessions = subjects
	read()
	w.apply("more", "for = {}\n[[allow]]\npublish = [\"more/${id}\"]\n")
	if n := read(); n != 0 {
		t.Errorf("with sessions %d subjects are read again", n)
	}
	if n := w.dir.BoundBytes(1_000_000, 1000, 8_000_000); n != registry.MaxDirectoryBytes {
		t.Errorf("with a million sessions the bound is %d", n)
	}
}
