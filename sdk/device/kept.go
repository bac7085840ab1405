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

// Keys and identity exist nowhere else: each is kept twice, in its file and in a copy beside
// it, so that one damaged file is survived and mended. Where both can be read the file counts:
// an older build writes the file alone.

// copyOf names the copy of a file.
func copyOf(path string) string { return path + ".copy" }

// readKept reads a file or its copy, the first that check takes, and returns nil where neither is
// there. Where the folder is held, the other one is written anew. Codes: key_exposed,
// file_untrusted; key_damaged where nothing that is there can be read.
func (d *Device) readKept(name string, private bool, check func([]byte) error) ([]byte, error) {
	read := func(path string) ([]byte, error) { return durable.ReadTrusted(path, durable.MaxPrivate) }
	if private {
		read = durable.ReadPrivate
	}
	path := d.path(name)
	var found [2][]byte
	var wrong error
	good := -1
	for i, p := range []string{path, copyOf(path)} {
		b, err := read(p)
		if unbelieved(err) {
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
			wrong = errors.Join(wrong, watchword.Because(err, watchword.KeyDamaged, "%s is damaged", p))
		}
	}
	if good < 0 {
		return nil, wrong
	}
	if wrong != nil {
		d.o.Log.Error("a file of the device's folder is damaged; the other one of the two counts", slog.Any("err", wrong))
	}
	for i, p := range []string{path, copyOf(path)} {
		if d.lock == nil || found[i] != nil && bytes.Equal(found[i], found[good]) {
			continue
		}
		if err := durable.WriteFile(p, found[good], 0o600); err != nil {
			d.o.Log.Error("a file of the device's folder cannot be mended", slog.String("path", p), slog.Any("err", err))
		}
	}
	return found[good], nil
}

// writeKept writes a file and its copy.
func writeKept(path string, b []byte) error {
	if err := durable.WriteFile(path, b, 0o600); err != nil {
		return err
	}
	return durable.WriteFile(copyOf(path), b, 0o600)
}

// removeKept removes both.
func removeKept(path string) error {
	for _, p := range []string{path, copyOf(path)} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// sumOf is how a JSON file of ours ends: with a checksum of all that is before it. A JWK has none: its
// public members prove its secret.
const sumOf = ",\n  \"sum\": \"%08x\"\n}\n"

// withSum writes a JSON object with a checksum.
func withSum(v any) ([]byte, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, err
	}
	b = bytes.TrimSuffix(b, []byte("\n}"))
	return fmt.Appendf(b, sumOf, checksum(b)), nil
}

// checkSum reads what withSum has written; a file of a build that wrote no checksum is only read.
func checkSum(b []byte, into any) error {
	if has, good := sumIn(b); has && !good {
		return watchword.Refuse(watchword.KeyDamaged, "its checksum is another")
	}
	return json.Unmarshal(b, into)
}

// sumIn reports whether a file ends with a checksum, and whether that is the file's.
func sumIn(b []byte) (has, good bool) {
	n := len(b) - len(fmt.Sprintf(sumOf, 0))
	if n <= 0 {
		return false, false
	}
	body, end := b[:n], string(b[n:])
	digits := strings.Index(sumOf, "%08x")
	sum, err := strconv.ParseUint(end[digits:digits+8], 16, 32)
	if err != nil || end != fmt.Sprintf(sumOf, sum) {
		return false, false
	}
	return true, uint32(sum) == checksum(body)
}

// addSum writes a file anew, with its checksum, where it was read without.
func (d *Device) addSum(name string, read []byte, v any) error {
	if has, _ := sumIn(read); has || read == nil || d.lock == nil {
		return nil
	}
	b, err := withSum(v)
	if err != nil {
		return err
	}
	if err := writeKept(d.path(name), b); err != nil {
		d.o.Log.Error("a file of the device's folder cannot be written anew", slog.String("path", d.path(name)), slog.Any("err", err))
	}
	return nil
}

// readKey returns the key in a file, which is for use; nil if there is none.
func (d *Device) readKey(name string, use jose.Use) (k *jose.PrivateKey, err error) {
	_, err = d.readKept(name, true, func(b []byte) (err error) {
		parsed, err := jose.ParsePrivateJWK(b, use)
		if err == nil && k == nil {
			k = parsed
		}
		return err
	})
	if err != nil { // also where one of the two was good: the other is not to be believed
		return nil, err
	}
	return k, nil
}

// ensureKey makes the key in a file, if there is none.
func (d *Device) ensureKey(name, curve string, use jose.Use) error {
	k, err := d.readKey(name, use)
	if k != nil || err != nil {
		return err
	}
	if k, err = jose.GenerateKey(curve); err != nil {
		return err
	}
	return writeKept(d.path(name), append(k.JWK(), '\n'))
}

func (d *Device) readIdentity() (id *identity, err error) {
	b, err := d.readKept(identityFile, false, func(b []byte) error {
		var read identity
		err := checkSum(b, &read)
		if err == nil && (!watchword.ValidName(string(read.ID)) || read.Issuer == "" || read.HTTPS == "" || read.Pin == "") {
			err = watchword.Refuse(watchword.KeyDamaged, "it says no device")
		}
		if err == nil && id == nil {
			id = &read
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return id, d.addSum(identityFile, b, id)
}

func writeIdentity(dir string, id *identity) error {
	b, err := withSum(id)
	if err != nil {
		return err
	}
	return writeKept((&Device{dir: dir}).path(identityFile), b)
}
