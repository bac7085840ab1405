package device

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/jose"
)

// Keys and identity exist only on the device. Each is stored in a file and in a copy beside it, so that one damaged file
// can be repaired. If both can be read the file is used: an older build writes the file only.

// copyPath returns the path of the copy of a file.
func copyPath(path string) string { return path + ".copy" }

// readWithCopy reads a file or its copy, the first one that check accepts, and returns nil if neither exists. If this
// process holds the folder's lock, the other one is rewritten. Codes: key_exposed, file_untrusted; key_damaged if none of
// the existing ones can be read.
func (d *Device) readWithCopy(name string, private bool, check func([]byte) error) ([]byte, error) {
	read := func(path string) ([]byte, error) { return durable.ReadTrusted(path, durable.MaxPrivate) }
	if private {
		read = durable.ReadPrivate
	}
	path := d.path(name)
	var found [2][]byte
	var wrong error
	good := -1
	for i, p := range []string{path, copyPath(path)} {
		b, err := read(p)
		if isUntrustedFile(err) {
			return nil, err
		}
		if err == nil {
			err = check(b)
		}
		switch {
		case err == nil:
			if found[i] = b; good < 0 {
				good = i
			}
		case !errors.Is(err, fs.ErrNotExist):
			wrong = errors.Join(wrong, watchword.Wrap(err, watchword.KeyDamaged, "%s is damaged", p))
		}
	}
	if good < 0 {
		return nil, wrong
	}
	if wrong != nil {
		d.opts.Log.Error("a file of the device's folder is damaged; the other one of the two counts", slog.Any("err", wrong))
	}
	for i, p := range []string{path, copyPath(path)} {
		if d.lock == nil || found[i] != nil && bytes.Equal(found[i], found[good]) {
			continue
		}
		if err := durable.WriteFile(p, found[good], 0o600); err != nil {
			d.opts.Log.Error("a file of the device's folder cannot be mended", slog.String("path", p), slog.Any("err", err))
		}
	}
	return found[good], nil
}

// writeWithCopy writes a file and its copy.
func writeWithCopy(path string, b []byte) error {
	if err := durable.WriteFile(path, b, 0o600); err != nil {
		return err
	}
	return durable.WriteFile(copyPath(path), b, 0o600)
}

// removeWithCopy removes a file and its copy.
func removeWithCopy(path string) error {
	for _, p := range []string{path, copyPath(path)} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// checksumFormat is the end of the device's JSON files: a checksum of everything before it. A JWK needs none, since its
// public members verify its private one.
const checksumFormat = ",\n  \"sum\": \"%08x\"\n}\n"

// withChecksum returns a value as a JSON object with a checksum.
func withChecksum(v any) ([]byte, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, err
	}
	b = bytes.TrimSuffix(b, []byte("\n}"))
	return fmt.Appendf(b, checksumFormat, checksum(b)), nil
}

// verifyChecksum decodes the output of withChecksum; a file of a build without checksums is decoded unverified.
func verifyChecksum(b []byte, into any) error {
	if has, good := findChecksum(b); has && !good {
		return watchword.Refuse(watchword.KeyDamaged, "the checksum of the file does not match")
	}
	return json.Unmarshal(b, into)
}

// findChecksum reports whether a file ends with a checksum, and whether it is correct.
func findChecksum(b []byte) (has, good bool) {
	n := len(b) - len(fmt.Sprintf(checksumFormat, 0))
	if n <= 0 {
		return false, false
	}
	body, end := b[:n], string(b[n:])
	digits := strings.Index(checksumFormat, "%08x")
	sum, err := strconv.ParseUint(end[digits:digits+8], 16, 32)
	if err != nil || end != fmt.Sprintf(checksumFormat, sum) {
		return false, false
	}
	return true, uint32(sum) == checksum(body)
}

// addChecksum rewrites a file with a checksum if it was read without one.
func (d *Device) addChecksum(name string, read []byte, v any) error {
	if has, _ := findChecksum(read); has || read == nil || d.lock == nil {
		return nil
	}
	b, err := withChecksum(v)
	if err != nil {
		return err
	}
	if err := writeWithCopy(d.path(name), b); err != nil {
		d.opts.Log.Error("a file of the device's folder cannot be written anew", slog.String("path", d.path(name)), slog.Any("err", err))
	}
	return nil
}

// readKey returns the key in a file, which must be for use; nil if there is none.
func (d *Device) readKey(name string, use jose.Use) (k *jose.PrivateKey, err error) {
	_, err = d.readWithCopy(name, true, func(b []byte) (err error) {
		parsed, err := jose.ParsePrivateJWK(b, use)
		if err == nil && k == nil {
			k = parsed
		}
		return err
	})
	if err != nil { // also if one of the two files is valid: the other is not trusted
		return nil, err
	}
	return k, nil
}

// ensureKey generates the key in a file, if there is none.
func (d *Device) ensureKey(name, curve string, use jose.Use) error {
	k, err := d.readKey(name, use)
	if k != nil || err != nil {
		return err
	}
	if k, err = jose.GenerateKey(curve); err != nil {
		return err
	}
	return writeWithCopy(d.path(name), append(k.JWK(), '\n'))
}

func (d *Device) readIdentity() (id *identity, err error) {
	b, err := d.readWithCopy(identityFile, false, func(b []byte) error {
		var read identity
		err := verifyChecksum(b, &read)
		if err == nil && (!watchword.ValidName(string(read.ID)) || read.Issuer == "" || read.HTTPS == "" || read.Pin == "") {
			err = watchword.Refuse(watchword.KeyDamaged, "the file names no device")
		}
		if err == nil && id == nil {
			id = &read
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return id, d.addChecksum(identityFile, b, id)
}

func writeIdentity(dir string, id *identity) error {
	b, err := withChecksum(id)
	if err != nil {
		return err
	}
	return writeWithCopy((&Device{dir: dir}).path(identityFile), b)
}
