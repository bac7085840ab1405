package backup_test

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/backup"
)

var journalKey = bytes.Repeat([]byte("k"), 32)

func head(size int64) backup.JournalHead {
	return backup.JournalHead{Issuer: "https://hub.example", Start: backup.Log{Origin: "hub/log", Size: size, Hash: "h"}, Made: made}
}

func record(to int64) backup.Record {
	return backup.Record{To: to, Root: "h", At: made, Entries: []backup.Entry{{Seq: to, Body: "{}"}}, Objects: []backup.Object{{Ref: backup.Ref{Kind: backup.PolicyObject, ID: "p"}}}}
}

// journal writes a journal of a record for each number in to.
func journal(t *testing.T, path string, r age.Recipient, h backup.JournalHead, to ...int64) {
	t.Helper()
	j, err := backup.CreateJournal(path, journalKey, []age.Recipient{r}, h)
	must(t, err)
	for _, n := range to {
		must(t, j.Append(record(n)))
	}
	must(t, j.Close())
}

// sameRoot is the root of the log at each size in tests that do not speak of it.
func sameRoot(int64) (string, error) { return "h", nil }

// readJournals returns the last entry of each record.
func readJournals(since int64, id age.Identity, paths ...string) (to []int64, out backup.JournalsRead, err error) {
	out, err = backup.ReadJournals(paths, journalKey, []age.Identity{id}, backup.Log{Origin: "hub/log", Size: since, Hash: "h"}, sameRoot, func(r backup.Record) error {
		to = append(to, r.To)
		return nil
	})
	return to, out, err
}

func TestAJournalFollowsABackup(t *testing.T) {
	id, dir := identity(t), t.TempDir()
	one, two := filepath.Join(dir, "1"), filepath.Join(dir, "2")
	journal(t, one, id.Recipient(), head(10), 12, 15, 20)
	later := head(18)
	later.Made = made.Add(time.Hour)
	journal(t, two, id.Recipient(), later, 25)
	for _, tc := range []struct {
		since int64
		want  []int64
	}{{10, []int64{12, 15, 20, 25}}, {12, []int64{15, 20, 25}}, {13, []int64{15, 20, 25}}, {18, []int64{20, 25}}, {25, nil}} {
		to, out, err := readJournals(tc.since, id, two, one)
		must(t, err)
		if !reflect.DeepEqual(to, tc.want) || out.To != 25 || out.Entries != len(tc.want) || out.Missing != 0 || out.Damage != "" {
			t.Errorf("since %d: %v, %+v; want %v", tc.since, to, out, tc.want)
		}
	}
	if to, out, err := readJournals(9, id, one, two); err != nil || out.Missing != 1 || len(to) != 4 {
		t.Errorf("entry 10 is in no journal: %v, %+v, %v", to, out, err)
	}
	far := filepath.Join(dir, "3")
	journal(t, far, id.Recipient(), head(26), 30)
	if to, out, err := readJournals(10, id, one, two, far); err != nil || out.Missing != 1 || out.To != 30 || len(to) != 5 {
		t.Errorf("entry 26 is in no journal: %v, %+v, %v", to, out, err)
	}
	overlaps := filepath.Join(dir, "4")
	journal(t, overlaps, id.Recipient(), head(11), 13, 25, 28)
	if to, _, err := readJournals(10, id, one, overlaps); err != nil || !reflect.DeepEqual(to, []int64{12, 15, 20, 25, 28}) {
		t.Errorf("a journal that overlaps: %v, %v", to, err)
	}
	if _, _, err := readJournals(10, identity(t), one); watchword.CodeOf(err) != watchword.BackupInvalid {
		t.Errorf("another identity: %v", err)
	}
	if _, err := backup.ReadJournals([]string{one}, journalKey, []age.Identity{id}, backup.Log{Origin: "hub/log", Size: 10, Hash: "other"}, sameRoot, nil); watchword.CodeOf(err) != watchword.BackupInvalid {
		t.Errorf("another log of the same size: %v", err)
	}
	if _, err := backup.ReadJournals([]string{one}, journalKey, []age.Identity{id}, backup.Log{Origin: "other/log", Size: 10, Hash: "h"}, sameRoot, nil); watchword.CodeOf(err) != watchword.NotFound {
		t.Errorf("another origin: %v", err)
	}
	if _, err := backup.ReadJournals([]string{one}, bytes.Repeat([]byte("x"), 32), []age.Identity{id}, backup.Log{Origin: "hub/log", Size: 10, Hash: "h"}, sameRoot, nil); watchword.CodeOf(err) != watchword.BackupInvalid {
		t.Errorf("a journal that another server wrote: %v", err)
	}
}

// The server goes on at the end of its journal without a way to decrypt it.
func TestAJournalIsContinued(t *testing.T) {
	id, path := identity(t), filepath.Join(t.TempDir(), "j")
	journal(t, path, id.Recipient(), head(10), 12)
	j, err := backup.OpenJournal(path, journalKey, []age.Recipient{id.Recipient()})
	must(t, err)
	if j.To() != 12 || j.Start.Size != 10 || j.Damage != "" {
		t.Errorf("it covers up to %d: %+v", j.To(), j)
	}
	must(t, j.Append(record(14)))
	must(t, j.Close())
	to, _, err := readJournals(10, id, path)
	must(t, err)
	if !reflect.DeepEqual(to, []int64{12, 14}) {
		t.Errorf("records %v", to)
	}
}

func TestAChangedJournalIsRefused(t *testing.T) {
	id, dir := identity(t), t.TempDir()
	path := filepath.Join(dir, "j")
	var ends []int
	j, err := backup.CreateJournal(path, journalKey, []age.Recipient{id.Recipient()}, head(10))
	must(t, err)
	size := func() int {
		info, err := os.Stat(path)
		must(t, err)
		return int(info.Size())
	}
	for _, n := range []int64{12, 14, 16} {
		ends = append(ends, size())
		must(t, j.Append(record(n)))
	}
	must(t, j.Close())
	good, err := os.ReadFile(path)
	must(t, err)
	read := func(b []byte) ([]int64, backup.JournalsRead, error) {
		must(t, os.WriteFile(path, b, 0o600))
		return readJournals(10, id, path)
	}
	for at := 0; at < len(good); at += 3 {
		changed := bytes.Clone(good)
		changed[at] ^= 1
		to, out, err := read(changed)
		if at < ends[0] {
			if watchword.CodeOf(err) != watchword.BackupInvalid {
				t.Fatalf("byte %d of the beginning was changed: %v, %+v, %v", at, to, out, err)
			}
			continue
		}
		whole := 0 // records before the changed one: they count, and the result says that others do not
		for _, end := range ends[1:] {
			if end <= at {
				whole++
			}
		}
		if err != nil || out.Damage == "" || len(to) != whole {
			t.Fatalf("byte %d was changed: %v, %+v, %v; want %d records", at, to, out, err, whole)
		}
	}
	for _, n := range []int{ends[2] + 1, ends[2] + 5, len(good) - 1} { // as a crash leaves it
		to, out, err := read(good[:n])
		if err != nil || !reflect.DeepEqual(to, []int64{12, 14}) || out.Damage == "" {
			t.Errorf("cut off at %d: %v, %+v, %v", n, to, out, err)
		}
		j, err := backup.OpenJournal(path, journalKey, []age.Recipient{id.Recipient()})
		must(t, err)
		if j.Damage == "" || j.To() != 14 || j.Append(record(16)) == nil {
			t.Error("a journal that was cut off is continued")
		}
		must(t, j.Close())
	}
	first, second, third := good[ends[0]:ends[1]], good[ends[1]:ends[2]], good[ends[2]:]
	// A journal with the same numbers and other records.
	other := filepath.Join(dir, "other")
	journal(t, other, id.Recipient(), head(10), 12, 14, 16)
	foreign, err := os.ReadFile(other)
	must(t, err)
	if len(foreign) != len(good) {
		t.Fatalf("the journals have %d and %d bytes", len(foreign), len(good))
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(append([][]byte{good[:ends[0]]}, parts...), nil) }
	for what, tc := range map[string]struct {
		b     []byte
		valid int
	}{
		"a record left out": {join(first, third), 1}, "a record of another journal": {join(first, foreign[ends[1]:ends[2]], third), 1}, "records swapped": {join(second, first, third), 0},
		"a record twice": {join(first, first, second, third), 1}, "zeros behind it, as after a loss of power": {join(first, second, third, make([]byte, 4096)), 3},
	} {
		if to, out, err := read(tc.b); err != nil || out.Damage == "" || len(to) != tc.valid {
			t.Errorf("%s: %v, %+v, %v; want %d records", what, to, out, err, tc.valid)
		}
	}
	for what, b := range map[string][]byte{
		"no beginning": bytes.Join([][]byte{first, second, third}, nil), "nothing": nil, "half a beginning": good[:20],
	} {
		if to, _, err := read(b); watchword.CodeOf(err) != watchword.BackupInvalid {
			t.Errorf("%s: %v, %v", what, to, err)
		}
	}
}

// A damaged file takes nothing from the other journals in its folder.
func TestADamagedJournalAmongOthers(t *testing.T) {
	id, dir := identity(t), t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	journal(t, path("1"), id.Recipient(), head(10), 12, 15, 20)
	journal(t, path("2"), id.Recipient(), head(20), 25)
	journal(t, path("3"), id.Recipient(), head(15), 18, 25)
	good, err := os.ReadFile(path("1"))
	must(t, err)
	must(t, os.WriteFile(path("cut"), good[:len(good)-1], 0o600))
	must(t, os.WriteFile(path("empty"), nil, 0o600))
	must(t, os.WriteFile(path("zeros"), make([]byte, 512), 0o600))
	must(t, os.WriteFile(path("other"), []byte("notes"), 0o600))
	for _, tc := range []struct {
		what                       string
		files                      []string
		want                       []int64
		missing                    int64
		damage                     bool
		unreadable, empty, covered int
	}{
		{"an empty file", []string{"1", "empty"}, []int64{12, 15, 20}, 0, false, 0, 1, 20},
		{"zeros alone", []string{"1", "zeros"}, []int64{12, 15, 20}, 0, false, 1, 0, 20},
		{"what is not a journal", []string{"other", "1"}, []int64{12, 15, 20}, 0, false, 1, 0, 20},
		{"a damaged end", []string{"cut"}, []int64{12, 15}, 0, true, 0, 0, 15},
		{"a damaged end that the next file does not make up for", []string{"cut", "2"}, []int64{12, 15, 25}, 5, false, 0, 0, 25},
		{"a damaged end that the next file makes up for", []string{"cut", "3"}, []int64{12, 15, 18, 25}, 0, false, 0, 0, 25},
	} {
		var files []string
		for _, f := range tc.files {
			files = append(files, path(f))
		}
		to, out, err := readJournals(10, id, files...)
		if err != nil || !reflect.DeepEqual(to, tc.want) || out.Missing != tc.missing || out.Damage != "" != tc.damage ||
			len(out.Unreadable) != tc.unreadable || len(out.Empty) != tc.empty || out.To != int64(tc.covered) {
			t.Errorf("%s: %v, %+v, %v", tc.what, to, out, err)
		}
	}
}

// The journals of a restored server count from where its log parts from the one before. What is passed over then is named, unless the
// restore had it.
func TestAJournalOfARestoredServerLeadsOn(t *testing.T) {
	id := identity(t)
	restored := func(origin string, epoch, parts, applied int64) backup.JournalHead {
		h := head(parts)
		h.Start.Origin, h.Epoch, h.Restored = origin, epoch, &backup.Log{Origin: "hub/log", Size: parts, Hash: "h"}
		if applied > 0 {
			h.Applied = &backup.Log{Origin: "hub/log", Size: applied}
		}
		return h
	}
	const nine, ten = "hub/log/9-a", "hub/log/10-b"
	beside := restored(ten, 10, 10, 0)
	beside.Applied = &backup.Log{Origin: nine, Size: 30}
	again := restored(ten, 10, 25, 0)
	again.Restored.Origin = nine
	other := restored(nine, 9, 10, 0)
	other.Restored.Hash = "other"
	type file struct {
		head backup.JournalHead
		to   []int64
	}
	first := file{head(10), []int64{12, 15, 20, 25}}
	for _, tc := range []struct {
		name            string
		files           []file
		want            []int64
		origin          string
		missing, passed int
	}{
		{"restored from the same backup, with the journal", []file{first, {restored(nine, 9, 10, 25), []int64{14, 30}}}, []int64{14, 30}, nine, 0, 0},
		{"likewise, without its last record", []file{first, {restored(nine, 9, 10, 24), []int64{14, 30}}}, []int64{14, 30}, nine, 0, 1},
		{"likewise, without the journal", []file{first, {restored(nine, 9, 10, 0), []int64{14, 30}}}, []int64{14, 30}, nine, 0, 1},
		{"its journal alone", []file{{restored(nine, 9, 10, 0), []int64{14, 30}}}, []int64{14, 30}, nine, 0, 0},
		{"restored from a later backup", []file{{head(10), []int64{12, 20}}, {restored(nine, 9, 20, 0), []int64{22, 30}}}, []int64{12, 20, 22, 30}, nine, 0, 0},
		{"likewise, within a record", []file{{head(10), []int64{12, 23}}, {restored(nine, 9, 20, 23), []int64{22, 30}}}, []int64{12, 20, 22, 30}, nine, 0, 0},
		{"likewise, with a gap before", []file{{head(10), []int64{12, 18}}, {restored(nine, 9, 20, 0), []int64{22, 30}}}, []int64{12, 18, 22, 30}, nine, 2, 0},
		{"restored from an earlier backup", []file{first, {restored(nine, 9, 9, 0), []int64{14, 30}}}, []int64{12, 15, 20, 25}, "hub/log", 0, 0},
		{"restored from another log", []file{first, {other, []int64{14, 30}}}, []int64{12, 15, 20, 25}, "hub/log", 0, 0},
		{"two of them: that of the higher epoch", []file{{restored(ten, 10, 10, 0), []int64{13}}, {restored(nine, 9, 10, 0), []int64{14, 30}}}, []int64{13}, ten, 0, 1},
		{"two, and the second had the first", []file{{restored(nine, 9, 10, 25), []int64{14, 30}}, {beside, []int64{13}}, first}, []int64{13}, ten, 0, 0},
		{"one after the other", []file{{again, []int64{28}}, {restored(nine, 9, 10, 25), []int64{14, 25}}, first}, []int64{14, 25, 28}, ten, 0, 0},
	} {
		dir := t.TempDir()
		var paths []string
		for i, f := range tc.files {
			path := filepath.Join(dir, string(rune('a'+i)))
			journal(t, path, id.Recipient(), f.head, f.to...)
			paths = append(paths, path)
		}
		to, out, err := readJournals(10, id, paths...)
		if err != nil || !reflect.DeepEqual(to, tc.want) || out.Origin != tc.origin || out.To != tc.want[len(tc.want)-1] || out.Missing != int64(tc.missing) || len(out.PassedOver) != tc.passed {
			t.Errorf("%s: %v, %+v, %v", tc.name, to, out, err)
		}
	}
}

// The same numbers in two logs are other entries: such journals are not joined.
func TestJournalsOfDifferentLogsAreRefused(t *testing.T) {
	id := identity(t)
	type file struct {
		forks []backup.Fork
		start backup.Mark
		marks []backup.Mark
	}
	one := func(start int64, root string, marks ...backup.Mark) file {
		return file{start: backup.Mark{Size: start, Root: root}, marks: marks}
	}
	mark := func(size int64, root string) backup.Mark { return backup.Mark{Size: size, Root: root} }
	root := func(size int64) (string, error) {
		return map[int64]string{8: "8", 10: "10", 12: "12", 15: "15", 16: "16'", 17: "17'"}[size], nil
	}
	after := one(10, "10", mark(16, "16'"), mark(21, "21'"))
	after.forks = []backup.Fork{{Common: 15, Parted: 20}}
	far := one(10, "10", mark(20, "20"))
	far.forks = []backup.Fork{{Common: 12, Parted: 14}}
	before := one(10, "10", mark(15, "15"))
	for _, tc := range []struct {
		name  string
		since int64
		files []file
		good  bool
	}{
		{"one log", 10, []file{one(10, "10", mark(15, "15"), mark(20, "20")), one(15, "15", mark(20, "20"), mark(30, "30"))}, true},
		{"the backup is within it", 12, []file{one(10, "10", mark(12, "12"), mark(20, "20"))}, true},
		{"the beginning is of another log", 10, []file{one(10, "x", mark(12, "12"), mark(20, "20"))}, false},
		{"the beginning is of another log, before the backup", 12, []file{one(8, "x", mark(20, "20"))}, false},
		{"a record before the end of the backup", 15, []file{one(10, "10", mark(12, "x"), mark(20, "20"))}, false},
		{"the record at the end of the backup", 15, []file{one(10, "10", mark(15, "x"), mark(20, "20"))}, false},
		{"of another log, without an entry after the backup", 15, []file{one(10, "10", mark(12, "x")), one(15, "15", mark(20, "20"))}, true},
		{"two journals", 10, []file{one(10, "10", mark(15, "15"), mark(20, "20")), one(10, "10", mark(20, "x"))}, false},
		{"an older copy was put back", 10, []file{one(10, "10", mark(15, "15"), mark(20, "20")), after}, false},
		{"likewise, and the backup may be of before that", 15, []file{far}, false},
		{"likewise, and a record shows that it is not", 17, []file{after}, false},
		{"likewise, and a journal follows it", 16, []file{after}, true},
		{"likewise, and the journal before does not go beyond it", 10, []file{before, after}, true},
		{"without roots, as in format 1", 12, []file{one(8, "", mark(15, ""), mark(20, ""))}, true},
	} {
		dir := t.TempDir()
		var paths []string
		for i, f := range tc.files {
			path := filepath.Join(dir, string(rune('a'+i)))
			paths = append(paths, path)
			h := head(f.start.Size)
			h.Start.Hash, h.Forks = f.start.Root, f.forks
			j, err := backup.CreateJournal(path, journalKey, []age.Recipient{id.Recipient()}, h)
			must(t, err)
			for _, m := range f.marks {
				r := record(m.Size)
				r.Root = m.Root
				must(t, j.Append(r))
			}
			must(t, j.Close())
		}
		for range 2 {
			want, err := root(tc.since)
			must(t, err)
			_, err = backup.ReadJournals(paths, journalKey, []age.Identity{id}, backup.Log{Origin: "hub/log", Size: tc.since, Hash: want}, root, func(backup.Record) error { return nil })
			if good := err == nil; good != tc.good || !good && watchword.CodeOf(err) != watchword.BackupInvalid {
				t.Errorf("%s: %v", tc.name, err)
			}
			slices.Reverse(paths)
		}
	}
}
