package backup

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
)

// A journal is a file of frames: 4 bytes of length (big-endian) of the head, the head as JSON, 4 bytes of length of the body, the body,
// 32 bytes of HMAC-SHA-256 over the HMAC of the frame before and all of that. The body is an age file with one [Record]; the first
// frame has none, and the [JournalHead] as its head. So a server that has only the recipients' public keys can follow its own journal,
// and a frame that was changed, left out, swapped or forged is seen by a holder of the server's data key, from which the key of
// the HMAC is derived. Frames that were cut off at the end are not seen, as after a crash; the audit log of the server shows how
// many entries they had.

// JournalHead is the head of a journal's first frame.
type JournalHead struct {
	Format int       `json:"format"`
	Issuer string    `json:"issuer"`
	Start  Log       `json:"start"` // of the backup or journal that the journal follows: its records begin there
	Made   time.Time `json:"made"`
	Epoch  int64     `json:"epoch,omitempty"` // of commands
	// Restored is the log that the one of a restored server continues: its origin, and the entries that both have.
	Restored *Log `json:"restored,omitempty"`
	// Applied is the log whose changes after that the restore applied, and the last entry up to which nothing of it was lost.
	Applied *Log `json:"applied,omitempty"`
	// Forks has an element for each time that the server found another log in its database than its journals follow: an older copy
	// of the database was put back.
	Forks []Fork `json:"forks,omitempty"`
}

// Fork says between which sizes the log of a server parts from the one that its journals before followed.
type Fork struct {
	Common int64 `json:"common"` // the largest size up to which both are known to be the same
	Parted int64 `json:"parted"` // the smallest size at which they are known to differ
}

// CommonAfter returns up to which entry a journal with n forks may be of the log of one that has these; all of its entries if it has as
// many.
func CommonAfter(forks []Fork, n int) int64 {
	out := int64(math.MaxInt64)
	for _, f := range forks[min(n, len(forks)):] {
		out = min(out, f.Common)
	}
	return out
}

// recordHead is the head of every other frame.
type recordHead struct {
	Number int64 `json:"n"` // from 1
	From   int64 `json:"from"`
	To     int64 `json:"to"`
	// Root is the base64 of the root hash of the tree over the entries up to To. Journals of format 1 have none.
	Root string `json:"root,omitempty"`
}

// Mark is a size of the log for which a journal has the root hash of the tree, in base64.
type Mark struct {
	Size int64
	Root string
}

const (
	// MaxRecord is the most bytes of an encrypted record.
	MaxRecord = 64 << 20

	maxHead = 64 << 10
	macSize = sha256.Size
)

// journalFormat is the version of the form of a journal that this package writes. It reads this one and those before.
const journalFormat = 2

// JournalSuffix is the end of the name of each journal.
const JournalSuffix = ".journal"

// Journal is a journal that is being written. It is not safe for concurrent use.
type Journal struct {
	JournalHead
	// Damage says why the journal is not written any more: the file ends within a frame, as after a crash, or a frame was changed, and
	// whole frames may be behind it; or it is not the file any more that this process wrote ([Journal.Check]). Empty: all frames are valid.
	Damage string
	// Limit is the most bytes of a record that is written: [MaxRecord] or fewer.
	Limit int

	f          *os.File
	key        []byte
	recipients []age.Recipient
	end        int64 // bytes that are certainly durable
	torn       bool  // what an error left may be behind end
	mac        [macSize]byte
	last       recordHead
	marks      []Mark // of the frames that were read, until [Journal.Append]
}

// CreateJournal makes a journal (mode 0600) that follows the log in head.Start. key authenticates its frames.
func CreateJournal(path string, key []byte, recipients []age.Recipient, head JournalHead) (*Journal, error) {
	if len(recipients) == 0 {
		return nil, watchword.Refuse(watchword.ConfigInvalid, "a journal requires backup.recipients")
	}
	head.Format = journalFormat
	b, err := json.Marshal(head)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	j := &Journal{JournalHead: head, Limit: MaxRecord, f: f, key: key, recipients: recipients, last: recordHead{To: head.Start.Size, Root: head.Start.Hash}}
	if err = j.write(b, nil); err == nil {
		err = durable.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return j, nil
}

// OpenJournal opens a journal to go on with it. One with a frame that is not valid ends before that frame, and its Damage says why.
// Code: backup_invalid for one whose first frame is not valid: it was changed, or another server wrote it.
func OpenJournal(path string, key []byte, recipients []age.Recipient) (*Journal, error) {
	return openJournal(path, os.O_RDWR, key, recipients)
}

// JournalFile is what the frames of a journal say outside of the encryption.
type JournalFile struct {
	JournalHead
	Path  string
	To    int64  // the last entry of the log that the journal covers
	Marks []Mark // of its beginning and its records, by size
}

// ReadJournalFile reads and verifies the frames of a journal, without the right to write to it. Code: as [OpenJournal].
func ReadJournalFile(path string, key []byte) (out JournalFile, err error) {
	j, err := openJournal(path, os.O_RDONLY, key, nil)
	if err != nil {
		return out, err
	}
	return JournalFile{j.JournalHead, path, j.To(), j.marks}, j.Close()
}

func openJournal(path string, flags int, key []byte, recipients []age.Recipient) (_ *Journal, err error) {
	if err := durable.CheckFile(path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	j := &Journal{Limit: MaxRecord, f: f, key: key, recipients: recipients}
	frames := frameReader{r: bufio.NewReader(f), key: key}
	for valid := 0; ; valid++ {
		head, _, err := frames.next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = j.take(frames.n, head)
		}
		if err != nil && valid > 0 {
			j.Damage = detail(err)
			break
		}
		if err != nil {
			return nil, err
		}
	}
	if frames.n == 0 {
		return nil, watchword.Refuse(watchword.BackupInvalid, "the journal has no beginning")
	}
	j.mac, j.end = frames.mac, frames.end
	return j, nil
}

// take notes the head of the n-th frame, counted from 1.
func (j *Journal) take(n int64, head []byte) error {
	if n == 1 {
		if err := json.Unmarshal(head, &j.JournalHead); err != nil {
			return invalid(err, "the beginning of the journal is not readable")
		}
		if j.Format < 1 || j.Format > journalFormat {
			return watchword.Refuse(watchword.BackupInvalid, "the journal has format %d, and this version reads formats up to %d: use a newer version", j.Format, journalFormat)
		}
		j.last = recordHead{To: j.Start.Size, Root: j.Start.Hash}
		j.mark()
		return nil
	}
	var h recordHead
	if err := json.Unmarshal(head, &h); err != nil {
		return invalid(err, "frame %d of the journal is not readable", n)
	}
	if h.Number != j.last.Number+1 || h.From != j.last.To || h.To < h.From {
		return watchword.Refuse(watchword.BackupInvalid, "the journal has the entries after %d up to %d in the place of those after %d", h.From, h.To, j.last.To)
	}
	j.last = h
	j.mark()
	return nil
}

// mark notes the root of the last frame that was read.
func (j *Journal) mark() {
	if j.last.Root != "" {
		j.marks = append(j.marks, Mark{j.last.To, j.last.Root})
	}
}

// Path returns the path of the file.
func (j *Journal) Path() string { return j.f.Name() }

// To returns the number of the last entry of the log that the journal covers.
func (j *Journal) To() int64 { return j.last.To }

// Root returns the root hash of the log of that size, in base64; empty for a journal of format 1.
func (j *Journal) Root() string { return j.last.Root }

// Check returns an error if the journal is damaged, or if the file at its path is not what this process wrote: it was removed, another
// one is in its place, or another process changed its length. That is Damage from then on: what was written may be lost. Codes:
// backup_invalid; other errors say that the file could not be examined.
func (j *Journal) Check() error {
	if j.Damage == "" && j.torn {
		if err := j.f.Truncate(j.end); err != nil {
			return err
		}
		j.torn = false
	}
	if j.Damage == "" {
		there, err := os.Lstat(j.Path())
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		own, oerr := j.f.Stat()
		if oerr != nil {
			return oerr
		}
		switch {
		case err != nil:
			j.Damage = "it was removed"
		case !os.SameFile(there, own):
			j.Damage = "another file is in its place"
		case there.Size() != j.end:
			j.Damage = fmt.Sprintf("it has %d bytes, and this server wrote %d", there.Size(), j.end)
		}
	}
	if j.Damage != "" {
		return watchword.Refuse(watchword.BackupInvalid, "the journal %s is damaged (%s): only another file can follow it", j.Path(), j.Damage)
	}
	return nil
}

// Append writes a record that covers the entries after To up to to. It is durable when Append returns; after an error nothing was
// written, and the caller may try again. Codes: too_large for a record of more than Limit bytes; those of [Journal.Check].
func (j *Journal) Append(r Record) error {
	if err := j.Check(); err != nil {
		return err
	}
	j.marks = nil
	r.From = j.last.To
	next := recordHead{j.last.Number + 1, r.From, r.To, r.Root}
	head, err := json.Marshal(next)
	if err != nil {
		return err
	}
	plain, err := json.Marshal(r)
	if err != nil {
		return err
	}
	var body bytes.Buffer
	w, err := age.Encrypt(&body, j.recipients...)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return err
	}
	if body.Len() > j.Limit {
		return watchword.Refuse(watchword.TooLarge, "a record of the journal has %d bytes, the limit is %d", body.Len(), j.Limit)
	}
	if err := j.write(head, body.Bytes()); err != nil {
		return err
	}
	j.last = next
	return nil
}

// write appends a frame. What an error leaves of it is cut off before the next one.
func (j *Journal) write(head, body []byte) error {
	var b []byte
	b = binary.BigEndian.AppendUint32(b, uint32(len(head))) //nolint:gosec // both are limited
	b = append(b, head...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body))) //nolint:gosec // both are limited
	b = append(b, body...)
	mac := frameMAC(j.key, j.mac, b)
	b = append(b, mac[:]...)
	_, err := j.f.WriteAt(b, j.end)
	if err == nil {
		err = j.f.Sync()
	}
	if err != nil {
		j.torn = true
		return err
	}
	j.mac = mac
	j.end += int64(len(b))
	return nil
}

// Close closes the file.
func (j *Journal) Close() error { return j.f.Close() }

func frameMAC(key []byte, before [macSize]byte, frame []byte) (out [macSize]byte) {
	h := hmac.New(sha256.New, key)
	h.Write(before[:]) // hashing does not fail
	h.Write(frame)
	h.Sum(out[:0])
	return out
}

// errCutOff means that a file ends within a frame.
var errCutOff = watchword.Refuse(watchword.BackupInvalid, "the journal ends within a record")

// frameReader reads frames and verifies each.
type frameReader struct {
	r   io.Reader
	key []byte
	mac [macSize]byte
	n   int64 // frames that were read
	end int64 // where the last of them ends
}

// next returns the next frame; io.EOF where the last one was complete, errCutOff where the file ends within one.
func (f *frameReader) next() (head, body []byte, err error) {
	var b []byte
	part := func(limit uint32) []byte {
		size := f.read(&b, 4, &err)
		if err != nil {
			return nil
		}
		n := binary.BigEndian.Uint32(size)
		if n > limit {
			err = watchword.Refuse(watchword.BackupInvalid, "record %d of the journal was changed: it has %d bytes, the limit is %d", f.n, n, limit)
			return nil
		}
		return f.read(&b, int(n), &err)
	}
	head = part(maxHead)
	if err == io.EOF && len(b) == 0 {
		return nil, nil, io.EOF
	}
	if err == nil {
		body = part(MaxRecord)
	}
	var mac []byte
	frame := len(b)
	if err == nil {
		mac = f.read(&b, macSize, &err)
	}
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil, nil, errCutOff
	}
	if err != nil {
		return nil, nil, err
	}
	want := frameMAC(f.key, f.mac, b[:frame])
	if !hmac.Equal(mac, want[:]) {
		return nil, nil, watchword.Refuse(watchword.BackupInvalid, "record %d of the journal was changed, left out or written by another server", f.n)
	}
	f.mac, f.end = want, f.end+int64(len(b))
	f.n++
	return head, body, nil
}

// read reads n bytes, appends them to b and returns them.
func (f *frameReader) read(b *[]byte, n int, err *error) []byte {
	var part bytes.Buffer
	m, rerr := io.CopyN(&part, f.r, int64(n)) // grows with what is there, not with what a length says
	*b = append(*b, part.Bytes()...)
	if rerr != nil {
		*err = rerr
		if m > 0 && rerr == io.EOF {
			*err = io.ErrUnexpectedEOF
		}
	}
	return part.Bytes()
}
