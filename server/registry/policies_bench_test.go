package registry_test

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/registry"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/server/sqlite"
)

// BenchmarkEdit measures an edit of a policy by an admin, which every subject of the tenant has: the edit is compared for each.
func BenchmarkEdit(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			st, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "watchword.db"), sqlite.Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = st.Close() }()
			dir, now := registry.NewDirectory(st), time.Now()
			r := registry.New(st, dir, receiver{dir}, watchword.FixedIssuer("https://hub.example"))
			add := func(id watchword.SubjectID, kind watchword.Kind, role string, l watchword.Labels) {
				s := watchword.Subject{Tenant: here, ID: id, Kind: kind, Role: role, State: watchword.New, Labels: l, Version: 1, Incarnation: 1, Created: now, Changed: now}
				if err := st.CreateSubject(b.Context(), s, nil, audit.Actor{Tenant: here}.DoneEntry(audit.DeviceCreate, string(id), now, nil)); err != nil {
					b.Error(err)
				}
			}
			var all sync.WaitGroup
			for part := range 100 { // the store writes many at once
				all.Go(func() {
					for i := range n / 100 {
						add(watchword.SubjectID(fmt.Sprintf("lamp-%d-%d", part, i)), watchword.Device, "", watchword.Labels{"kind": "lamp", "site": fmt.Sprintf("plant-%d", part)})
					}
				})
			}
			all.Wait()
			add("admin", watchword.Operator, policy.RoleAdmin, nil)
			edit := func(by session.Actor, i int) {
				e, err := r.EditPolicies(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				defer e.Release()
				text := fmt.Sprintf("for = { kind = \"lamp\" }\n[[allow]]\npublish = [\"plant/${site}/lux/%d\", \"plant/${id}/#\"]\n[[allow]]\ncall = [\"lamp.*\"]\non = { site = \"${site}\" }\n[[deny]]\ncall = [\"firmware.*\"]\n", i)
				if _, err := e.Apply(b.Context(), by, "lamps", []byte(text), -1, now); err != nil {
					b.Fatal(err)
				}
			}
			edit(server, -1)
			for i := 0; b.Loop(); i++ {
				p, err := dir.Principal(b.Context(), here, "admin")
				if err != nil {
					b.Fatal(err)
				}
				edit(session.Actor{Actor: audit.Actor{Tenant: here, Subject: "admin", Versions: watchword.AuthorityVersions{Subject: "admin", SubjectVersion: p.Subject.AuthorityVersion, Policies: p.Grant.Version()}}, Policy: p.Grant}, i)
			}
		})
	}
}
