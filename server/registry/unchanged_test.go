package registry_test

import (
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/session"
)

// An act that leaves everything as it is needs no right to give, and writes neither a version nor an entry. Each act that may give
// something is tried twice by an operator who has all that its targets have, and may give nothing: with what is there already, which
// passes, and with something else, which is refused. The same acts by the server pass, and are logged once.
func TestActsThatChangeNothing(t *testing.T) {
	const lamps = "for = { kind = \"lamp\" }\nmay_give = []\n[[allow]]\npublish = [\"plant/lux\"]\n"
	type act struct {
		name       string
		same, more func(w *world, by session.Actor) error
		refused    watchword.Code // of more; empty: it gives nothing
	}
	labels := func(id watchword.SubjectID, l watchword.Labels) func(*world, session.Actor) error {
		return func(w *world, by session.Actor) error {
			_, err := w.SetLabels(w.t.Context(), by, id, l, 0, w.now)
			return err
		}
	}
	proof := func(id watchword.SubjectID, proof string) func(*world, session.Actor) error {
		return func(w *world, by session.Actor) error {
			_, err := w.SetProof(w.t.Context(), by, id, proof, w.now)
			return err
		}
	}
	role := func(role string) func(*world, session.Actor) error {
		return func(w *world, by session.Actor) error {
			_, err := w.SetRole(w.t.Context(), by, "maid", role, w.now)
			return err
		}
	}
	suspend := func(id watchword.SubjectID) func(*world, session.Actor) error {
		return func(w *world, by session.Actor) error {
			_, err := w.Suspend(w.t.Context(), by, id, "", w.now)
			return err
		}
	}
	resume := func(id watchword.SubjectID) func(*world, session.Actor) error {
		return func(w *world, by session.Actor) error {
			_, err := w.Resume(w.t.Context(), by, id, w.now)
			return err
		}
	}
	revoke := func(id watchword.SubjectID) func(*world, session.Actor) error {
		return func(w *world, by session.Actor) error {
			_, err := w.Revoke(w.t.Context(), by, id, "", w.now)
			return err
		}
	}
	apply := func(text string) func(*world, session.Actor) error {
		return func(w *world, by session.Actor) error { return w.edit(by, "lamps", text) }
	}
	for _, a := range []act{
		{"labels", labels("lamp-1", watchword.Labels{"kind": "lamp"}), labels("plain", watchword.Labels{"kind": "lamp"}), watchword.ExceedsOwn},
		{"no labels", labels("plain", watchword.Labels{}), labels("plain", watchword.Labels{"kind": "lamp"}), watchword.ExceedsOwn},
		{"no proof", proof("lamp-1", ""), proof("proved", ""), watchword.ExceedsOwn},
		{"a proof", proof("proved", watchword.RequireProof), proof("lamp-1", watchword.RequireProof), ""},
		{"a role", role("maid"), role("viewer"), watchword.ExceedsOwn},
		{"suspend", suspend("sleeper"), suspend("lamp-1"), ""},
		{"resume", resume("lamp-1"), resume("sleeper"), watchword.ExceedsOwn},
		{"revoke", revoke("gone"), revoke("lamp-1"), ""},
		{"a policy", apply(lamps), apply(lamps + "[[allow]]\npublish = [\"plant/more\"]\n"), watchword.ExceedsOwn},
	} {
		t.Run(a.name, func(t *testing.T) {
			w := newWorld(t)
			w.apply("lamps", lamps)
			w.apply("keepers", "role = \"keeper\"\nmay_give = []\n[[allow]]\npublish = [\"plant/#\", \"broom\"]\nget = [\"/v1/#\"]\n")
			w.apply("maids", "role = \"maid\"\nmay_give = []\n[[allow]]\npublish = [\"broom\"]\n")
			w.add("keeper", watchword.Operator, "keeper", nil)
			w.add("maid", watchword.Operator, "maid", nil)
			w.add("plain", watchword.Device, "", nil)
			for _, id := range []watchword.SubjectID{"proved", "sleeper", "gone"} {
				w.add(id, watchword.Device, "", watchword.Labels{"kind": "lamp"})
			}
			for _, do := range []func(*world, session.Actor) error{proof("proved", watchword.RequireProof), suspend("sleeper"), revoke("gone")} {
				if err := do(w, server); err != nil {
					t.Fatal(err)
				}
			}
			entries := w.entries()
			keeper := w.actor("keeper")
			for _, by := range []session.Actor{keeper, server} {
				if err := a.same(w, by); err != nil {
					t.Errorf("what is there already, by %q: %v", by.Subject, err)
				}
			}
			if n := w.entries(); n != entries {
				t.Errorf("what is there already is logged %d times", n-entries)
			}
			if now := w.actor("keeper"); now.Versions != keeper.Versions {
				t.Errorf("the versions of authority were %+v, and are %+v", keeper.Versions, now.Versions)
			}
			if err := a.more(w, keeper); watchword.CodeOf(err) != a.refused {
				t.Errorf("something else, by the keeper: got %v, want %q", err, a.refused)
			}
			if a.refused == "" {
				return
			}
			if err := a.more(w, server); err != nil {
				t.Errorf("something else, by the server: %v", err)
			}
			if n := w.entries(); n != entries+1 {
				t.Errorf("something else is logged %d times", n-entries)
			}
		})
	}
}
