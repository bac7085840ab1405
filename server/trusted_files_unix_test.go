//go:build unix

package server_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/server"
)

const otherUID = 54321 // a user id that does not exist

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Every file and folder of a data folder is trusted, so none is accepted that another user owns, or that others can write
// to; and a refusal names the command that corrects it.
func TestDataFilesOfOtherOwnersAreRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file to another user")
	}
	dir := filepath.Join(t.TempDir(), "data")
	once(t, config(t, dir))
	var all []string
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		all = append(all, path)
		return err
	}))
	if len(all) < 8 {
		t.Fatalf("the folder has %v", all)
	}
	refused := func(path, what, command string) {
		t.Helper()
		s, err := server.New(t.Context(), config(t, dir), quiet)
		if err == nil {
			t.Errorf("%s: a server starts on it", what)
			_ = s
			return
		}
		if c := watchword.CodeOf(err); c != watchword.FileUntrusted && c != watchword.KeyExposed {
			t.Errorf("%s: %v", what, err)
		}
		if !strings.Contains(err.Error(), command) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: it says no %q: %v", what, command, err)
		}
	}
	for _, path := range all {
		info, err := os.Stat(path)
		must(t, err)
		must(t, os.Chown(path, otherUID, otherUID))
		refused(path, path+" of another user", "chown root: "+path)
		must(t, os.Chown(path, 0, 0))
		for _, bits := range []fs.FileMode{0o020, 0o002} {
			must(t, os.Chmod(path, info.Mode()|bits))
			refused(path, path+" that others write", "chmod ")
		}
		must(t, os.Chmod(path, info.Mode()))
	}
	once(t, config(t, dir))

	// The CLI applies the same rules.
	for _, name := range []string{"server.json", "operator.jwk", "tls/ca.pem", "tls", "."} {
		path := filepath.Join(dir, name)
		must(t, os.Chown(path, otherUID, otherUID))
		if _, err := admin.Local(dir); watchword.CodeOf(err) != watchword.FileUntrusted {
			t.Errorf("the CLI trusts %s of another user: %v", name, err)
		}
		must(t, os.Chown(path, 0, 0))
	}
	if _, err := admin.Local(dir); err != nil {
		t.Error(err)
	}
}

// A folder that is refused is left as it was found.
func TestRefusedFolderStaysEmpty(t *testing.T) {
	for name, make := range map[string]func(dir string) error{
		"that all can write to":     func(dir string) error { return os.Chmod(dir, 0o777) },
		"that a group can write to": func(dir string) error { return os.Chmod(dir, 0o775) },
		"of another user":           func(dir string) error { return os.Chown(dir, otherUID, otherUID) },
		"with keys of another user": func(dir string) error {
			if err := os.Mkdir(filepath.Join(dir, "keys"), 0o700); err != nil {
				return err
			}
			return os.Chown(filepath.Join(dir, "keys"), otherUID, otherUID)
		},
		"with an authority that all can write to": func(dir string) error {
			if err := os.Mkdir(filepath.Join(dir, "tls"), 0o700); err != nil {
				return err
			}
			return os.Chmod(filepath.Join(dir, "tls"), 0o777)
		},
	} {
		t.Run(name, func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("only root can give a file to another user")
			}
			dir := t.TempDir()
			must(t, os.Chmod(dir, 0o700))
			must(t, make(dir))
			before, err := os.ReadDir(dir)
			must(t, err)
			_, err = server.New(t.Context(), config(t, dir), quiet)
			if c := watchword.CodeOf(err); c != watchword.FileUntrusted && c != watchword.KeyExposed {
				t.Errorf("got %v", err)
			}
			after, err := os.ReadDir(dir)
			must(t, err)
			if len(after) != len(before) {
				t.Errorf("%v became %v", before, after)
			}
		})
	}
}

// The mount point of a volume may be open to others. No file in it is, whatever the umask; a database that others could read is
// refused there, and not in a folder that they cannot enter.
func TestDataFolderThatOthersCanEnter(t *testing.T) {
	before := syscall.Umask(0)
	t.Cleanup(func() { syscall.Umask(before) })
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	once(t, config(t, dir))
	once(t, config(t, dir))
	files := 0
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir || d.Name() == "ca.pem" {
			return err
		}
		files++
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("others can read %s: %v", path, info.Mode())
		}
		return err
	}))
	if files < 7 {
		t.Errorf("looked at %d files", files)
	}
	must(t, os.Chmod(filepath.Join(dir, "watchword.db"), 0o644))
	if _, err := server.New(t.Context(), config(t, dir), quiet); watchword.CodeOf(err) != watchword.KeyExposed {
		t.Errorf("got %v", err)
	}
	must(t, os.Chmod(dir, 0o700))
	once(t, config(t, dir))
}

// So it is with the configuration, the certificate and its key, and the files of secrets.
func TestConfigurationOfOtherOwnersIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file to another user")
	}
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	secret := write("secret", "sqlite")
	file := write("watchword.toml", "[store]\nurl_file = \""+secret+"\"\n")
	for _, usual := range []bool{false, true} {
		load := func() error {
			src := server.Source{File: file, Data: dir, Env: func(string) (string, bool) { return "", false }}
			if usual { // where it is looked for by itself
				src = server.Source{Data: dir, Env: func(k string) (string, bool) { return dir, k == "XDG_CONFIG_HOME" }}
				must(t, os.MkdirAll(filepath.Join(dir, "watchword"), 0o755))
				must(t, os.Rename(file, filepath.Join(dir, "watchword", "watchword.toml")))
				defer func() { must(t, os.Rename(filepath.Join(dir, "watchword", "watchword.toml"), file)) }()
			}
			_, from, err := server.Load(src)
			if from == "" {
				t.Error("no file was read")
			}
			return err
		}
		must(t, load())
		for what, f := range map[string]func() error{
			"that all can write to":                 func() error { return os.Chmod(file, 0o666) },
			"that a group can write to":             func() error { return os.Chmod(file, 0o660) },
			"of another user":                       func() error { return os.Chown(file, otherUID, otherUID) },
			"in a folder that all can write to":     func() error { return os.Chmod(dir, 0o777) },
			"in a folder of another user":           func() error { return os.Chown(dir, otherUID, otherUID) },
			"that names a secret of another user":   func() error { return os.Chown(secret, otherUID, otherUID) },
			"that names a secret that all can read": func() error { return os.Chmod(secret, 0o644) },
		} {
			must(t, f())
			if c := watchword.CodeOf(load()); c != watchword.FileUntrusted && c != watchword.KeyExposed {
				t.Errorf("a configuration %s: code %q", what, c)
			}
			for path, mode := range map[string]fs.FileMode{file: 0o600, secret: 0o600, dir: 0o755} {
				must(t, os.Chown(path, 0, 0))
				must(t, os.Chmod(path, mode))
			}
		}
	}
	if _, err := os.Stat("/etc/watchword/watchword.toml"); err == nil {
		t.Log("this machine has a configuration of its own, which came first")
	}
}
