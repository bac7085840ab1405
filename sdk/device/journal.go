package device

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
)

// The journal is the device's memory of commands: one record a line, each with
// its checksum, synced before anything is done that it speaks of. A power cut
// can tear the last line only, and a torn line is as if it was never written.

// position is a command's number, which only grows.
type position struct {
	Epoch int64 `json:"epoch"`
	Seq   int64 `json:"seq"`
}

func (p position) after(q position) bool {
	return p.Epoch > q.Epoch || p.Epoch == q.Epoch && p.Seq > q.Seq
}

// act is one command that was begun. Receipt is empty until it ended.
type act struct {
	position
	ID      watchword.CommandID `json:"cid"`
	Hash    string              `json:"ch"`
	Receipt string              `json:"receipt,omitempty"`
	Sent    bool                `json:"sent,omitempty"`
}

// record is one line. Op is begin, end, sent, or lost: the counters before this
// line are unknown.
type record struct {
	Op string `json:"op"`
	act
}

// How many acts are remembered, and how long the file grows before it is
// written anew with those alone.
const (
	journalActs  = 512
	journalBytes = 4 << 20
	maxJournal   = 64 << 20 // a compact one holds journalActs receipts, and may be over journalBytes
)

type journal struct {
	path string
	f    *os.File
	size int64
	last position
	lost bool // the counters were lost: only a nonce shows that a command is new
	acts []*act
	torn error // a write that failed: nothing may follow it
}

// openJournal reads the journal at path. fresh says that the device has just
// enrolled: then a missing journal is an empty one, not a lost one.
func openJournal(path string, fresh bool) (*journal, error) {
	j := &journal{path: path}
	b, err := durable.ReadTrusted(path, maxJournal)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return nil, err
	}
	good, err := j.replay(b)
	if err != nil {
		return nil, err
	}
	if j.f, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600); err != nil {
		return nil, err
	}
	if err := j.cut(good); err != nil {
		return nil, errors.Join(err, j.f.Close())
	}
	if missing && !fresh {
		if err := j.write(record{Op: "lost"}, true); err != nil {
			return nil, errors.Join(err, j.f.Close())
		}
	}
	return j, nil
}

// lookAtJournal reads a journal that another process may be writing. Nothing can
// be begun with it.
func lookAtJournal(path string) (*journal, error) {
	b, err := durable.ReadTrusted(path, maxJournal)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	j := &journal{path: path, torn: watchword.Refuse(watchword.FolderInUse, "the folder was opened to look, not to obey")}
	_, err = j.replay(b)
	return j, err
}

// cut takes off a torn last line and makes the file's name durable.
func (j *journal) cut(good int64) error {
	if err := j.f.Truncate(good); err != nil {
		return err
	}
	if _, err := j.f.Seek(good, io.SeekStart); err != nil {
		return err
	}
	j.size = good
	if err := j.f.Sync(); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(j.path))
}

// replay applies whole lines and returns how many bytes they have. Only the last
// line may be torn; damage before it is an error, because what follows cannot be trusted.
func (j *journal) replay(b []byte) (good int64, err error) {
	for n := 1; len(b) > 0; n++ {
		line, rest, whole := bytes.Cut(b, []byte("\n"))
		r, ok := parseRecord(line)
		if !ok || !whole {
			if len(rest) == 0 {
				return good, nil
			}
			return 0, watchword.Refuse(watchword.Internal, "%s:%d: the journal is damaged; its counters cannot be trusted: move it away, and the device goes on by nonce", j.path, n)
		}
		j.apply(r)
		good += int64(len(line)) + 1
		b = rest
	}
	return good, nil
}

func parseRecord(line []byte) (r record, ok bool) {
	if len(line) < 10 || line[8] != ' ' {
		return r, false
	}
	sum, err := strconv.ParseUint(string(line[:8]), 16, 32)
	if err != nil || uint32(sum) != checksum(line[9:]) {
		return r, false
	}
	return r, json.Unmarshal(line[9:], &r) == nil
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func (j *journal) apply(r record) {
	switch r.Op {
	case "lost":
		j.lost = true
	case "begin":
		a := r.act
		j.acts = append(j.acts, &a)
		if len(j.acts) > journalActs {
			j.acts = slices.Delete(j.acts, 0, len(j.acts)-journalActs)
		}
		if a.position.after(j.last) {
			j.last = a.position
		}
		j.lost = false // this one was proven new, and every older one has a smaller number
	case "end", "sent":
		if a := j.find(r.position); a != nil {
			if r.Op == "end" {
				a.Receipt = r.Receipt
			}
			a.Sent = r.Op == "sent"
		}
	}
}

func (j *journal) find(p position) *act {
	for _, a := range slices.Backward(j.acts) {
		if a.position == p {
			return a
		}
	}
	return nil
}

// write adds a record. sync says whether it must be on the disk before the return.
func (j *journal) write(r record, sync bool) error {
	if j.torn != nil {
		return j.torn
	}
	line, err := encodeRecord(r)
	if err != nil {
		return err
	}
	if _, err = j.f.Write(line); err == nil && sync {
		err = j.f.Sync()
	}
	if err != nil {
		j.torn = watchword.Because(err, watchword.Unavailable, "the journal cannot be written; no command is obeyed until it can")
		return j.torn
	}
	j.size += int64(len(line))
	j.apply(r)
	if j.size > journalBytes {
		return j.compact()
	}
	return nil
}

func encodeRecord(r record) ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%08x %s\n", checksum(b), b), nil
}

// compact writes the file anew with what is remembered.
func (j *journal) compact() error {
	var out []byte
	for _, a := range j.acts {
		if a.Seq == 0 {
			continue // a conflict on its way
		}
		for _, op := range []struct {
			name string
			is   bool
		}{{"begin", true}, {"end", a.Receipt != ""}, {"sent", a.Sent}} {
			if !op.is {
				continue
			}
			line, err := encodeRecord(record{Op: op.name, act: act{position: a.position, ID: a.ID, Hash: a.Hash, Receipt: a.Receipt}})
			if err != nil {
				return err
			}
			out = append(out, line...)
		}
	}
	if j.lost {
		line, err := encodeRecord(record{Op: "lost"})
		if err != nil {
			return err
		}
		out = append(out, line...)
	}
	if err := durable.WriteFile(j.path, out, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(j.path, os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	err = j.f.Close()
	j.f, j.size = f, int64(len(out))
	return err
}

func (j *journal) close() error {
	if j.f == nil {
		return nil
	}
	return j.f.Close()
}
