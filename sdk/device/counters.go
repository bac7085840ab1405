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
	"github.com/watchword-iot/watchword/token"
)

// counters is a second copy of every number of the folder that must not decrease. With it the device detects a damaged or
// older file, and does not take it for the current state.
type counters struct {
	Generation int64 `json:"n"` // number of writes of the counters
	position         // of the last command that was begun
	// Adopting reports that the folder is of a build without counters, and is being converted.
	Adopting bool `json:"adopting,omitempty"`

	TrustVersion int64 `json:"trust,omitempty"`
	TrustEpoch   int64 `json:"trust_epoch,omitempty"`

	ConfigEpoch   int64 `json:"config_epoch,omitempty"` // of the configuration that was last passed to the handler
	ConfigVersion int64 `json:"config,omitempty"`

	LogSize int64       `json:"log,omitempty"` // the last checkpoint of the log that was seen
	LogRoot ledger.Hash `json:"log_root,omitzero"`
	// LogOrigin identifies the log of that checkpoint: a hash of its origin; empty for [watchword.LogOrigin]. LogEpoch is the
	// epoch of the trust bundle under which it was seen; 0 in the counters of builds that did not state it.
	LogOrigin string `json:"log_origin,omitempty"`
	LogEpoch  int64  `json:"log_epoch,omitempty"`

	Time int64 `json:"time,omitempty"` // the last signed time, in seconds
}

// bundleVersion returns the version of the newest trust bundle that was stored.
func (c counters) bundleVersion() token.BundleVersion {
	return token.BundleVersion{Epoch: c.TrustEpoch, Number: c.TrustVersion}
}

// setBundleVersion raises the version of the newest trust bundle. Within an epoch only the number grows; a higher epoch
// starts its numbers again.
func (c *counters) setBundleVersion(v token.BundleVersion) {
	if v.NewerThan(c.bundleVersion()) {
		c.TrustEpoch, c.TrustVersion = v.Epoch, v.Number
	}
}

// setLogRecord states the last checkpoint of the log that was seen.
func (c *counters) setLogRecord(r logRecord) {
	c.LogSize, c.LogRoot, c.LogOrigin, c.LogEpoch = r.size, r.root, r.originID, r.epoch
}

// numbersFile holds the counters in two slots, written alternately and in place, each with its checksum. An interrupted
// write damages one slot only, and a write needs one sync.
const (
	countersFile = "numbers"
	slotSize     = 512
	slotDistance = 4096 // the slots are in different disk blocks
)

// counterFile stores the counters on the disk. It is safe for concurrent use.
type counterFile struct {
	disk durable.Disk
	path string

	mu          sync.Mutex
	current     counters
	found       fileState
	staged      func(*counters) // change that the next write includes
	damagedSlot bool            // one slot is damaged: the next write writes both
}

// fileState is the state in which the counters file was found.
type fileState int

const (
	absent  fileState = iota // no such file
	damaged                  // the file exists, but no slot can be read
	whole
)

// readCounters reads the counters of a folder. It returns an error if the file is untrusted; a file that cannot be read is
// treated as damaged.
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

// isUntrustedFile reports whether a file is refused because of its owner, its mode or its path. Any other error means that
// its content is lost.
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

// values returns the current counters.
func (n *counterFile) values() counters {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.current
}

// update changes the counters and returns when they are on the disk. After an error they are unchanged.
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
		n.damagedSlot = true // the file may have been replaced: the next write creates it again
		return err
	}
	n.current, n.staged, n.found, n.damagedSlot = next, nil, whole, false
	return nil
}

// slotOf returns the offset at which counters are written; the slot of the previous ones is not changed.
func slotOf(c counters) int64 { return c.Generation % 2 * slotDistance }

// stage stores a change of the log size for the next update. It needs no write of its own, since another file has it too.
func (n *counterFile) stage(change func(*counters)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.staged = change // each change sets the same number, and a later one has the larger value
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
