package server_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server"
)

// copyFolder copies the files of a data folder that a server may be writing, except some.
func copyFolder(t *testing.T, from string, except ...string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "data")
	for _, name := range []string{"watchword.db", "watchword.db-wal", "keys/kek", "operator.jwk", "log.checkpoint", "running"} {
		b, err := os.ReadFile(filepath.Join(from, name))
		if os.IsNotExist(err) {
			continue
		}
		must(t, err)
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(to, name)), 0o700))
		must(t, os.WriteFile(filepath.Join(to, name), b, 0o600))
	}
	for _, name := range except {
		must(t, os.Remove(filepath.Join(to, name)))
	}
	return to
}

// said starts and ends a server, and returns its process log.
func said(t *testing.T, dir string) (string, error) {
	t.Helper()
	var log lockedBuffer
	o := (&machine{}).options(&log, time.Time{})
	s, err := server.New(t.Context(), config(t, dir), o)
	if err != nil {
		return log.String(), err
	}
	s.Close()
	return log.String(), nil
}

func TestAStartSaysWhatTheFolderLacks(t *testing.T) {
	c := config(t, filepath.Join(t.TempDir(), "data"))
	_, a, stop := startServer(t, c, quiet)
	if _, err := os.Lstat(filepath.Join(c.Data, "running")); err != nil {
		t.Error("the folder is not marked while the server runs")
	}
	_, err := a.CreateDevice(t.Context(), "lamp-1", nil, time.Hour)
	must(t, err)
	until(t, "a checkpoint", func() bool { _, err := os.Lstat(filepath.Join(c.Data, "log.checkpoint")); return err == nil })
	whole, withoutWAL := copyFolder(t, c.Data), copyFolder(t, c.Data, "watchword.db-wal")
	stop()
	if _, err := os.Lstat(filepath.Join(c.Data, "running")); err == nil {
		t.Error("the folder is marked after a clean end")
	}
	clean := func(except ...string) string { return copyFolder(t, c.Data, except...) }
	unclean := func(except ...string) string {
		dir := clean(except...)
		must(t, os.WriteFile(filepath.Join(dir, "running"), nil, 0o600))
		return dir
	}
	const wal, checkpoint, operator = "write-ahead log", "log.checkpoint is missing", "operator.jwk is not in the data folder"
	for what, tc := range map[string]struct {
		dir  string
		code watchword.Code
		says []string
	}{
		"a clean end":                           {clean(), "", nil},
		"a crash":                               {whole, "", nil},
		"a copy without the write-ahead log":    {withoutWAL, watchword.LogInvalid, []string{wal}},
		"no write-ahead log, all entries":       {unclean(), "", []string{wal}},
		"nothing shows what is lost":            {unclean("log.checkpoint"), watchword.LogInvalid, nil},
		"no checkpoint":                         {clean("log.checkpoint"), "", []string{checkpoint}},
		"no operator's key":                     {clean("operator.jwk"), "", []string{operator}},
		"neither checkpoint nor operator's key": {clean("operator.jwk", "log.checkpoint"), "", []string{checkpoint, operator}},
	} {
		log, err := said(t, tc.dir)
		if watchword.CodeOf(err) != tc.code {
			t.Errorf("%s: %v, want %q", what, err, tc.code)
		}
		if err != nil && (!strings.Contains(err.Error(), "watchword.db-wal, with its last writes, is missing")) {
			t.Errorf("%s: %v", what, err)
		}
		for _, line := range []string{wal, checkpoint, operator} {
			want := false
			for _, s := range tc.says {
				want = want || s == line
			}
			if strings.Contains(log, line) != want {
				t.Errorf("%s: the log says %q: %v, want %v\n%s", what, line, !want, want, log)
			}
		}
	}
	// What the error says helps.
	dir := unclean("log.checkpoint")
	must(t, os.Remove(filepath.Join(dir, "running")))
	if _, err := said(t, dir); err != nil {
		t.Error(err)
	}
}
