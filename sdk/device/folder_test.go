package device

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// some is some damages of a file: missing, empty, prefixes, flipped bits all over it, zeros. With WATCHWORD_EVERY_BYTE set it
// is every prefix, and a bit of every byte: that takes minutes.
func some(whole []byte, steps int, f func(what string, b []byte)) {
	f("missing", nil)
	f("empty", []byte{})
	f("zeros", make([]byte, len(whole)))
	if os.Getenv("WATCHWORD_EVERY_BYTE") != "" {
		for i := range whole {
			if i > 0 {
				f(fmt.Sprintf("cut to %d bytes", i), whole[:i])
			}
			b := slices.Clone(whole)
			b[i] ^= 1 << (i % 8)
			f(fmt.Sprintf("byte %d flipped", i), b)
		}
		return
	}
	for i := range steps {
		if n := len(whole) * i / steps; n > 0 {
			f(fmt.Sprintf("cut to %d bytes", n), whole[:n])
		}
		at := (len(whole)*i/steps + 7*i) % len(whole)
		for _, i := range []int{at, max(len(whole)-1-2*i, 0)} {
			b := slices.Clone(whole)
			b[i] ^= 1 << (i % 7)
			f(fmt.Sprintf("byte %d flipped", i), b)
		}
	}
}

func signCommand(t *testing.T, s *fakeServer, to *jose.PublicKey, seq int64, nonce string) string {
	t.Helper()
	now := time.Now()
	jws, err := token.SignCommand(s.command, token.Command{
		Issuer: s.trust.Issuer, Device: "lamp-1", ID: watchword.CommandID(fmt.Sprint("cmd_", seq)), Epoch: 1, Seq: seq,
		Function: "f", Args: []byte(`{}`), By: "operator", Nonce: nonce, Issued: now, Expires: now.Add(5 * time.Minute),
	})
	if err != nil {
		t.Fatal(err)
	}
	jwe, err := jose.Encrypt(to, "JWT", []byte(jws))
	if err != nil {
		t.Fatal(err)
	}
	return jwe
}

// renewed raises the fake server's bundle, which the device takes if it is not nil.
func (s *fakeServer) renewed(d *Device) {
	s.t.Helper()
	s.trust.Version++
	raw, err := token.SignTrust(s.trust, s.root)
	if err != nil {
		s.t.Fatal(err)
	}
	s.bundle = raw
	if err := d.renewTrust(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

// Whatever a disk does to one file of a device's folder: the folder opens, the device keeps its identity, nothing is done
// twice, no number goes back, a new command is executed, and the folder is repaired.
func TestFileDamageCausesNoSecondExecutionOrDeafness(t *testing.T) {
	s := newFakeServer(t)
	d := s.device(false, Options{})
	acted := map[int64]int{}
	obey := func(d *Device) {
		d.Handle("f", func(_ context.Context, c *Command) (any, error) { acted[c.Seq]++; return nil, nil })
		d.OnConfig(func(context.Context, Config) error { return nil })
	}
	obey(d)
	older := s.bundle
	s.renewed(d)
	sign, seal := d.Keys()
	for seq := range int64(3) {
		if _, err := d.Execute(t.Context(), signCommand(t, s, seal, seq+1, "")); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.applyConfig(t.Context(), s.signedConfig(s.command, 1, 5)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.applyTime(time.Now(), &s.trust); err != nil {
		t.Fatal(err)
	}
	floor := d.clock.lowerBound().Unix()
	next, err := makeNextKeys(RekeyOptions{Sign: jose.P256, Seal: jose.X25519})
	if err == nil {
		err = next.write(d.path(newKeysFile))
	}
	if err == nil {
		err = d.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, e := range names {
		if e.Name() == lockFile {
			continue
		}
		if files[e.Name()], err = os.ReadFile(d.path(e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{signFile, sealFile, newKeysFile, identityFile, trustFile, caFile, configFile, journalFile, countersFile, clockFile} {
		if len(files[name]) == 0 {
			t.Fatalf("the folder has no %s", name)
		}
	}
	for name, whole := range files {
		steps := 5
		if strings.HasSuffix(name, ".copy") {
			steps = 1
		}
		some(whole, steps, func(what string, b []byte) {
			dir := filepath.Join(t.TempDir(), "lamp")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for other, content := range files {
				if other == name {
					content = b
				}
				if content == nil {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, other), content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			clear(acted)
			what = name + " " + what
			d, err := OpenWith(dir, d.opts)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			obey(d)
			if a, b := d.Keys(); a.ID() != sign.ID() || b.ID() != seal.ID() || d.ID() != "lamp-1" || d.Server() != s.https.URL {
				t.Errorf("%s: another device", what)
			}
			if n := d.keyChange.next; n == nil || n.sign.Public().ID() != next.sign.Public().ID() || n.seal.Public().ID() != next.seal.Public().ID() {
				t.Errorf("%s: the next keys are lost", what)
			}
			if got := d.clock.lowerBound().Unix(); got != floor {
				t.Errorf("%s: the last signed time is %d, was %d", what, got, floor)
			}
			if _, err := d.verifyNext(older, d.trust.Load()); err == nil {
				t.Errorf("%s: an older trust bundle is taken", what)
			}
			if d.Trust() == nil {
				if err := d.renewTrust(t.Context()); err != nil {
					t.Errorf("%s: the bundle is lost, and the next one is not taken: %v", what, err)
				}
			}
			if err := d.applyConfig(t.Context(), s.signedConfig(s.command, 1, 4)); watchword.CodeOf(err) != watchword.CommandStale {
				t.Errorf("%s: an older configuration: %v", what, err)
			}
			for seq := range int64(3) {
				_, _ = d.Execute(t.Context(), signCommand(t, s, seal, seq+1, "")) // refused, or its receipt of then
			}
			nonce := d.nonce.current(d.opts.Now())
			for seq := range int64(3) {
				_, _ = d.Execute(t.Context(), signCommand(t, s, seal, seq+1, nonce))
			}
			if len(acted) > 0 {
				t.Errorf("%s: acted again on %v", what, acted)
			}
			if _, err := d.Execute(t.Context(), signCommand(t, s, seal, 4, nonce)); err != nil || acted[4] != 1 {
				t.Errorf("%s: a new command: %v", what, err)
			}
			if err := d.applyConfig(t.Context(), s.signedConfig(s.command, 1, 6)); err != nil {
				t.Errorf("%s: a new configuration: %v", what, err)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			if !slices.Contains([]string{configFile, journalFile, countersFile, clockFile}, name) { // these are rewritten otherwise
				if now, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(now, whole) && !bytes.HasPrefix(b, whole[:len(whole)-1]) { // the line break at its end says nothing
					t.Errorf("%s: it is not mended: %v", what, err)
				}
			}
			if t.Failed() {
				t.FailNow()
			}
		})
	}
	// Where both of the two are damaged there is nothing to go by, and the error says which file.
	for _, name := range []string{signFile, sealFile, newKeysFile, identityFile} {
		for other, content := range files {
			if err := os.WriteFile(filepath.Join(d.dir, other), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range []string{d.path(name), copyPath(d.path(name))} {
			if err := os.WriteFile(p, []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := OpenWith(d.dir, d.opts); watchword.CodeOf(err) != watchword.KeyDamaged || !bytes.Contains([]byte(err.Error()), []byte(name)) {
			t.Errorf("both of %s: %v", name, err)
		}
	}
}

// One file of an earlier time among the others, as of a backup, leads back to no older state.
func TestOlderFilesAreNotUsed(t *testing.T) {
	s := newFakeServer(t)
	d := s.device(false, Options{})
	acted := map[int64]int{}
	obey := func(d *Device) {
		d.Handle("f", func(_ context.Context, c *Command) (any, error) { acted[c.Seq]++; return nil, nil })
		d.OnConfig(func(context.Context, Config) error { return nil })
	}
	obey(d)
	_, seal := d.Keys()
	step := func(seq, version int64) {
		t.Helper()
		if _, err := d.Execute(t.Context(), signCommand(t, s, seal, seq, "")); err != nil {
			t.Fatal(err)
		}
		if err := d.applyConfig(t.Context(), s.signedConfig(s.command, 1, version)); err != nil {
			t.Fatal(err)
		}
	}
	folder := func() map[string][]byte {
		t.Helper()
		files := map[string][]byte{}
		for _, name := range []string{identityFile, trustFile, caFile, configFile, journalFile, countersFile} {
			b, err := os.ReadFile(d.path(name))
			if err != nil {
				t.Fatal(err)
			}
			files[name] = b
		}
		return files
	}
	step(1, 3)
	earlier, bundle := folder(), s.bundle
	s.renewed(d)
	step(2, 4)
	step(3, 5)
	later := folder()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for name, old := range earlier {
		for other, content := range later {
			if other == name {
				content = old
			}
			if err := os.WriteFile(d.path(other), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		clear(acted)
		d, err := OpenWith(d.dir, d.opts)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		obey(d)
		if _, err := d.verifyNext(bundle, d.trust.Load()); err == nil {
			t.Errorf("%s: an older trust bundle is taken", name)
		}
		if d.Trust() == nil {
			if err := d.renewTrust(t.Context()); err != nil {
				t.Errorf("%s: the next bundle is not taken: %v", name, err)
			}
		}
		if err := d.applyConfig(t.Context(), s.signedConfig(s.command, 1, 4)); watchword.CodeOf(err) != watchword.CommandStale {
			t.Errorf("%s: an older configuration: %v", name, err)
		}
		for _, nonce := range []string{"", d.nonce.current(d.opts.Now())} {
			for seq := range int64(3) {
				_, _ = d.Execute(t.Context(), signCommand(t, s, seal, seq+1, nonce)) // refused, or its receipt of then
			}
		}
		if len(acted) > 0 {
			t.Errorf("%s: acted again on %v", name, acted)
		}
		if _, err := d.Execute(t.Context(), signCommand(t, s, seal, 4, d.nonce.current(d.opts.Now()))); err != nil || acted[4] != 1 {
			t.Errorf("%s: a new command: %v", name, err)
		}
		if err := d.applyConfig(t.Context(), s.signedConfig(s.command, 1, 6)); err != nil {
			t.Errorf("%s: a new configuration: %v", name, err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// The log's checkpoint is known a second time: a damaged file opens no way to an older log.
func TestADamagedCheckpointIsRecovered(t *testing.T) {
	s := newFakeServer(t)
	d := s.device(false, Options{})
	k, err := jose.GenerateKey(jose.Ed)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := k.Signer()
	if err != nil {
		t.Fatal(err)
	}
	trust := s.trust
	trust.Log = []*jose.PublicKey{k.Public()}
	note := func(size int64) []byte {
		t.Helper()
		ls := ledger.Signer{Key: ledger.LogKeys(trust.Origin(), k.Public())[0], SignFunc: signer.SignBytes}
		b, err := ledger.Checkpoint{Origin: trust.Origin(), Size: size, Root: ledger.Hash{byte(size)}}.Sign(ls)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	whole := note(9)
	put := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(d.path(checkpointFile), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(whole)
	known, err := d.readCheckpoint(&trust)
	if err != nil || known.size != 9 {
		t.Fatalf("%+v, %v", known, err)
	}
	d.counters.stage(func(c *counters) { c.setLogRecord(known) })
	if err := d.counters.update(func(*counters) {}); err != nil {
		t.Fatal(err)
	}
	cases := 0
	some(whole, 12, func(what string, b []byte) {
		if put(b); b == nil {
			if err := os.Remove(d.path(checkpointFile)); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := d.readCheckpoint(&trust); err != nil || got != known {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
		cases++
	})
	put(note(4))
	if got, err := d.readCheckpoint(&trust); err != nil || got != known {
		t.Errorf("an older one: %+v, %v", got, err)
	}
	put(note(12))
	if got, err := d.readCheckpoint(&trust); err != nil || got.size != 12 {
		t.Errorf("a later one: %+v, %v", got, err)
	}
	if cases < 30 {
		t.Errorf("%d cases", cases)
	}
}
