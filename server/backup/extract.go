package backup

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
)

// maxTrailer is the most zero bytes after the end of the tar file: its padding.
const maxTrailer = 64 << 10

// Extract writes the members of an archive to dir, an empty folder of the caller, and returns its manifest. What it wrote (files of
// mode 0600 in folders of mode 0700) is durable and complete when it returns no error; else the caller removes it. It writes no more
// bytes than r has, and only the files that this package names. Every hash is compared with the manifest, and the manifest is signed
// by a server of the root that it names. root is the pin of the root that it must be ([token.TrustPin]); empty: any, which the
// caller must show to the person who decides, since anyone can make a backup of a server of their own.
//
// Codes: backup_invalid for an archive that was changed, cut off or was not made by a [Writer], or that no identity opens; pin_mismatch
// for one of another root; unavailable where a file cannot be read or written.
func Extract(r io.Reader, identities []age.Identity, root, dir string) (Manifest, error) {
	x := extraction{dir: dir, root: root, found: map[string]Member{}}
	m, err := x.extract(r, identities)
	if err == nil {
		return m, nil
	}
	if _, ours := errors.AsType[*watchword.Error](err); ours {
		return m, err
	}
	if _, system := errors.AsType[*fs.PathError](err); system {
		return m, watchword.Wrap(err, watchword.Unavailable, "%s", err)
	}
	return m, invalid(err, "the backup was changed, or is incomplete: %s", err)
}

func invalid(err error, format string, a ...any) error {
	return watchword.Wrap(err, watchword.BackupInvalid, format, a...)
}

type extraction struct {
	dir     string
	root    string // pin; empty: any
	found   map[string]Member
	read    counter // of the plaintext
	written int64
}

// counter counts what is read.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

func (x *extraction) extract(r io.Reader, identities []age.Identity) (m Manifest, err error) {
	plain, err := age.Decrypt(r, identities...)
	if _, other := errors.AsType[*age.NoIdentityMatchError](err); other {
		return m, invalid(err, "no identity or passphrase that was given opens this backup: it is encrypted to others")
	}
	if err != nil {
		return m, err
	}
	x.read.r = plain
	t := tar.NewReader(&x.read)
	for {
		h, err := t.Next()
		if err == io.EOF {
			return m, watchword.Refuse(watchword.BackupInvalid, "the backup has no manifest: it is incomplete")
		}
		if err != nil {
			return m, err
		}
		if err := x.check(h); err != nil {
			return m, err
		}
		switch h.Name {
		case formatMember:
			var f format
			if err := decode(t, &f); err != nil {
				return m, err
			}
			if f.Format < Format {
				return m, watchword.Refuse(watchword.BackupInvalid, "the backup has format %d, of an earlier build, which did not sign backups: make a new backup with this build", f.Format)
			}
			if f.Format > Format {
				return m, watchword.Refuse(watchword.BackupInvalid, "the backup has format %d, and this version reads format %d: use a newer version", f.Format, Format)
			}
			x.found[h.Name] = Member{}
		case manifestMember:
			signed, err := io.ReadAll(t) // check has limited it
			if err != nil {
				return m, err
			}
			if m, err = openManifest(string(signed), x.root); err != nil {
				return m, err
			}
			if err := x.ended(t); err != nil {
				return m, err
			}
			return m, x.matches(m)
		default:
			if err := x.member(t, h); err != nil {
				return m, err
			}
		}
	}
}

// check refuses a member that a Writer does not write.
func (x *extraction) check(h *tar.Header) error {
	m, known := members[h.Name]
	_, twice := x.found[h.Name]
	_, begun := x.found[formatMember]
	switch {
	case !known:
		return watchword.Refuse(watchword.BackupInvalid, "the archive has a member %.100q, which no backup has", h.Name)
	case h.Typeflag != tar.TypeReg || h.Linkname != "":
		return watchword.Refuse(watchword.BackupInvalid, "%s is not a regular file", h.Name)
	case twice:
		return watchword.Refuse(watchword.BackupInvalid, "the archive has %s twice", h.Name)
	case begun == (h.Name == formatMember):
		return watchword.Refuse(watchword.BackupInvalid, "the archive does not begin with its format: it is not a backup of this product")
	case m.max > 0 && h.Size > m.max:
		return watchword.Refuse(watchword.BackupInvalid, "%s has %d bytes, the limit is %d", h.Name, h.Size, m.max)
	}
	return nil
}

func decode(r io.Reader, into any) error {
	b, err := io.ReadAll(r) // check has limited it
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// member writes one member to its file.
func (x *extraction) member(r io.Reader, h *tar.Header) (err error) {
	path := filepath.Join(x.dir, filepath.FromSlash(h.Name))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := sha256.New()
	n, err := io.Copy(&limited{io.MultiWriter(f, sum), x}, r)
	if err != nil {
		return err
	}
	x.found[h.Name] = Member{h.Name, n, hex.EncodeToString(sum.Sum(nil))}
	return f.Sync()
}

// limited refuses to write more than was read: the tar format has sparse files, whose holes take no bytes in the archive.
type limited struct {
	w io.Writer
	x *extraction
}

func (l *limited) Write(b []byte) (int, error) {
	if l.x.written += int64(len(b)); l.x.written > l.x.read.n {
		return 0, watchword.Refuse(watchword.BackupInvalid, "the archive has a sparse file")
	}
	return l.w.Write(b)
}

// ended reads to the end of the archive, whose last part authenticates that nothing is missing.
func (x *extraction) ended(t *tar.Reader) error {
	if _, err := t.Next(); err == nil {
		return watchword.Refuse(watchword.BackupInvalid, "the archive goes on after its manifest")
	} else if err != io.EOF {
		return err
	}
	rest, err := io.ReadAll(io.LimitReader(&x.read, maxTrailer+1))
	if err == nil && (len(rest) > maxTrailer || slices.ContainsFunc(rest, func(b byte) bool { return b != 0 })) {
		err = watchword.Refuse(watchword.BackupInvalid, "the archive goes on after its end")
	}
	return err
}

// matches compares what was found with the manifest, and makes the folders durable.
func (x *extraction) matches(m Manifest) error {
	delete(x.found, formatMember)
	for _, want := range m.Members {
		if got := x.found[want.Name]; got != want {
			return watchword.Refuse(watchword.BackupInvalid, "%.100q is not what its manifest says: %d bytes with the hash %s, not %d with %.64q", want.Name, got.Size, got.SHA256, want.Size, want.SHA256)
		}
	}
	if len(m.Members) != len(x.found) {
		return watchword.Refuse(watchword.BackupInvalid, "the archive has %d files, and its manifest %d", len(x.found), len(m.Members))
	}
	for name, is := range members {
		if _, has := x.found[name]; is.required && !has && name != formatMember && name != manifestMember {
			return watchword.Refuse(watchword.BackupInvalid, "the backup has no %s", name)
		}
	}
	folders := map[string]bool{x.dir: true}
	for name := range x.found {
		for d := filepath.Dir(filepath.FromSlash(name)); d != "."; d = filepath.Dir(d) {
			folders[filepath.Join(x.dir, d)] = true
		}
	}
	for d := range folders {
		if err := durable.SyncDir(d); err != nil {
			return err
		}
	}
	return nil
}
