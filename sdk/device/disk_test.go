package device

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/token"
)

// faultDisk is a disk that nothing can be written to while fail is set.
type faultDisk struct {
	durable.Disk
	fail   atomic.Bool
	failed atomic.Int64
}

func (d *faultDisk) Open(path string, create bool) (durable.File, error) {
	if d.fail.Load() {
		d.failed.Add(1)
		return nil, syscall.ENOSPC
	}
	return d.Disk.Open(path, create)
}

// lazyDisk is one that waits for nothing.
type lazyDisk struct{ durable.OS }

type lazyFile struct{ durable.File }

func (lazyFile) Sync() error { return nil }

func (d lazyDisk) Open(path string, create bool) (durable.File, error) {
	f, err := d.OS.Open(path, create)
	return lazyFile{f}, err
}

// memDisk is a disk in memory, on which one step fails.
type memDisk struct {
	names, kept map[string]*inode // as they are, and as they are after a power cut
	step        int               // of those that change something
	at          int               // the step that fails; 0 for none
	how         mishap
	down        bool // the power is gone
	broken      int  // so many further steps fail too
}

type inode struct{ data, kept []byte }

// mishap is what happens at a step.
type mishap int

const (
	cutBefore mishap = iota // power is lost, and the step is not done
	cutAfter                // power is lost when it is done
	cutHalf                 // power is lost when half of it is done
	failOnce                // the step fails, half of it done
	failLong                // it and the next ten
	failDone                // the step is done, and says that it failed
	faults
)

var errDown = fmt.Errorf("the power is gone")

func newMemDisk() *memDisk { return &memDisk{names: map[string]*inode{}, kept: map[string]*inode{}} }

// do runs one step; half does the first half of it.
func (d *memDisk) do(whole, half func()) error {
	if d.down {
		return errDown
	}
	if d.broken > 0 {
		d.broken--
		return syscall.EIO
	}
	if d.step++; d.step != d.at {
		whole()
		return nil
	}
	switch d.how {
	case cutBefore:
	case cutAfter:
		whole()
	case cutHalf:
		half()
	case failLong:
		half()
		d.broken = 10
		return syscall.ENOSPC
	case failDone:
		whole()
		return syscall.EIO
	default:
		half()
		return syscall.EIO
	}
	d.down = true
	return errDown
}

// restart is the disk after a power cut: with all that was written, with what was synced
// alone, or with all names and zeros for what was not synced.
func (d *memDisk) restart(how int) *memDisk {
	names := d.kept
	if how != 0 {
		names = d.names
	}
	n := newMemDisk()
	for path, i := range names {
		b := i.kept
		switch how {
		case 1:
			b = i.data
		case 2:
			b = make([]byte, len(i.data))
			copy(b, i.kept)
		}
		c := &inode{slices.Clone(b), slices.Clone(b)}
		n.names[path], n.kept[path] = c, c
	}
	return n
}

func (d *memDisk) Read(path string, _ int64) ([]byte, error) {
	if d.down {
		return nil, errDown
	}
	i := d.names[path]
	if i == nil {
		return nil, fs.ErrNotExist
	}
	return slices.Clone(i.data), nil
}

func (d *memDisk) Open(path string, create bool) (durable.File, error) {
	if create {
		if err := d.do(func() { d.names[path] = &inode{} }, func() {}); err != nil {
			return nil, err
		}
	}
	if d.down {
		return nil, errDown
	}
	i := d.names[path]
	if i == nil {
		return nil, fs.ErrNotExist
	}
	return &memFile{d, i}, nil
}

func (d *memDisk) Rename(from, to string) error {
	return d.do(func() {
		d.names[to] = d.names[from]
		delete(d.names, from)
	}, func() {})
}

func (d *memDisk) Remove(path string) error {
	return d.do(func() { delete(d.names, path) }, func() {})
}

func (d *memDisk) SyncDir(string) error {
	return d.do(func() { d.kept = maps.Clone(d.names) }, func() {})
}

type memFile struct {
	d *memDisk
	i *inode
}

func (f *memFile) WriteAt(b []byte, at int64) (int, error) {
	put := func(b []byte) {
		if end := int(at) + len(b); len(f.i.data) < end {
			f.i.data = append(slices.Clone(f.i.data), make([]byte, end-len(f.i.data))...)
		} else {
			f.i.data = slices.Clone(f.i.data)
		}
		copy(f.i.data[at:], b)
	}
	return len(b), f.d.do(func() { put(b) }, func() { put(b[:len(b)/2]) })
}

func (f *memFile) Sync() error {
	return f.d.do(func() { f.i.kept = f.i.data }, func() {})
}

func (f *memFile) Close() error { return nil }

// lamp is the part of a device that records what it did, and how often.
type lamp struct {
	t     *testing.T
	disk  *memDisk
	j     *journal
	acted map[int64]int
}

const lampJournal, lampNumbers = "/lamp/journal", "/lamp/numbers"

func newLamp(t *testing.T) *lamp {
	l := &lamp{t: t, disk: newMemDisk(), acted: map[int64]int{}}
	n, err := readCounters(l.disk, lampNumbers)
	if err == nil {
		err = newJournal(l.disk, lampJournal, n)
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// open starts the device, as it does after a power cut.
func (l *lamp) open() error {
	n, err := readCounters(l.disk, lampNumbers)
	if err == nil {
		l.j, err = openJournal(l.disk, lampJournal, n)
	}
	if err != nil {
		return err
	}
	for _, a := range l.j.executions {
		if a.Receipt == "" {
			_ = l.j.write(journalRecord{"end", execution{position: a.position, ID: a.ID, Hash: a.Hash, Receipt: "interrupted"}}, true)
		}
	}
	return nil
}

// command hands a command over, with the nonce that the device waits for or without, and
// reports whether the device knows of it from then on.
func (l *lamp) command(seq int64, nonce bool) bool {
	if l.j.ready() != nil || l.j.lost && !nonce {
		return false
	}
	p := position{1, seq}
	if !p.after(l.j.last) {
		return true
	}
	id := watchword.CommandID(fmt.Sprint("cmd_", seq))
	if l.j.write(journalRecord{"begin", execution{position: p, ID: id, Hash: "h"}}, true) != nil {
		return false
	}
	l.acted[seq]++
	if l.acted[seq] > 1 {
		l.t.Errorf("number %d was acted on %d times", seq, l.acted[seq])
	}
	_ = l.j.write(journalRecord{"end", execution{position: p, ID: id, Hash: "h", Receipt: "done"}}, true)
	_ = l.j.write(journalRecord{"sent", execution{position: p}}, false)
	return true
}

// works checks that the device still executes commands: it executes a command with an unused number, with a nonce if it
// requires one, and no older one again.
func (l *lamp) works(last int64) {
	l.t.Helper()
	for seq := range last {
		l.command(seq+1, false) // a recorded command is replayed
	}
	l.command(last+1, true)
	if l.acted[last+1] != 1 {
		l.t.Errorf("a new command was acted on %d times: lost %v (%s), torn %v", l.acted[last+1], l.j.lost, l.j.lostReason, l.j.writeErr)
	}
	l.command(last+2, false)
	if l.acted[last+2] != 1 {
		l.t.Errorf("the one behind it was acted on %d times", l.acted[last+2])
	}
}

// Whatever step of the disk fails in whatever way: nothing is done twice, and the device continues without intervention
// once the disk works. The command memory is lost only if the disk loses data that it had reported as written.
func TestDiskFaultsCauseNoSecondExecutionOrDeafness(t *testing.T) {
	const commands = 4
	cases := 0
	for how := range faults {
		for after := range 3 {
			for at := 1; ; at++ {
				l := newLamp(t)
				l.disk.step, l.disk.at, l.disk.how = 0, at, how
				err := l.open()
				for seq := int64(1); seq <= commands && err == nil; seq++ {
					if seq == 3 {
						_, cerr := l.j.compact()
						l.j.fail(cerr)
					}
					for range 20 { // the server hands it over again
						if l.command(seq, false) || l.disk.down {
							break
						}
					}
				}
				ended := l.disk.step < at
				if l.disk.down {
					l.disk = l.disk.restart(after)
					if err := l.open(); err != nil {
						t.Fatalf("fault %d at step %d, restart %d: %v", how, at, after, err)
					}
					if l.j.lost {
						t.Errorf("fault %d at step %d, restart %d: a power cut cost the memory: %s", how, at, after, l.j.lostReason)
					}
				}
				l.disk.at, l.disk.broken = 0, 0
				l.works(commands)
				l.disk = l.disk.restart(0)
				if err := l.open(); err != nil || l.j.lost || l.j.last.Seq != commands+2 {
					t.Errorf("fault %d at step %d, restart %d: opened again it is lost %v (%s), at %d: %v", how, at, after, l.j.lost, l.j.lostReason, l.j.last.Seq, err)
				}
				if t.Failed() {
					t.Fatalf("fault %d at step %d, restart %d", how, at, after)
				}
				cases++
				if ended {
					break
				}
			}
		}
	}
	if cases < 300 {
		t.Errorf("%d cases", cases)
	}
}

// damages calls f with every damage of one file: missing, empty, every prefix, each byte
// with some bits flipped, and runs of zeros. Of padding it takes every 32nd byte.
func damages(whole []byte, f func(what string, b []byte)) {
	f("missing", nil)
	for n := range len(whole) {
		if padding(whole, n) {
			continue
		}
		f(fmt.Sprintf("cut to %d bytes", n), whole[:n:n])
	}
	for i := range whole {
		if padding(whole, i) {
			continue
		}
		for _, bit := range []int{0, 5, i % 8} {
			b := slices.Clone(whole)
			b[i] ^= 1 << bit
			f(fmt.Sprintf("bit %d of byte %d flipped", bit, i), b)
		}
		b := slices.Clone(whole)
		clear(b[i:min(i+64, len(b))])
		if !bytes.Equal(b, whole) {
			f(fmt.Sprintf("zeros from byte %d", i), b)
		}
	}
}

func padding(b []byte, i int) bool { return b[i] == ' ' && i > 0 && b[i-1] == ' ' && i%32 != 0 }

// Whatever a disk does to a file of the memory, nothing is done twice, and the device continues without intervention.
func TestJournalDamageCausesNoSecondExecutionOrDeafness(t *testing.T) {
	const commands = 3
	l := newLamp(t)
	if err := l.open(); err != nil {
		t.Fatal(err)
	}
	for seq := range int64(commands) {
		l.command(seq+1, false)
	}
	files := l.disk.restart(1)
	cases, lost := 0, 0
	for _, path := range []string{lampJournal, lampNumbers} {
		damages(files.names[path].data, func(what string, b []byte) {
			disk := files.restart(1)
			if delete(disk.names, path); b != nil {
				disk.names[path] = &inode{b, b}
			}
			k := &lamp{t: t, disk: disk, acted: maps.Clone(l.acted)}
			if err := k.open(); err != nil {
				t.Fatalf("%s %s: %v", filepath.Base(path), what, err)
			}
			if len(b) == 0 && !k.j.lost {
				t.Errorf("%s %s: it is not lost", filepath.Base(path), what)
			}
			if k.j.lost {
				lost++
			}
			k.works(commands)
			if err := k.open(); err != nil || k.j.lost {
				t.Errorf("%s %s: it is not mended: %v, %s", filepath.Base(path), what, err, k.j.lostReason)
			}
			if t.Failed() {
				t.Fatalf("%s %s", filepath.Base(path), what)
			}
			cases++
		})
	}
	if cases < 4000 || lost < 1000 {
		t.Errorf("%d of %d damages cost the memory", lost, cases)
	}
}

// The number of a command is on the disk a second time before it is begun: after a power cut the counts
// show that its record is missing.
func TestTheCountsAreSyncedBeforeACommandIsBegun(t *testing.T) {
	l := newLamp(t)
	if err := l.open(); err != nil {
		t.Fatal(err)
	}
	first := slices.Clone(l.disk.names[lampJournal].data)
	l.command(1, false)
	l.disk = l.disk.restart(0) // what was not synced is gone
	l.disk.names[lampJournal] = &inode{first, first}
	if err := l.open(); err != nil || !l.j.lost || l.j.last.Seq != 1 {
		t.Errorf("lost %v, at %d: %v", l.j.lost, l.j.last.Seq, err)
	}
}

// tinyDisk is a full disk: existing files can be overwritten in place, and nothing can be added while full is set.
type tinyDisk struct {
	durable.Disk
	full atomic.Bool
}

type tinyFile struct {
	durable.File
	d    *tinyDisk
	path string
}

func (d *tinyDisk) Open(path string, create bool) (durable.File, error) {
	if create && d.full.Load() {
		return nil, &fs.PathError{Op: "open", Path: path, Err: syscall.ENOSPC}
	}
	f, err := d.Disk.Open(path, create)
	return tinyFile{f, d, path}, err
}

func (f tinyFile) WriteAt(b []byte, at int64) (int, error) {
	if info, err := os.Stat(f.path); f.d.full.Load() && (err != nil || at+int64(len(b)) > info.Size()) {
		return 0, &fs.PathError{Op: "write", Path: f.path, Err: syscall.ENOSPC}
	}
	return f.File.WriteAt(b, at)
}

// On a full disk each command gets a signed refusal and is not executed, events pass, and commands are executed again when
// there is space. A device that starts again in between does not execute a refused command that is sent again.
func TestAFullDiskRefusesCommands(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart %v", restart), func(t *testing.T) {
			s := newFakeServer(t)
			d := s.device(false, Options{})
			acts := map[int64]int{}
			d.Handle("f", func(_ context.Context, c *Command) (any, error) { acts[c.Seq]++; return nil, nil })
			disk := &tinyDisk{Disk: durable.OS{}}
			d.journal.disk, d.journal.f, d.journal.counters.disk = disk, nil, disk
			first, second, third := s.order(d, 1, "f"), s.order(d, 2, "f"), s.order(d, 3, "f")
			check := func(jwe string, seq int64, want watchword.ReceiptStatus, code string) {
				t.Helper()
				receipt, err := d.Execute(t.Context(), jwe)
				if err != nil {
					t.Fatal(err)
				}
				r, err := token.ReadReceipt(receipt, d.identity.ID, d.issuer())
				if err != nil || r.Seq != seq || r.Status != want || !strings.Contains(string(r.Result), code) || strings.Contains(string(r.Result), d.dir) {
					t.Fatalf("%+v %v, want %s of %d", r, err, want, seq)
				}
			}
			check(first, 1, watchword.StatusDone, "")
			disk.full.Store(true)
			check(second, 2, watchword.StatusRefused, `"unavailable"`)
			check(second, 2, watchword.StatusRefused, `"unavailable"`) // its receipt is known
			check(first, 1, watchword.StatusDone, "")
			if restart {
				n, err := readCounters(disk, d.path(countersFile))
				if err == nil {
					d.journal, err = openJournal(disk, d.path(journalFile), n)
				}
				if err != nil || !d.journal.lost {
					t.Fatalf("lost %v: %v", d.journal.lost, err)
				}
				if _, err := d.Execute(t.Context(), second); watchword.CodeOf(err) != watchword.NonceMismatch {
					t.Errorf("a refused command after a restart: %v", err)
				}
				disk.full.Store(false)
				if _, err := d.Execute(t.Context(), second); watchword.CodeOf(err) != watchword.NonceMismatch {
					t.Errorf("a refused command after a restart with space: %v", err)
				}
			} else {
				disk.full.Store(false)
				check(third, 3, watchword.StatusDone, "")
				n, err := readCounters(disk, d.path(countersFile))
				if err == nil {
					d.journal, err = openJournal(disk, d.path(journalFile), n)
				}
				if err != nil || d.journal.lost {
					t.Fatalf("lost %v (%s): %v", d.journal.lost, d.journal.lostReason, err)
				}
				check(second, 2, watchword.StatusRefused, `"unavailable"`) // it is stored now
			}
			if acts[1] != 1 || acts[2] != 0 {
				t.Errorf("executed %v", acts)
			}
		})
	}
}
