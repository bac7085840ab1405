package sqlite

import (
	"path/filepath"
	"testing"
)

// notJournaled are the other tables, and why a restore needs no rows of them that are newer than its backup.
var notJournaled = map[string]string{
	"audit_checkpoints":   "the log goes on under another name after a restore, and the journal has the entries of changes of authority",
	"audit_entries":       "likewise",
	"audit_pruned":        "likewise",
	"audit_terms":         "likewise",
	"audit_tiles":         "likewise",
	"clock_mark":          "the clock is checked again at the restore",
	"commands":            "commands of before a restore are of an older epoch",
	"consumed_jtis":       "assertions of before a restore are void",
	"functions":           "devices announce them again",
	"goose_db_version":    "the schema, which the journal names",
	"handovers":           "of commands",
	"idempotency":         "of commands",
	"issuer_use":          "counts of devices, which their next requests write",
	"mqtt_messages":       "messages are only in backups",
	"mqtt_retained":       "likewise",
	"mqtt_sessions":       "likewise",
	"mqtt_subscriptions":  "likewise",
	"mqtt_wills":          "likewise",
	"notices":             "the log has what they tell",
	"pairings":            "they wait for minutes",
	"policy_versions":     "triggers raise them where policies are applied; tokens of before a restore are void",
	"unfinished_commands": "of commands",
	"twins":               "devices report them again; configurations are only in backups",
}

// Each table is journaled, or there is a reason why a restore needs only the rows in its backup.
func TestEachTableIsJournaledOrNot(t *testing.T) {
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	t.Cleanup(func() { _ = s.Close() })
	tables, err := queryAll(t.Context(), s, func(r scanner) (name string, err error) { return name, r.Scan(&name) },
		`SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\_%' ESCAPE '\'`)
	if err != nil {
		t.Fatal(err)
	}
	is := map[string]bool{}
	for _, ts := range journaled {
		for _, j := range ts {
			if is[j.table] {
				t.Errorf("%s is journaled twice", j.table)
			}
			is[j.table] = true
		}
	}
	for name := range notJournaled {
		if is[name] {
			t.Errorf("%s is journaled and is not", name)
		}
		is[name] = true
	}
	exists := map[string]bool{}
	for _, name := range tables {
		exists[name] = true
		if !is[name] {
			t.Errorf("%s: does it hold authority that changed after a backup and that a restore must not lose? Add it to journaled, or to notJournaled with the reason", name)
		}
	}
	for name := range is {
		if !exists[name] {
			t.Errorf("there is no table %s", name)
		}
	}
}
