package device

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"sync"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/internal/durable"
)

// counters is every number of the folder that must not go back, kept a second time
// beside the files that it is about: so that a damaged file is seen to be one, and is
// never taken for an older state.
type counters struct {
	Generation int64 `json:"n"` // how often the counts were written
	position         // of the last command that was begun
	// Adopting says that the folder is of a build without counts, and is being taken over.
	Adopting bool `json:"adopting,omitempty"`

	TrustVersion int64 `json:"trust,omitempty"`
	TrustEpoch   int64 `json:"trust_epoch,omitempty"`

	ConfigEpoch   int64 `json:"config_epoch,omitempty"` // of the configuration that was handed on last
	ConfigVersion int64 `json:"config,omitempty"`

	LogSize int64       `json:"log,omitempty"` // the log's checkpoint that was seen last
	LogRoot ledger.Hash `json:"log_root,omitzero"`

	Time int64 `json:"time,omitempty"` // the last signed time, in seconds
}

// numbersFile holds the counts in two slots, written in turn and in place, each with its
// checksum: a write that is cut off damages one, and costs one sync.
const (
	countersFile = "numbers"
	slotSize     = 512
	slotDistance = 4096 // the slots lie in different blocks
)

// counterFile keeps the counts on the disk. It is safe for concurrent use.
type counterFile struct {
	disk durable.Disk
	path string

	mu          sync.Mutex
	current     counters
	found       fileState
	staged      func(*counters) // what the next write takes along
	damagedSlot bool            // a slot is damaged: the next write writes both
}

// fileState is what was found of the counts.
type fileState int

const (
	absent  fileState = iota // no such file
	damaged                  // a file, of which nothing can be read
	whole
)

// readCounters reads the counts of a folder. The error is that of a file that is not
// believed; one that cannot be read is damaged.
func readCounters(disk durable.Disk, path string) (*counterFile, error) {
	n := &counterFile{disk: disk, path: path}
	b, err := disk.Read(path, 2*slotDistance)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return n, nil
	case isUntrustedFile(err):
		return nil, err
	}
	n.found = damaged
	for _, at := range []int{0, slotDistance} {
		c, ok := readSlot(b, at)
		n.damagedSlot = n.damagedSlot || !ok
		if ok && c.Generation > n.current.Generation {
			n.current, n.found = c, whole
		}
	}
	return n, nil
}

// isUntrustedFile reports whether a file is refused for its owner, its mode or its way. Any
// other error means that it cannot be read: its content is lost.
func isUntrustedFile(err error) bool {
	code := watchword.CodeOf(err)
	return err != nil && (code == watchword.FileUntrusted || code == watchword.KeyExposed)
}

func readSlot(b []byte, at int) (c counters, ok bool) {
	if len(b) < at+slotSize {
		return c, false
	}
	line, rest, found := bytes.Cut(b[at:at+slotSize], []byte("\n"))
	if !found || len(bytes.Trim(rest, " ")) > 0 {
		return c, false
	}
	body, ok := parseLine(line)
	return c, ok && json.Unmarshal(body, &c) == nil && c.Generation > 0
}

// values returns what is known.
func (n *counterFile) values() counters {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.current
}

// update changes the counts and returns when they are on the disk. After an error they
// are as before.
func (n *counterFile) update(change func(*counters)) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	next := n.current
	if n.staged != nil {
		n.staged(&next)
	}
	change(&next)
	if next == n.current && n.found == whole && !n.damagedSlot {
		return nil
	}
	next.Generation++
	slot, err := encodeSlot(next)
	if err != nil {
		return err
	}
	if n.found == whole && !n.damagedSlot {
		if err := n.writeSlot(slot, slotOf(next)); err != nil {
			n.damagedSlot = true
			return err
		}
		n.current, n.staged = next, nil
		return nil
	}
	both := bytes.Repeat([]byte(" "), slotDistance+slotSize)
	copy(both[slotOf(next):], slot)
	next.Generation++
	if slot, err = encodeSlot(next); err != nil {
		return err
	}
	copy(both[slotOf(next):], slot)
	if _, err := durable.Replace(n.disk, n.path, both); err != nil {
		n.damagedSlot = true // whichever file is there now: the next write makes it anew
		return err
	}
	n.current, n.staged, n.found, n.damagedSlot = next, nil, whole, false
	return nil
}

// slotOf is where counts are written: the slot of those before stays.
func slotOf(c counters) int64 { return c.Generation % 2 * slotDistance }

// stage leaves a change of the log's number for the next update: the folder has it elsewhere too.
func (n *counterFile) stage(change func(*counters)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.staged = change // each is of the same number, and later than the one before
}

func (n *counterFile) writeSlot(slot []byte, at int64) error {
	f, err := n.disk.Open(n.path, false)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(slot, at)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func encodeSlot(c counters) ([]byte, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	line := encodeLine(b)
	if len(line) > slotSize {
		return nil, watchword.Refuse(watchword.Internal, "the numbers have %d bytes", len(line))
	}
	return append(line, bytes.Repeat([]byte(" "), slotSize-len(line))...), nil
}
