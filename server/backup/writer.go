package backup

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// Writer writes one archive: a tar file inside an age file. It uses constant memory. It is not safe for concurrent use.
type Writer struct {
	sealed  io.WriteCloser
	tar     *tar.Writer
	made    time.Time
	members []Member
}

// format is the first member, so that a reader can refuse a form that it does not know.
type format struct {
	Format int `json:"format"`
}

// NewWriter begins an archive that only recipients can read; there must be one at least.
func NewWriter(w io.Writer, made time.Time, recipients []age.Recipient) (*Writer, error) {
	if len(recipients) == 0 {
		return nil, watchword.Refuse(watchword.ConfigInvalid, "a backup needs a recipient: backup.recipients, or --recipient, or --passphrase-file")
	}
	sealed, err := age.Encrypt(w, recipients...)
	if err != nil {
		return nil, err
	}
	a := &Writer{sealed: sealed, tar: tar.NewWriter(sealed), made: made.UTC().Truncate(time.Second)}
	b, err := json.Marshal(format{Format})
	if err == nil {
		err = a.write(formatMember, int64(len(b)), bytes.NewReader(b))
	}
	return a, err
}

// Add writes a member of size bytes, which r must have exactly.
func (a *Writer) Add(name string, size int64, r io.Reader) error {
	if m, known := members[name]; !known || name == formatMember || name == manifestMember {
		return fmt.Errorf("a backup has no member %s", name)
	} else if m.max > 0 && size > m.max {
		return watchword.Refuse(watchword.TooLarge, "%s has %d bytes, the limit is %d", name, size, m.max)
	}
	sum := sha256.New()
	if err := a.write(name, size, io.TeeReader(r, sum)); err != nil {
		return err
	}
	a.members = append(a.members, Member{name, size, hex.EncodeToString(sum.Sum(nil))})
	return nil
}

// AddBytes writes a member from memory.
func (a *Writer) AddBytes(name string, b []byte) error {
	return a.Add(name, int64(len(b)), bytes.NewReader(b))
}

// AddFunc writes a member of size bytes, which write writes.
func (a *Writer) AddFunc(name string, size int64, write func(io.Writer) error) error {
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.CloseWithError(write(w))
	}()
	err := a.Add(name, size, r)
	r.CloseWithError(io.ErrClosedPipe) // write ends if it has not
	<-done
	return err
}

func (a *Writer) write(name string, size int64, r io.Reader) error {
	err := a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: a.made})
	if err != nil {
		return err
	}
	n, err := io.Copy(a.tar, r)
	if err == nil && n != size {
		err = fmt.Errorf("%s has %d bytes, not %d: it changed while it was read", name, n, size)
	}
	return err
}

// Finish completes the manifest, signs it with the log key, which m.Trust must name, writes it, and ends the archive. It does not
// close the underlying writer. Code: backup_invalid for a manifest that [Extract] would refuse.
func (a *Writer) Finish(m Manifest, logKey *jose.Signer) (Manifest, error) {
	m.Format, m.Made, m.Members = Format, a.made, a.members
	signed, err := m.sign(logKey)
	if err != nil {
		return m, err
	}
	if err := a.write(manifestMember, int64(len(signed)), strings.NewReader(signed)); err != nil {
		return m, err
	}
	if err := a.tar.Close(); err != nil {
		return m, err
	}
	return m, a.sealed.Close()
}
