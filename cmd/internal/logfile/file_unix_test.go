//go:build unix

package logfile_test

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/cmd/internal/logfile"
)

func TestLinesGoToTheFileInUse(t *testing.T) {
	var fallback bytes.Buffer
	dir := t.TempDir()
	path, rotated, other := filepath.Join(dir, "log"), filepath.Join(dir, "log.1"), filepath.Join(dir, "other")
	l := logfile.New(&fallback)
	write := func(line string) {
		t.Helper()
		if n, err := l.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatalf("%d %v", n, err)
		}
	}
	use := func(path string) {
		t.Helper()
		if err := l.Use(path); err != nil {
			t.Fatal(err)
		}
	}
	write("1\n")
	use(path)
	write("2\n")
	if err := os.Rename(path, rotated); err != nil {
		t.Fatal(err)
	}
	write("3\n") // before it is opened again
	use(path)
	write("4\n")
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), other); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{filepath.Join(dir, "missing", "log"), dir, other} {
		if err := l.Use(bad); err == nil {
			t.Errorf("%s was opened", bad)
		}
	}
	write("5\n")
	if l.Path() != path {
		t.Errorf("in use is %s", l.Path())
	}
	use("")
	write("6\n")
	for file, want := range map[string]string{rotated: "2\n3\n", path: "4\n5\n"} {
		got, err := os.ReadFile(file)
		if err != nil || string(got) != want {
			t.Errorf("%s has %q, %v, want %q", file, got, err, want)
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Perm()&0o027 != 0 {
			t.Errorf("the mode of %s is %v, %v", file, info.Mode(), err)
		}
	}
	if fallback.String() != "1\n6\n" {
		t.Errorf("the fallback has %q", fallback.String())
	}
}

func TestAFolderThatOthersCanWriteIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "logs")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "log")
	l := logfile.New(&bytes.Buffer{})
	if err := l.Use(path); watchword.CodeOf(err) != watchword.FileUntrusted {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("a file was created")
	}
}

// A full disk loses no line.
func TestLinesThatTheFileDoesNotTakeGoToTheFallback(t *testing.T) {
	var fallback bytes.Buffer
	l := logfile.New(&fallback)
	if err := l.Use(filepath.Join(t.TempDir(), "log")); err != nil {
		t.Fatal(err)
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit) })
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 3, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	if n, err := l.Write([]byte("line\n")); n != 5 || err != nil {
		t.Errorf("%d %v", n, err)
	}
	if fallback.String() != "line\n" {
		t.Errorf("the fallback has %q", fallback.String())
	}
}
