package main

import (
	"slices"
	"strings"
	"testing"
)

// "as given" is said only of a root that the restored server has.
func TestRootsOfARestore(t *testing.T) {
	for _, tc := range []struct {
		backup, given string
		roots, want   []string // parts of the lines
	}{
		{"old", "old", []string{"old"}, []string{"old, as given"}},
		{"old", "", []string{"old"}, []string{"old: not compared; it must be"}},
		{"old", "", []string{"new"}, []string{"new: not compared; a trust bundle"}},
		{"old", "old", []string{"new"}, []string{"new, another than --root", "old, as given, is not a root any more"}},
		{"old", "new", []string{"new"}, []string{"new, as given"}},
		{"old", "old", []string{"old", "new"}, []string{"old, as given", "new, another than --root"}},
	} {
		got := restoredBackup{Root: tc.backup, Compared: tc.given != "", Given: tc.given, Roots: tc.roots}.rootLines()
		if !slices.EqualFunc(got, tc.want, strings.HasPrefix) {
			t.Errorf("backup %s, given %q, restored %q: %q, want %q", tc.backup, tc.given, tc.roots, got, tc.want)
		}
	}
}
