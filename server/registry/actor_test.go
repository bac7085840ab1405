package registry_test

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/registry"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/server/sqlite"
)

// receiver takes changes to the directory alone, as session.Live does to all receivers.
type receiver struct{ *registry.Directory }

func (r receiver) Apply(ctx context.Context, c watchword.Change) error { return r.HandleChange(ctx, c) }

// world is a registry over a store with devices, operators and two policies.
type world struct {
	*registry.Registry
	t     *testing.T
	store *sqlite.Store
	dir   *registry.Directory
	now   time.Time
}

func newWorld(t *testing.T) *world {
	t.Helper()
	st, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "watchword.db"), sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	w := &world{t: t, store: st, dir: registry.NewDirectory(st), now: time.Now()}
	w.Registry = registry.New(st, w.dir, receiver{w.dir}, watchword.FixedIssuer("https://hub.example"))
	w.add("lamp-1", watchword.Device, "", watchword.Labels{"kind": "lamp"})
	w.add("meter-1", watchword.Device, "", watchword.Labels{"kind": "meter"})
	for _, role := range append(policy.BuiltInRoles, "installer") {
		w.add(watchword.SubjectID(role), watchword.Operator, role, nil)
	}
	w.apply("lamps", "for = { kind = \"lamp\" }\n[[allow]]\npublish = [\"plant/lux\"]\n")
	w.apply("meters", "for = { kind = \"meter\" }\n[[allow]]\npublish = [\"meter/power\"]\n[[deny]]\npublish = [\"meter/raw\"]\n")
	w.apply("installers", "role = \"installer\"\nmay_give = [\"topic:plant/#\"]\n[[allow]]\npost = [\"/v1/#\"]\n")
	return w
}

func (w *world) add(id watchword.SubjectID, kind watchword.Kind, role string, labels watchword.Labels) {
	w.t.Helper()
	s := watchword.Subject{Tenant: here, ID: id, Kind: kind, Role: role, State: watchword.New, Labels: labels, Version: 1, Incarnation: 1, Created: w.now, Changed: w.now}
	if err := w.store.CreateSubject(w.t.Context(), s, nil, audit.Actor{Tenant: here}.DoneEntry(audit.DeviceCreate, string(id), w.now, nil)); err != nil {
		w.t.Fatal(err)
	}
}

// server is the server itself, which may do everything.
var server = session.Actor{Actor: audit.Actor{Tenant: here, Versions: watchword.AuthorityVersions{Local: true}}}

func (w *world) apply(name, source string) {
	w.t.Helper()
	if err := w.edit(server, name, source); err != nil {
		w.t.Fatal(err)
	}
}

// edit applies a policy, or deletes it where source is empty.
func (w *world) edit(by session.Actor, name, source string) error {
	w.t.Helper()
	e, err := w.EditPolicies(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	defer e.Release()
	if source == "" {
		err = e.Delete(w.t.Context(), by, name, -1, w.now)
	} else {
		_, err = e.Apply(w.t.Context(), by, name, []byte(source), -1, w.now)
	}
	return err
}

// actor is an operator as a request has it: its policy, and the versions that it was read at.
func (w *world) actor(id watchword.SubjectID) session.Actor {
	w.t.Helper()
	p, err := w.dir.Principal(w.t.Context(), here, id)
	if err != nil {
		w.t.Fatal(err)
	}
	return session.Actor{Actor: audit.Actor{
		Tenant: here, Subject: id,
		Versions: watchword.AuthorityVersions{Subject: id, SubjectVersion: p.Subject.AuthorityVersion, Policies: p.Grant.Version()},
	}, Policy: p.Grant}
}

// Each act on another subject, by each role: no subject gives what it may not give, or acts on a subject that has more.
func TestActsByRole(t *testing.T) {
	acts := map[string]func(*world, session.Actor) error{
		"suspend lamp-1": func(w *world, by session.Actor) error {
			_, err := w.Suspend(w.t.Context(), by, "lamp-1", "", w.now)
			return err
		},
		"revoke meter-1": func(w *world, by session.Actor) error {
			_, err := w.Revoke(w.t.Context(), by, "meter-1", "", w.now)
			return err
		},
		"delete meter-1": func(w *world, by session.Actor) error { return w.Delete(w.t.Context(), by, "meter-1", w.now) },
		"resume lamp-1": func(w *world, by session.Actor) error {
			_, err := w.Resume(w.t.Context(), by, "lamp-1", w.now)
			return err
		},
		"resume meter-1": func(w *world, by session.Actor) error {
			_, err := w.Resume(w.t.Context(), by, "meter-1", w.now)
			return err
		},
		"relabel lamp-1 as a meter": func(w *world, by session.Actor) error {
			_, err := w.SetLabels(w.t.Context(), by, "lamp-1", watchword.Labels{"kind": "meter"}, 0, w.now)
			return err
		},
		"relabel meter-1 as a lamp": func(w *world, by session.Actor) error {
			_, err := w.SetLabels(w.t.Context(), by, "meter-1", watchword.Labels{"kind": "lamp"}, 0, w.now)
			return err
		},
		"give lamp-1 a label that changes nothing": func(w *world, by session.Actor) error {
			_, err := w.SetLabels(w.t.Context(), by, "lamp-1", watchword.Labels{"kind": "lamp", "room": "a"}, 0, w.now)
			return err
		},
		"require no proof of meter-1": func(w *world, by session.Actor) error {
			_, err := w.SetProof(w.t.Context(), by, "meter-1", "", w.now)
			return err
		},
		"suspend the admin": func(w *world, by session.Actor) error {
			_, err := w.Suspend(w.t.Context(), by, "admin", "", w.now)
			return err
		},
		"suspend the viewer": func(w *world, by session.Actor) error {
			_, err := w.Suspend(w.t.Context(), by, "viewer", "", w.now)
			return err
		},
		"close the owner's session": func(w *world, by session.Actor) error { _, err := w.MayActOn(w.t.Context(), by, "owner"); return err },
		"add a lamp": func(w *world, by session.Actor) error {
			return w.CheckGiven(w.t.Context(), by, watchword.Subject{Tenant: here, ID: "lamp-2", Kind: watchword.Device, Labels: watchword.Labels{"kind": "lamp"}})
		},
		"add a meter": func(w *world, by session.Actor) error {
			return w.CheckGiven(w.t.Context(), by, watchword.Subject{Tenant: here, ID: "meter-2", Kind: watchword.Device, Labels: watchword.Labels{"kind": "meter"}})
		},
		"add a viewer": func(w *world, by session.Actor) error {
			return w.CheckGiven(w.t.Context(), by, watchword.Subject{Tenant: here, ID: "viewer-2", Kind: watchword.Operator, Role: policy.RoleViewer})
		},
		"let lamps publish more": func(w *world, by session.Actor) error {
			return w.edit(by, "lamps", "for = { kind = \"lamp\" }\n[[allow]]\npublish = [\"plant/lux\", \"plant/heat\"]\n")
		},
		"let lamps publish power": func(w *world, by session.Actor) error {
			return w.edit(by, "lamps", "for = { kind = \"lamp\" }\n[[allow]]\npublish = [\"plant/lux\", \"meter/power\"]\n")
		},
		"let lamps read devices": func(w *world, by session.Actor) error {
			return w.edit(by, "lamps", "for = { kind = \"lamp\" }\n[[allow]]\npublish = [\"plant/lux\"]\nget = [\"/v1/devices\"]\n")
		},
		"deny lamps their topic": func(w *world, by session.Actor) error {
			return w.edit(by, "lamps", "for = { kind = \"lamp\" }\n[[deny]]\npublish = [\"plant/lux\"]\n")
		},
		"delete the meters' policy": func(w *world, by session.Actor) error { return w.edit(by, "meters", "") },
		"make a role": func(w *world, by session.Actor) error {
			return w.edit(by, "keys", "role = \"keys\"\n[[allow]]\nget = [\"/v1/keys\"]\n")
		},
	}
	everybody := "owner admin operator viewer auditor installer"
	for act, may := range map[string]string{
		"suspend lamp-1":                           "owner admin installer",
		"revoke meter-1":                           "owner admin",
		"delete meter-1":                           "owner admin",
		"resume lamp-1":                            "owner admin installer",
		"resume meter-1":                           "owner admin",
		"relabel lamp-1 as a meter":                "owner admin",
		"relabel meter-1 as a lamp":                "owner admin",
		"give lamp-1 a label that changes nothing": "owner admin installer",
		"require no proof of meter-1":              "owner admin",
		"suspend the admin":                        "owner admin",
		"suspend the viewer":                       "owner admin operator viewer",
		"close the owner's session":                "owner",
		"add a lamp":                               "owner admin installer",
		"add a meter":                              "owner admin",
		"add a viewer":                             "owner",
		"let lamps publish more":                   "owner admin installer",
		"let lamps publish power":                  "owner admin",
		"let lamps read devices":                   "owner",
		"deny lamps their topic":                   "owner admin installer",
		"delete the meters' policy":                "owner admin",
		"make a role":                              "owner",
	} {
		do := acts[act]
		delete(acts, act)
		refusing := newWorld(t) // a refused act changes nothing, so one world is enough for all
		for by := range strings.FieldsSeq(everybody) {
			w := refusing
			if slices.Contains(strings.Fields(may), by) {
				w = newWorld(t)
			}
			entries := w.entries()
			err := do(w, w.actor(watchword.SubjectID(by)))
			allowed := w != refusing
			if allowed && err != nil {
				t.Errorf("%s, by the %s: %v", act, by, err)
			}
			if !allowed && watchword.CodeOf(err) != watchword.ExceedsOwn {
				t.Errorf("%s, by the %s: got %v, want exceeds_own", act, by, err)
			}
			if !allowed && w.entries() != entries {
				t.Errorf("%s, refused to the %s, is in the log", act, by)
			}
		}
	}
	for act := range acts {
		t.Errorf("%q is in no row", act)
	}
}

func (w *world) entries() int64 {
	w.t.Helper()
	tree, err := w.store.Tree(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return tree.Size()
}

// An act whose target changed after it was decided on is decided again, and an act of a subject without its policy is refused.
func TestActsCompareTheTarget(t *testing.T) {
	w := newWorld(t)
	by, err := w.MayActOn(t.Context(), w.actor("admin"), "lamp-1")
	if err != nil {
		t.Fatal(err)
	}
	if by.Versions.Target != "lamp-1" || by.Versions.TargetVersion == 0 {
		t.Errorf("the versions are %+v", by.Versions)
	}
	without := w.actor("admin")
	without.Policy = nil
	_, err = w.Suspend(t.Context(), without, "lamp-1", "", w.now)
	if watchword.CodeOf(err) != watchword.Internal {
		t.Errorf("an act without its policy: %v", err)
	}
	if s, err := w.Subject(t.Context(), here, "lamp-1"); err != nil || s.State != watchword.New {
		t.Errorf("the subject is %s, %v", s.State, err)
	}
}
