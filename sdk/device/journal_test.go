package device

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
)

// fresh makes the memory of a device that has just enrolled.
func fresh(t *testing.T, path string) *journal {
	t.Helper()
	n := numbersOf(t, path)
	if err := newJournal(durable.OS{}, path, n); err != nil {
		t.Fatal(err)
	}
	return open(t, path)
}

func numbersOf(t *testing.T, path string) *counterFile {
	t.Helper()
	n, err := readCounters(durable.OS{}, path+".numbers")
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func open(t *testing.T, path string) *journal {
	t.Helper()
	j, err := openJournal(durable.OS{}, path, numbersOf(t, path))
	if err == nil {
		err = j.writeErr
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.close() }) // closed earlier by some
	return j
}

func (j *journal) obey(t *testing.T, seq int64) {
	t.Helper()
	p := position{1, seq}
	for _, r := range []journalRecord{
		{"begin", execution{position: p, ID: watchword.CommandID(fmt.Sprint("cmd_", seq)), Hash: "h"}},
		{"end", execution{position: p, ID: watchword.CommandID(fmt.Sprint("cmd_", seq)), Hash: "h", Receipt: strings.Repeat("r", 500)}},
	} {
		if err := j.write(r, false); err != nil {
			t.Fatal(err)
		}
	}
}

// A journal of a build that kept no counts is taken over as it is, and not lost.
func TestAJournalOfABuildWithoutCountsIsTakenOver(t *testing.T) {
	line := func(r journalRecord) []byte {
		b, err := encodeRecord(r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	begun := line(journalRecord{"begin", execution{position: position{1, 7}, ID: "cmd_7", Hash: "h"}})
	ended := line(journalRecord{"end", execution{position: position{1, 7}, Receipt: "r"}})
	for name, tc := range map[string]struct {
		content string
		seq     int64
		lost    bool
	}{
		"of a device that did nothing yet": {"", 0, false},
		"of one that did":                  {string(begun) + string(ended), 7, false},
		"of one that was cut off":          {string(begun), 7, false},
		"with a torn line":                 {string(begun) + "deadbeef {", 7, false},
		"that is lost already":             {string(line(journalRecord{Op: "lost"})), 0, true},
		"with a damaged line":              {string(begun) + "deadbeef {}\n", 7, true},
		"with damage before the end":       {"deadbeef {}\n" + string(begun), 7, true},
	} {
		path := filepath.Join(t.TempDir(), "journal")
		if err := os.WriteFile(path, []byte(tc.content), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			j := open(t, path)
			if j.lost != tc.lost || j.last.Seq != tc.seq || tc.seq > 0 && j.find(position{1, 7}) == nil {
				t.Errorf("%s: lost %v (%s), at %d", name, j.lost, j.lostReason, j.last.Seq)
			}
			if err := j.close(); err != nil {
				t.Fatal(err)
			}
		}
		// From then on an empty file is a loss.
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if j := open(t, path); !j.lost || j.last.Seq != tc.seq {
			t.Errorf("%s, and emptied: lost %v, at %d", name, j.lost, j.last.Seq)
		}
	}
}

// keepsName is a disk on which one file cannot be replaced.
type keepsName struct {
	durable.OS
	path string
}

func (k keepsName) Rename(from, to string) error {
	if to == k.path {
		return os.ErrPermission
	}
	return k.OS.Rename(from, to)
}

// A power cut while a journal is taken over costs nothing, before the file is rewritten and after; and
// then the counts hold it, though nothing was begun yet.
func TestATakeoverThatWasCutOffGoesOn(t *testing.T) {
	for name, rewrite := range map[string]bool{"before the file is written anew": false, "after": true} {
		for _, last := range []position{{}, {1, 7}} {
			path := filepath.Join(t.TempDir(), "journal")
			old := &journal{disk: durable.OS{}, path: path, last: last}
			if last.Seq > 0 {
				old.add(execution{position: last, ID: "cmd_7", Hash: "h"})
			}
			if _, err := old.compact(); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if rewrite {
				err = numbersOf(t, path).update(func(c *counters) { c.position, c.Adopting = last, true })
			} else {
				_, rest, _ := strings.Cut(string(b), "\n") // without the first record
				if err = os.WriteFile(path, []byte(rest), 0o600); err == nil {
					var j *journal
					if j, err = openJournal(keepsName{path: path}, path, numbersOf(t, path)); err == nil && j.writeErr == nil {
						t.Error("the file was written anew")
					}
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			j := open(t, path)
			if j.lost || j.last != last || j.counters.values().Adopting {
				t.Errorf("%s, at number %d: lost %v (%s), at %d, adopting %v", name, last.Seq, j.lost, j.lostReason, j.last.Seq, j.counters.values().Adopting)
			}
			if err := j.close(); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if j := open(t, path); !j.lost {
				t.Errorf("%s, at number %d, and emptied: it is not lost", name, last.Seq)
			}
		}
	}
}

// What can be read of a damaged journal still counts: receipts wait to be handed in, and what was
// begun is known.
func TestWhatIsReadOfADamagedJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j := fresh(t, path)
	for seq := range int64(3) {
		j.obey(t, seq+1)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(b), "\n") // first, begin 1, end 1, …
	lines[3] = "deadbeef" + lines[3][8:]         // the beginning of 2
	if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	j = open(t, path)
	if !j.lost || j.last.Seq != 3 || !strings.Contains(j.lostReason, "line 4") {
		t.Errorf("lost %v (%s), at %d", j.lost, j.lostReason, j.last.Seq)
	}
	for seq := range int64(3) {
		if a := j.find(position{1, seq + 1}); a == nil || a.Receipt == "" || a.Sent || a.ID == "" {
			t.Errorf("number %d is remembered as %+v", seq+1, a)
		}
	}
}

func TestALostJournalWaitsForANonce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j := fresh(t, path)
	j.obey(t, 3)
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it stays lost until a command was proven new
		if j = open(t, path); !j.lost || j.last.Seq != 3 {
			t.Fatalf("lost %v, at %d", j.lost, j.last.Seq)
		}
		if err := j.close(); err != nil {
			t.Fatal(err)
		}
	}
	j = open(t, path)
	j.obey(t, 9)
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	if j = open(t, path); j.lost || j.last.Seq != 9 {
		t.Errorf("lost %v, at %d", j.lost, j.last.Seq)
	}
}

// A device that enrolls in a folder with an older journal begins with a lost memory.
func TestEnrollmentIgnoresOlderState(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j := fresh(t, path)
	if j.lost {
		t.Error("a new one is lost")
	}
	j.obey(t, 3)
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	if j = fresh(t, path); !j.lost || j.last.Seq != 0 || len(j.executions) != 0 {
		t.Errorf("lost %v, at %d", j.lost, j.last.Seq)
	}
}

func TestAJournalHasABound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j := fresh(t, path)
	j.disk, j.counters.disk = lazyDisk{}, lazyDisk{}
	const n = 12_000 // of 600 bytes: more than the file may have
	for seq := range int64(n) {
		j.obey(t, seq+1)
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() > journalBytes+1024 || len(j.executions) > maxExecutions {
		t.Errorf("%d bytes, %d acts, %v", info.Size(), len(j.executions), err)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	if j = open(t, path); j.last.Seq != n || j.find(position{1, n}) == nil || j.find(position{1, n}).Receipt == "" {
		t.Errorf("after compaction it is at %d", j.last.Seq)
	}
}

// A journal that ends at a whole record, and before the last command that was begun, is lost.
func TestTruncatedJournalIsLost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j := fresh(t, path)
	j.obey(t, 1)
	j.obey(t, 2)
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(b), "\n") // first, begin 1, end 1, begin 2, end 2
	for n, lost := range map[int]bool{1: true, 3: true, 4: false} {
		if err := os.WriteFile(path, []byte(strings.Join(lines[:n], "")), 0o600); err != nil {
			t.Fatal(err)
		}
		if k := open(t, path); k.lost != lost || k.last.Seq != 2 {
			t.Errorf("cut behind line %d: lost %v, at %d", n, k.lost, k.last.Seq)
		}
	}
}
