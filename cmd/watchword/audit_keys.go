package main

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"os"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
)

// logKeys is the content of --key: keys with their names, and bare keys of the log, whose name is the log's own.
type logKeys struct {
	named []ledger.Key
	bare  []ed25519.PublicKey
}

func (k logKeys) of(origin string) []ledger.Key {
	out := k.named
	for _, b := range k.bare {
		out = append(out, ledger.LogKey(origin, b))
	}
	return out
}

func (k logKeys) ofNote(note []byte) ([]ledger.Key, error) {
	c, err := ledger.ReadCheckpoint(note)
	return k.of(c.Origin), err
}

// ofExport reads the log's name from the last line of the file, and then rewinds the file.
func (k logKeys) ofExport(f *os.File) ([]ledger.Key, error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	tail := make([]byte, min(end, 2*ledger.MaxNote))
	if _, err := f.ReadAt(tail, end-int64(len(tail))); err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSuffix(string(tail), "\n"), "\n")
	var l audit.ExportLine
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &l); err != nil || l.Checkpoint == "" {
		return nil, watchword.Refuse(watchword.LogInvalid, "%s has no checkpoint at its end: entries may be missing", f.Name())
	}
	return k.ofNote([]byte(l.Checkpoint))
}

// readLogKeys reads --key. Code: bad_request.
func readLogKeys(name string) (k logKeys, err error) {
	if name == "" {
		return k, nil
	}
	b, err := readTrusted(name, 64<<10)
	if err != nil {
		return k, err
	}
	bare := func(pub any) error {
		ed, ok := pub.(ed25519.PublicKey)
		if !ok {
			return watchword.RefuseField("--key", "must be the key of a log: Ed25519")
		}
		k.bare = append(k.bare, ed)
		return nil
	}
	text := strings.TrimSpace(string(b))
	switch {
	case strings.HasPrefix(text, "{"):
		pub, err := jose.ParseJWK([]byte(text), jose.ForSigning)
		if err != nil {
			return k, err
		}
		return k, bare(pub.Crypto())
	case strings.HasPrefix(text, "-----BEGIN"):
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			return k, watchword.RefuseField("--key", "must be valid PEM")
		}
		pub, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return k, watchword.RefuseField("--key", "must be a public key")
		}
		return k, bare(pub)
	}
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, err := ledger.ParseKey(line)
		if err != nil {
			return k, err
		}
		k.named = append(k.named, key)
	}
	if len(k.named) == 0 {
		return k, watchword.RefuseField("--key", "must contain a key")
	}
	return k, nil
}
