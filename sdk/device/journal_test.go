package device

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
)

func open(t *testing.T, path string) *journal {
	t.Helper()
	j, err := openJournal(path, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.close() }) // closed earlier by some
	return j
}

func (j *journal) obey(t *testing.T, seq int64) {
	t.Helper()
	p := position{1, seq}
	for _, r := range []record{
		{"begin", act{position: p, ID: watchword.CommandID(fmt.Sprint("cmd_", seq)), Hash: "h"}},
		{"end", act{position: p, Receipt: strings.Repeat("r", 500)}},
	} {
		if err := j.write(r, false); err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever byte the power goes at, the journal reads as some state that it was in.
func TestAJournalCutAnywhereIsAJournal(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "journal")
	j := open(t, path)
	for seq := range int64(4) {
		j.obey(t, seq+1)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var last int64
	for n := range len(whole) + 1 {
		cut := filepath.Join(dir, "cut")
		if err := os.WriteFile(cut, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		k, err := openJournal(cut, true)
		if err != nil {
			t.Fatalf("cut at %d: %v", n, err)
		}
		if k.last.Seq < last {
			t.Fatalf("cut at %d: the number went back to %d", n, k.last.Seq)
		}
		last = k.last.Seq
		k.obey(t, k.last.Seq+1) // it goes on
		if err := k.close(); err != nil {
			t.Fatal(err)
		}
		if k, err = openJournal(cut, true); err != nil || k.last.Seq != last+1 {
			t.Fatalf("cut at %d and gone on: %v", n, err)
		}
		if err := k.close(); err != nil {
			t.Fatal(err)
		}
	}
	if last != 4 {
		t.Errorf("the whole journal is at %d", last)
	}
}

func TestADamagedJournalIsNotBelieved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j := open(t, path)
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
	b[20] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openJournal(path, true); err == nil || !strings.Contains(err.Error(), "journal:1") {
		t.Errorf("got %v", err)
	}
}

func TestALostJournalWaitsForANonce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, err := openJournal(path, false)
	if err != nil || !j.lost {
		t.Fatalf("lost %v, %v", j.lost, err)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	j = open(t, path) // it stays lost until a command was proven new
	if !j.lost {
		t.Error("opening it again found it")
	}
	j.obey(t, 9)
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	if j = open(t, path); j.lost || j.last.Seq != 9 {
		t.Errorf("lost %v, at %d", j.lost, j.last.Seq)
	}
}

func TestAJournalHasABound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j := open(t, path)
	const n = 12_000 // of 600 bytes: more than the file may have
	for seq := range int64(n) {
		j.obey(t, seq+1)
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() > journalBytes+1024 || len(j.acts) > journalActs {
		t.Errorf("%d bytes, %d acts, %v", info.Size(), len(j.acts), err)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	if j = open(t, path); j.last.Seq != n || j.find(position{1, n}) == nil || j.find(position{1, n}).Receipt == "" {
		t.Errorf("after compaction it is at %d", j.last.Seq)
	}
}
