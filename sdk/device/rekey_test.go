package device

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

func TestNextKeysAreWholeAndPrivate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, newKeysFile)
	d := &Device{dir: dir, opts: Options{Log: slog.New(slog.DiscardHandler)}} // one that looks
	if n, err := d.readNextKeys(); n != nil || err != nil {
		t.Errorf("none: %v, %v", n, err)
	}
	for _, o := range []RekeyOptions{{Sign: jose.Ed, Seal: jose.X25519}, {Sign: jose.P256}, {Seal: jose.P256}} {
		made, err := makeNextKeys(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := made.write(path); err != nil {
			t.Fatal(err)
		}
		n, err := d.readNextKeys()
		if err != nil || !n.matches(o) || n.matches(RekeyOptions{Sign: jose.P256, Seal: jose.P256}) {
			t.Errorf("%+v: %v", o, err)
		}
		if made.sign != nil && n.sign.Public().ID() != made.sign.Public().ID() || made.seal != nil && n.seal.Public().ID() != made.seal.Public().ID() {
			t.Errorf("%+v: other keys", o)
		}
	}
	if err := os.WriteFile(path, []byte(`{"sign":{"kty":"EC"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := d.readNextKeys(); err != nil || n == nil {
		t.Errorf("damaged, with a copy: %v", err)
	}
	if err := os.Remove(copyPath(path)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.readNextKeys(); watchword.CodeOf(err) != watchword.KeyDamaged {
		t.Errorf("damaged: %v", err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := d.readNextKeys(); watchword.CodeOf(err) != watchword.KeyExposed {
		t.Errorf("exposed: %v", err)
	}
}

func TestTheOlderKeyDecidesWhenKeysChange(t *testing.T) {
	h := newHours(t, Options{})
	if _, err := h.keysMade(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without keys: %v", err)
	}
	if err := h.makeKeys(); err != nil {
		t.Fatal(err)
	}
	for name, at := range map[string]int64{signFile: 2000, sealFile: 1000} {
		if err := os.Chtimes(h.path(name), h.server, h.server.AddDate(0, 0, int(-at))); err != nil {
			t.Fatal(err)
		}
	}
	made, err := h.keysMade()
	if err != nil || !made.Equal(h.server.AddDate(0, 0, -2000)) {
		t.Errorf("made %s, %v", made, err)
	}
}
