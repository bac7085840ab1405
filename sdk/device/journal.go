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

// The journal is the device's durable record of commands: one record a line, each with its checksum, synced before the
// action that it records. Its first record is written at enrollment. The number of the last command that was begun is
// stored a second time in the counters ([counterFile]), after the journal and before the command is begun.
//
// A power cut can tear the last line only; it then has no line end and records nothing that was done, which the counters
// prove. Any other missing or damaged part means that the memory is lost: from then on only a nonce shows that a command is
// new, until a command with the nonce has been executed. Records of a lost memory that can be read are still used.

// position is the number of a command, which only grows.
type position struct {
	Epoch int64 `json:"epoch"`
	Seq   int64 `json:"seq"`
}

func (p position) after(q position) bool {
	return p.Epoch > q.Epoch || p.Epoch == q.Epoch && p.Seq > q.Seq
}

// execution is one command that was begun. Receipt is empty until it has ended.
type execution struct {
	position
	ID      watchword.CommandID `json:"cid"`
	Hash    string              `json:"ch"`
	Receipt string              `json:"receipt,omitempty"`
	Sent    bool                `json:"sent,omitempty"`

	refused bool // the server refused the receipt, in this run
}

// journalRecord is one line. Op is first, begin, end, sent, or lost: the counters before this line are unknown.
type journalRecord struct {
	Op string `json:"op"`
	execution
}

// Number of executions that are remembered, and the size at which the file is rewritten with only those.
const (
	maxExecutions = 512
	journalBytes  = 4 << 20
	maxJournal    = 64 << 20 // a compacted one holds journalActs receipts, and may exceed journalBytes
)

type journal struct {
	disk       durable.Disk
	path       string
	f          durable.File // nil: the next write opens it
	size       int64
	limit      int64 // size at which it is rewritten
	last       position
	lost       bool   // the counters were lost: only a nonce shows that a command is new
	lostReason string // the reason, if the memory was lost when it was opened
	executions []*execution
	writeErr   error // of a failed write: the file must be rewritten before the next one

	counters *counterFile // nil if no command can be begun
	first    bool         // the file begins with its first record
}

// newJournal creates the journal of a device that enrolls. If files of an earlier enrollment exist they are not trusted:
// the memory then begins as lost.
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

// openJournal reads the journal of an enrolled device. It does not fail if the file is damaged or cannot be written:
// writing is tried again before the next command is begun. Codes: file_untrusted, key_exposed.
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

// openSharedJournal reads a journal that another process may be writing. No command can be begun with it.
func openSharedJournal(disk durable.Disk, path string, n *counterFile) (*journal, error) {
	j, _, err := readJournal(disk, path, n)
	if err == nil {
		j.writeErr = watchword.Refuse(watchword.FolderInUse, "the state folder was opened for reading: commands cannot be executed")
	}
	return j, err
}

// readJournal reads the records, and reports whether the file and the counters must be rewritten.
func readJournal(disk durable.Disk, path string, n *counterFile) (j *journal, rewrite bool, err error) {
	b, err := disk.Read(path, maxJournal)
	if isUntrustedFile(err) {
		return nil, false, err
	}
	missing, unread := errors.Is(err, fs.ErrNotExist), err
	j = &journal{disk: disk, path: path, limit: journalBytes}
	damage := j.replay(b)
	c := n.values()
	old := n.found == absent && !j.first || n.found == whole && c.Adopting // of a build without counters
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

// rewrite writes the memory that was read. The counters are written first, and state that the journal of a build without
// counters is not rewritten yet. After a power cut between the two writes the journal is neither lost nor permanently
// trusted without counters.
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

// damage describes the lines that replay could not read.
type damage struct {
	lines int // complete lines
	first int // the first damaged one
	tail  int // bytes of a last line without a line end
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

// parseLine returns the content of a line after its checksum.
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
		j.lost, j.lostReason = false, "" // this command was proved new, and every older one has a smaller number
	case "end", "sent":
		a := j.find(r.position)
		if a == nil && r.ID != "" { // its begin record is damaged
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

// ready returns the error for which no command can be begun, or nil. After a failed write it first rewrites the file.
func (j *journal) ready() error {
	if j.writeErr == nil || j.counters == nil {
		return j.writeErr
	}
	j.writeErr = nil
	j.fail(j.rewrite())
	return j.writeErr
}

// fail records that the file may differ from the memory.
func (j *journal) fail(err error) {
	if err != nil {
		j.writeErr = watchword.Wrap(err, watchword.Unavailable, "the journal cannot be written: no command is executed until it can be")
	}
}

// write adds a record. sync says whether it must be on the disk before write returns; a begin record also updates the
// counters. If a begin record cannot be written, the command is not begun and not remembered. Other records are remembered
// even if they cannot be written: the file is rewritten before the next command is begun. Code: unavailable.
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
			j.fail(err) // the record is on the disk; the next write waits for the rewrite
		}
	}
	return nil
}

// refuse records in memory that a command was refused because the file cannot be written, after the counters, which are
// written in place and need no space, have its number. The next rewrite of the file includes it. If the device starts again
// before that, the counters show that a record is missing: the memory is then lost, so that the command is not executed
// without a nonce.
func (j *journal) refuse(a execution) error {
	err := j.counters.update(func(c *counters) {
		if a.position.after(c.position) {
			c.position = a.position
		}
	})
	if err != nil {
		return err
	}
	j.apply(journalRecord{"begin", execution{position: a.position, ID: a.ID, Hash: a.Hash}})
	j.apply(journalRecord{"end", a})
	return nil
}

// append appends a line to the file.
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

// compact rewrites the file with the remembered executions. kept is true if that failed and the old file stays in use.
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
			continue // a conflict that is being sent
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
			j.limit = j.size + journalBytes/4 // the disk may be full: the old file is used for a while
		}
		return kept, err
	}
	_ = j.close() // the error would concern the old file
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
