package sqlite

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
)

// Subjects that a policy is for are found by their ids, one label, or an index of those that are not devices. Only a policy for all
// devices reads all subjects.
func TestSelectedSubjectsAreFoundByIndexes(t *testing.T) {
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	t.Cleanup(func() { _ = s.Close() })
	ids, labels := policy.Selector{IDs: []watchword.SubjectID{"lamp-1"}}, policy.Selector{Labels: watchword.Labels{"kind": "lamp", "site": "a"}}
	for name, some := range map[string][]policy.Selector{
		"ids": {ids}, "labels": {labels}, "ids and labels": {ids, labels}, "other labels": {labels, {Labels: watchword.Labels{"kind": "meter"}}},
		"operators": {{Kinds: []watchword.Kind{watchword.Operator}}}, "services and labels": {{Kinds: []watchword.Kind{watchword.Service}}, labels},
	} {
		q, _, err := s.selected(t.Context(), watchword.DefaultTenant, some)
		if err != nil {
			t.Fatal(err)
		}
		byID := false
		for _, detail := range plan(t, s, q) {
			byID = byID || strings.HasPrefix(detail, "SEARCH subjects USING PRIMARY KEY (tenant=? AND id=?)")
			if strings.HasPrefix(detail, "SCAN subjects") || strings.HasPrefix(detail, "SCAN labels") || strings.HasPrefix(detail, "SEARCH") && !strings.Contains(detail, "AND") {
				t.Errorf("%s: %s", name, detail)
			}
		}
		if !byID {
			t.Errorf("%s: the subjects are not found by their ids: %v", name, plan(t, s, q))
		}
	}
	q, _, err := s.selected(t.Context(), watchword.DefaultTenant, []policy.Selector{ids, {Kinds: []watchword.Kind{watchword.Device}}})
	if text := strings.Join(plan(t, s, q), "; "); err != nil || text != "SEARCH subjects USING PRIMARY KEY (tenant=?)" {
		t.Errorf("all devices: %s (%v)", text, err)
	}
}
