package device

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
)

// The journal is the device's memory of commands: one record a line, each with
// its checksum, synced before anything is done that it speaks of. Its first record is
// written at enrollment, and the number of the last command that was begun stands a second
// time in the counts ([counterFile]), written after the journal and before the command is begun.
//
// A power cut can tear the last line only, which then has no end and speaks of nothing that
// was done: the counts prove that. Anything else that is missing or damaged means that the
// memory is lost: from then on only a nonce shows that a command is new, until one was.
// What can be read of a lost memory still counts.

// position is a command's number, which only grows.
type position struct {
	Epoch int64 `json:"epoch"`
	Seq   int64 `json:"seq"`
}

func (p position) after(q position) bool {
	return p.Epoch > q.Epoch || p.Epoch == q.Epoch && p.Seq > q.Seq
}

// execution is one command that was begun. Receipt is empty until it ended.
type execution struct {
	position
	ID      watchword.CommandID `json:"cid"`
	Hash    string              `json:"ch"`
	Receipt string              `json:"receipt,omitempty"`
	Sent    bool                `json:"sent,omitempty"`

	refused bool // the server said no to the receipt, in this run
}

// journalRecord is one line. Op is first, begin, end, sent, or lost: the counters before this
// line are unknown.
type journalRecord struct {
	Op string `json:"op"`
	execution
}

// How many acts are remembered, and how long the file grows before it is
// rewritten with those alone.
const (
	maxExecutions = 512
	journalBytes  = 4 << 20
	maxJournal    = 64 << 20 // a compact one holds journalActs receipts, and may be over journalBytes
)

type journal struct {
	disk       durable.Disk
	path       string
	f          durable.File // nil where the next write opens it
	size       int64
	limit      int64 // of size: then it is rewritten
	last       position
	lost       bool   // the counters were lost: only a nonce shows that a command is new
	lostReason string // what was found at the opening, where the memory was lost then
	executions []*execution
	writeErr   error // a write that failed: nothing may follow it before the file is rewritten

	counters *counterFile // nil where nothing can be begun
	first    bool         // the file begins with its first record
}

// newJournal makes the memory of a device that enrolls. What is there of an earlier
// enrollment is not believed: then the memory begins as a lost one.
func newJournal(disk durable.Disk, path string, n *counterFile) error {
	b, err := disk.Read(path, maxJournal)
	if isUntrustedFile(err) {
		return err
	}
	old := &journal{}
	damage := old.replay(b)
	j := &journal{disk: disk, path: path, counters: n}
	j.lost = err != nil && !errors.Is(err, fs.ErrNotExist) || old.last.Seq > 0 || old.lost || damage.lines > 0
	if _, err := j.compact(); err != nil {
		return err
	}
	return errors.Join(n.update(func(c *counters) { *c = counters{Generation: c.Generation} }), j.close())
}

// openJournal reads the memory of an enrolled device. It never fails for damage, and not
// because nothing can be written: then it is tried again before the next command is
// begun. Codes: file_untrusted, key_exposed.
func openJournal(disk durable.Disk, path string, n *counterFile) (*journal, error) {
	j, rewrite, err := readJournal(disk, path, n)
	if err != nil {
		return nil, err
	}
	j.counters = n
	if rewrite {
		j.fail(j.rewrite())
	}
	return j, nil
}

// openSharedJournal reads a journal that another process may be writing. Nothing can
// be begun with it.
func openSharedJournal(disk durable.Disk, path string, n *counterFile) (*journal, error) {
	j, _, err := readJournal(disk, path, n)
	if err == nil {
		j.writeErr = watchword.Refuse(watchword.FolderInUse, "the folder was opened to look, not to obey")
	}
	return j, err
}

// readJournal finds out what is remembered, and whether the file and the counts must be
// rewritten.
func readJournal(disk durable.Disk, path string, n *counterFile) (j *journal, rewrite bool, err error) {
	b, err := disk.Read(path, maxJournal)
	if isUntrustedFile(err) {
		return nil, false, err
	}
	missing, unread := errors.Is(err, fs.ErrNotExist), err
	j = &journal{disk: disk, path: path, limit: journalBytes}
	damage := j.replay(b)
	c := n.values()
	old := n.found == absent && !j.first || n.found == whole && c.Adopting // of a build that kept no counts
	var why []string
	say := func(is bool, format string, a ...any) {
		if is {
			why = append(why, fmt.Sprintf(format, a...))
		}
	}
	say(missing, "%s is missing", path)
	say(!missing && unread != nil, "%s cannot be read: %v", path, unread)
	say(damage.lines > 0, "%d lines of %s are damaged, the first is line %d", damage.lines, path, damage.first)
	say(unread == nil && !j.first && !old, "%s does not begin with its first record", path)
	say(n.found == absent && !old, "%s is missing", n.path)
	say(n.found == damaged, "%s is damaged", n.path)
	say(c.position.after(j.last), "%s ends at number %d of epoch %d, and number %d of epoch %d was begun", path, j.last.Seq, j.last.Epoch, c.Seq, c.Epoch)
	if len(why) > 0 {
		j.lost, j.lostReason = true, strings.Join(why, "; ")
	}
	if c.position.after(j.last) {
		j.last = c.position
	}
	rewrite = len(why) > 0 || damage.tail > 0 || !j.first || n.found != whole || n.damagedSlot || c.Adopting || j.last != c.position
	return j, rewrite, nil
}

// rewrite writes what was read as it shall be. The counts come first, and say that the
// journal of a build without them is still to come; after a power cut between, it is neither
// lost nor believed without them for ever.
func (j *journal) rewrite() error {
	if j.counters.found == absent && !j.lost {
		if err := j.counters.update(func(c *counters) { c.position, c.Adopting = j.last, true }); err != nil {
			return err
		}
	}
	if _, err := j.compact(); err != nil {
		return err
	}
	return j.counters.update(func(c *counters) {
		c.Adopting = false
		if j.last.after(c.position) {
			c.position = j.last
		}
	})
}

// damage is what replay could not read.
type damage struct {
	lines int // whole lines
	first int // of them
	tail  int // bytes of a last line without its end
}

// replay applies every line that can be read.
func (j *journal) replay(b []byte) (d damage) {
	for n := 1; len(b) > 0; n++ {
		line, rest, end := bytes.Cut(b, []byte("\n"))
		if !end {
			d.tail = len(b)
			return d
		}
		j.size += int64(len(line)) + 1
		b = rest
		r, ok := parseRecord(line)
		if !ok {
			if d.lines++; d.first == 0 {
				d.first = n
			}
			continue
		}
		j.first = j.first || n == 1 && r.Op == "first"
		j.apply(r)
	}
	return d
}

func parseRecord(line []byte) (r journalRecord, ok bool) {
	body, ok := parseLine(line)
	return r, ok && json.Unmarshal(body, &r) == nil
}

// parseLine returns what a line says behind its checksum.
func parseLine(line []byte) (body []byte, ok bool) {
	if len(line) < 10 || line[8] != ' ' {
		return nil, false
	}
	sum, err := strconv.ParseUint(string(line[:8]), 16, 32)
	return line[9:], err == nil && uint32(sum) == checksum(line[9:])
}

func encodeLine(body []byte) []byte { return fmt.Appendf(nil, "%08x %s\n", checksum(body), body) }

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func (j *journal) apply(r journalRecord) {
	if r.position.after(j.last) {
		j.last = r.position
	}
	switch r.Op {
	case "lost":
		j.lost = true
	case "begin":
		j.add(r.execution)
		j.lost, j.lostReason = false, "" // this one was proven new, and every older one has a smaller number
	case "end", "sent":
		a := j.find(r.position)
		if a == nil && r.ID != "" { // its beginning is damaged
			a = j.add(execution{position: r.position, ID: r.ID, Hash: r.Hash})
		}
		if a == nil {
			return
		}
		if r.Op == "end" {
			a.Receipt = r.Receipt
		}
		a.Sent = r.Op == "sent"
	}
}

func (j *journal) add(a execution) *execution {
	j.executions = append(j.executions, &a)
	if len(j.executions) > maxExecutions {
		j.executions = slices.Delete(j.executions, 0, len(j.executions)-maxExecutions)
	}
	return &a
}

func (j *journal) find(p position) *execution {
	for _, a := range slices.Backward(j.executions) {
		if a.position == p {
			return a
		}
	}
	return nil
}

// ready returns why nothing can be begun; nil where something can. After a write that
// failed it writes the memory anew first.
func (j *journal) ready() error {
	if j.writeErr == nil || j.counters == nil {
		return j.writeErr
	}
	j.writeErr = nil
	j.fail(j.rewrite())
	return j.writeErr
}

// fail notes that what is on the disk is not known to be what is remembered.
func (j *journal) fail(err error) {
	if err != nil {
		j.writeErr = watchword.Wrap(err, watchword.Unavailable, "the journal cannot be written; no command is obeyed until it can")
	}
}

// write adds a record; sync says whether it must be on the disk before the return, and
// with begin the counts with it. A begin that fails was not begun, and is not remembered. What
// happened is remembered though it cannot be written: it is, before the next command is begun.
// Code: unavailable.
func (j *journal) write(r journalRecord, sync bool) error {
	err := j.ready()
	if err == nil {
		if err = j.append(r, sync); err == nil && r.Op == "begin" {
			err = j.counters.update(func(c *counters) {
				if r.position.after(c.position) {
					c.position = r.position
				}
			})
		}
		j.fail(err)
		err = j.writeErr
	}
	if err != nil && r.Op == "begin" {
		return err
	}
	j.apply(r)
	if err != nil {
		return err
	}
	if j.size > j.limit {
		if kept, err := j.compact(); !kept {
			j.fail(err) // the record is on the disk, and what comes next waits for the file
		}
	}
	return nil
}

// append adds a line to the file.
func (j *journal) append(r journalRecord, sync bool) error {
	line, err := encodeRecord(r)
	if err != nil {
		return err
	}
	if j.f == nil {
		if j.f, err = j.disk.Open(j.path, false); err != nil {
			return err
		}
	}
	if _, err = j.f.WriteAt(line, j.size); err != nil {
		return err
	}
	j.size += int64(len(line))
	if sync {
		return j.f.Sync()
	}
	return nil
}

func encodeRecord(r journalRecord) ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return encodeLine(b), nil
}

// compact writes the file anew with what is remembered. kept is true where nothing came
// of it and the old file goes on.
func (j *journal) compact() (kept bool, err error) {
	out, err := encodeRecord(journalRecord{Op: "first", execution: execution{position: j.last}})
	if err != nil {
		return true, err
	}
	add := func(r journalRecord) {
		line, lerr := encodeRecord(r)
		if err == nil {
			err = lerr
		}
		out = append(out, line...)
	}
	for _, a := range j.executions {
		if a.Seq == 0 {
			continue // a conflict on its way
		}
		add(journalRecord{"begin", execution{position: a.position, ID: a.ID, Hash: a.Hash}})
		if a.Receipt != "" {
			add(journalRecord{"end", execution{position: a.position, ID: a.ID, Hash: a.Hash, Receipt: a.Receipt}})
		}
		if a.Sent {
			add(journalRecord{"sent", execution{position: a.position}})
		}
	}
	if j.lost {
		add(journalRecord{Op: "lost"})
	}
	if err != nil {
		return true, err
	}
	if kept, err = durable.Replace(j.disk, j.path, out); err != nil {
		if kept {
			j.limit = j.size + journalBytes/4 // the disk may be full: it goes on as it is for a while
		}
		return kept, err
	}
	_ = j.close() // what it would say is of the old file
	j.size, j.first, j.limit = int64(len(out)), true, max(journalBytes, 2*int64(len(out)))
	return false, nil
}

func (j *journal) close() error {
	if j.f == nil {
		return nil
	}
	f := j.f
	j.f = nil
	return f.Close()
}
