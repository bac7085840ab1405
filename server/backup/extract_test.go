package backup_test

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/backup"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func identity(t *testing.T) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	must(t, err)
	return id
}

var made = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// written is a backup with a database of 150 kB, which takes three chunks of age.
func written(t *testing.T, to ...age.Recipient) (archive, database []byte) {
	t.Helper()
	database = make([]byte, 150<<10)
	_, _ = rand.Read(database) // never returns an error (crypto/rand)
	var b bytes.Buffer
	a, err := backup.NewWriter(&b, made, to)
	must(t, err)
	must(t, a.AddBytes(backup.KEK, []byte("kek")))
	must(t, a.AddBytes(backup.Effective, []byte("[server]\n")))
	must(t, a.Add(backup.Database, int64(len(database)), bytes.NewReader(database)))
	_, err = a.Finish(hub.manifest(), hub.log)
	must(t, err)
	return b.Bytes(), database
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	one, two := identity(t), identity(t)
	archive, database := written(t, one.Recipient(), two.Recipient())
	for _, id := range []age.Identity{one, two} {
		dir := t.TempDir()
		m, err := backup.Extract(bytes.NewReader(archive), []age.Identity{id}, hub.pin(), dir)
		must(t, err)
		if m.Format != backup.Format || !m.Made.Equal(made) || m.Issuer != "https://hub.example" || len(m.Members) != 3 {
			t.Errorf("manifest %+v", m)
		}
		got, err := os.ReadFile(filepath.Join(dir, "data", "watchword.db"))
		must(t, err)
		if !bytes.Equal(got, database) {
			t.Error("the database is another one")
		}
		info, err := os.Stat(filepath.Join(dir, "data", "keys", "kek"))
		must(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("the key-encryption key has mode %v", info.Mode())
		}
	}
}

// refused extracts an archive that must be refused, and returns the error.
func refused(t *testing.T, what string, archive []byte, ids ...age.Identity) error {
	t.Helper()
	_, err := backup.Extract(bytes.NewReader(archive), ids, "", t.TempDir())
	if watchword.CodeOf(err) != watchword.BackupInvalid {
		t.Errorf("%s: %v", what, err)
	}
	return err
}

func TestAChangedArchiveIsRefused(t *testing.T) {
	id := identity(t)
	archive, _ := written(t, id.Recipient())
	step := 9973
	for at := 0; at < len(archive); at++ {
		if at > 300 && at < len(archive)-16 && at%step != 0 { // every byte of the header and of the end, some of the others
			continue
		}
		changed := bytes.Clone(archive)
		changed[at] ^= 1
		refused(t, "a changed byte", changed, id)
	}
	for n := range len(archive) {
		if n%23 != 0 && n < len(archive)-16 || n > 300 && n < len(archive)-16 && n%step != 0 {
			continue
		}
		refused(t, "a truncated archive", archive[:n], id)
	}
	refused(t, "an archive that goes on", append(bytes.Clone(archive), 0), id)
	refused(t, "another identity", archive, identity(t))
}

func TestAPassphraseOpensABackup(t *testing.T) {
	r, err := backup.PassphraseRecipient("correct horse battery", 10)
	must(t, err)
	archive, _ := written(t, r)
	good, err := backup.PassphraseIdentity("correct horse battery")
	must(t, err)
	_, err = backup.Extract(bytes.NewReader(archive), []age.Identity{good}, "", t.TempDir())
	must(t, err)
	bad, err := backup.PassphraseIdentity("correct horse batteries")
	must(t, err)
	refused(t, "another passphrase", archive, bad)
	if _, err := backup.PassphraseRecipient("short", 10); watchword.CodeOf(err) != watchword.ConfigInvalid {
		t.Errorf("a short passphrase: %v", err)
	}
}

func TestNoBackupIsUnencrypted(t *testing.T) {
	if _, err := backup.NewWriter(io.Discard, made, nil); watchword.CodeOf(err) != watchword.ConfigInvalid {
		t.Errorf("without a recipient: %v", err)
	}
}

// entry is a member of a tar file that a test makes by hand.
type entry struct {
	header tar.Header
	body   string
}

func file(name, body string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600}, body}
}

// manifestOf is the manifest of entries.
func manifestOf(es ...entry) entry {
	m := hub.manifest()
	for _, e := range es {
		sum := sha256.Sum256([]byte(e.body))
		m.Members = append(m.Members, backup.Member{Name: e.header.Name, Size: int64(len(e.body)), SHA256: hex.EncodeToString(sum[:])})
	}
	return file("manifest.jws", hub.signed(m))
}

func sealed(t *testing.T, to age.Recipient, tail string, es ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := age.Encrypt(&b, to)
	must(t, err)
	tw := tar.NewWriter(w)
	for _, e := range es {
		h := e.header
		h.Size = int64(len(e.body))
		if h.Typeflag != tar.TypeReg {
			h.Size = 0
		}
		must(t, tw.WriteHeader(&h))
		if h.Size > 0 {
			_, err = io.WriteString(tw, e.body)
			must(t, err)
		}
	}
	must(t, tw.Close())
	_, err = io.WriteString(w, tail)
	must(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

// A recipient's public key is no secret, so anyone can make an archive that opens.
func TestAHostileArchiveIsRefused(t *testing.T) {
	id := identity(t)
	begin, kek, db, config := file("format.json", `{"format":2}`), file("data/keys/kek", "k"), file("data/watchword.db", "d"), file("config/effective.toml", "")
	good := []entry{begin, kek, db, config}
	end := manifestOf(good[1:]...)
	must(t, func() error {
		_, err := backup.Extract(bytes.NewReader(sealed(t, id.Recipient(), "", append(good, end)...)), []age.Identity{id}, "", t.TempDir())
		return err
	}())
	with := func(more ...entry) []entry { return append(append([]entry{begin}, more...), kek, db, config, end) }
	link := func(kind byte, name, to string) entry {
		return entry{tar.Header{Name: name, Typeflag: kind, Linkname: to, Mode: 0o600}, ""}
	}
	huge := file("data/operator.jwk", strings.Repeat("x", 2<<20))
	later, earlier := file("format.json", `{"format":99}`), file("format.json", `{"format":1}`)
	// Each is refused for what it is, not for what is missing besides.
	says := map[string]string{
		"a symbolic link": "not a regular file", "a hard link": "not a regular file", "a folder": "not a regular file", "a device": "not a regular file", "a pipe": "not a regular file",
		"a huge member": "the limit is", "a member twice": "twice", "the format twice": "twice", "a later format": "format 99", "another hash": "is not what its manifest says",
		"no format": "does not begin with its format", "a member that no backup has": "which no backup has", "no database": "has no data/watchword.db", "no key-encryption key": "has no data/keys/kek",
		"no manifest": "has no manifest", "a manifest in the middle": "goes on after its manifest", "a format of before signatures": "make a new backup", "a manifest of before signatures": "which no backup has", "a manifest that is not signed": "not a JWS", "a member beside the manifest": "files, and its manifest",
	}
	for what, es := range map[string][]entry{
		"a path that leads out":            with(file("../evil", "x")),
		"a path that leads out from below": with(file("data/../../evil", "x")),
		"an absolute path":                 with(file("/tmp/evil", "x")),
		"a path that is not clean":         with(file("data//keys/kek", "x")),
		"a backslash":                      with(file(`data\evil`, "x")),
		"a member that no backup has":      with(file("data/evil", "x")),
		"a symbolic link":                  with(link(tar.TypeSymlink, "data/operator.jwk", "/etc/passwd")),
		"a hard link":                      with(link(tar.TypeLink, "data/operator.jwk", "data/keys/kek")),
		"a folder":                         with(link(tar.TypeDir, "data/operator.jwk", "")),
		"a device":                         with(link(tar.TypeChar, "data/operator.jwk", "")),
		"a pipe":                           with(link(tar.TypeFifo, "data/operator.jwk", "")),
		"a huge member":                    with(huge),
		"a member twice":                   with(kek),
		"the format twice":                 with(begin),
		"a later format":                   {later, kek, db, config, end},
		"no format":                        {kek, db, config, end},
		"the format in the middle":         {kek, begin, db, config, end},
		"no manifest":                      good,
		"a manifest in the middle":         {begin, kek, end, db, config},
		"a member after the manifest":      append(append([]entry{}, good...), end, file("data/operator.jwk", "x")),
		"a member beside the manifest":     with(file("data/operator.jwk", "x")),
		"a member that is missing":         {begin, kek, config, end},
		"no database":                      {begin, kek, config, manifestOf(kek, config)},
		"no key-encryption key":            {begin, db, config, manifestOf(db, config)},
		"another hash":                     {begin, file("data/keys/kek", "l"), db, config, end},
		"a manifest that is not JSON":      append(append([]entry{}, good...), file("manifest.jws", hub.signedBytes([]byte("{")))),
		"a manifest that is not signed":    append(append([]entry{}, good...), file("manifest.jws", "{}")),
		"a manifest of before signatures":  append(append([]entry{}, good...), file("manifest.json", "{}")),
		"a format of before signatures":    {earlier, kek, db, config, end},
	} {
		dir := t.TempDir()
		_, err := backup.Extract(bytes.NewReader(sealed(t, id.Recipient(), "", es...)), []age.Identity{id}, "", filepath.Join(dir, "in"))
		if watchword.CodeOf(err) != watchword.BackupInvalid || !strings.Contains(err.Error(), says[what]) {
			t.Errorf("%s: %v, want %q", what, err, says[what])
		}
		if found, err := os.ReadDir(dir); err != nil || len(found) > 1 || len(found) == 1 && found[0].Name() != "in" {
			t.Errorf("%s: outside of the folder there is now %v, %v", what, found, err)
		}
	}
	refused(t, "bytes after the end", sealed(t, id.Recipient(), "x", append(good, end)...), id)
	refused(t, "a tail that is too long", sealed(t, id.Recipient(), strings.Repeat("\x00", 1<<20), append(good, end)...), id)
	if err := refused(t, "a sparse file", sparse(t, id.Recipient(), begin, kek), id); !strings.Contains(err.Error(), "sparse") {
		t.Errorf("a sparse file is refused as another thing: %v", err)
	}
}

// sparse is an archive whose database has a hole of 1 TiB, which takes a few bytes.
func sparse(t *testing.T, to age.Recipient, before ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := age.Encrypt(&b, to)
	must(t, err)
	tw := tar.NewWriter(w)
	for _, e := range before {
		e.header.Size = int64(len(e.body))
		must(t, tw.WriteHeader(&e.header))
		_, err = io.WriteString(tw, e.body)
		must(t, err)
	}
	must(t, tw.Flush())
	// archive/tar writes no sparse files: PAX format 1.0, whose map is at the beginning of the data.
	pax := ""
	for _, kv := range [][2]string{{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.name", "data/watchword.db"}, {"GNU.sparse.realsize", "1099511627776"}} {
		line := " " + kv[0] + "=" + kv[1] + "\n"
		n := len(line) + 2
		pax += string(rune('0'+n/10)) + string(rune('0'+n%10)) + line
	}
	block := func(name string, kind byte, size int) []byte {
		h := make([]byte, 512)
		copy(h, name)
		copy(h[100:], "0000600\x000000000\x000000000\x00")
		copy(h[124:], octal(size))
		copy(h[136:], octal(0))
		copy(h[148:], "        ")
		h[156] = kind
		copy(h[257:], "ustar\x0000")
		sum := 0
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:], octal(sum)[5:]+"\x00 ")
		return h
	}
	pad := func(s string) []byte { return append([]byte(s), make([]byte, (512-len(s)%512)%512)...) }
	for _, part := range [][]byte{block("pax", 'x', len(pax)), pad(pax), block("data/watchword.db", '0', 512), pad("1\n1099511627776\n0\n"), make([]byte, 1024)} {
		_, err = w.Write(part)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func octal(n int) string {
	s := ""
	for range 11 {
		s = string(rune('0'+n%8)) + s
		n /= 8
	}
	return s
}
