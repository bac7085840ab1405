package registry_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
)

// What an edit, a check and a comparison read of the store does not grow with the subjects that they do not concern.
func TestAnEditReadsTheSubjectsThatItConcerns(t *testing.T) {
	const rule = "[[allow]]\npublish = [\"plant/${id}\"]\n"
	type reads struct{ statements, rows int64 }
	edits := map[string]func(w *world, by string) error{}
	for name, selector := range map[string]string{
		"one device": "subjects = [\"lamp-1\"]\n", "a site": "for = { kind = \"lamp\", site = \"small\" }\n", "services": "for = {}\nkinds = [\"service\"]\n", "a role": "role = \"installer\"\n",
	} {
		edits["apply to "+name] = func(w *world, by string) error {
			return w.edit(w.actor(watchword.SubjectID(by)), "edited", selector+rule)
		}
		edits["check for "+name] = func(w *world, _ string) error {
			return w.CheckPolicy(w.t.Context(), here, "edited", []byte(selector+rule))
		}
		edits["compare for "+name] = func(w *world, by string) error {
			_, err := w.diff(w.actor(watchword.SubjectID(by)), "edited", selector+rule)
			return err
		}
		edits["move to "+name] = func(w *world, by string) error {
			if err := w.edit(server, "moved", "for = { kind = \"lamp\", site = \"other\" }\n"+rule); err != nil {
				return err
			}
			return w.edit(w.actor(watchword.SubjectID(by)), "moved", selector+rule)
		}
		edits["delete for "+name] = func(w *world, by string) error {
			if err := w.edit(server, "deleted", selector+rule); err != nil {
				return err
			}
			return w.edit(w.actor(watchword.SubjectID(by)), "deleted", "")
		}
	}
	counts := map[string]map[int]reads{}
	for _, n := range []int{20, 300} {
		w := newWorld(t)
		for i := range n {
			w.add(watchword.SubjectID(fmt.Sprint("other-", i)), watchword.Device, "", watchword.Labels{"kind": "lamp", "site": "large"})
		}
		w.add("lamp-2", watchword.Device, "", watchword.Labels{"kind": "lamp", "site": "small"})
		w.add("lamp-3", watchword.Device, "", watchword.Labels{"kind": "lamp", "site": "other"})
		w.add("billing", watchword.Service, "", nil)
		for _, name := range slices.Sorted(maps.Keys(edits)) {
			statements, rows := w.store.Reads()
			if err := edits[name](w, policy.RoleOwner); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			s, r := w.store.Reads()
			if counts[name] == nil {
				counts[name] = map[int]reads{}
			}
			counts[name][n] = reads{s - statements, r - rows}
			w.forget(t)
		}
	}
	for name, of := range counts {
		// The labels of a selector are counted, to ten times the number of the rarest and 100.
		if few, many := of[20], of[300]; many.statements != few.statements || many.rows != few.rows {
			t.Errorf("%s: %d statements and %d rows with 20 other devices, %d and %d with 300", name, few.statements, few.rows, many.statements, many.rows)
		}
	}
}

// forget deletes the policies that the edits of a test made.
func (w *world) forget(t *testing.T) {
	t.Helper()
	for _, name := range []string{"edited", "moved", "deleted"} {
		if err := w.edit(server, name, ""); err != nil && watchword.CodeOf(err) != watchword.NotFound {
			t.Fatal(err)
		}
	}
}
