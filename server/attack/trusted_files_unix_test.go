//go:build unix

package attack_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/device"
)

// No file of an enrolled device's folder is trusted if another user owns it, or others can write to it.
func TestDeviceFilesOfOtherOwnersAreRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file to another user")
	}
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	dir := filepath.Dir(d.CAFile())
	must(t, d.Close())
	const somebody = 54321
	var all []string
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		all = append(all, path)
		return err
	}))
	if len(all) < 7 {
		t.Fatalf("the folder has %v", all)
	}
	for _, path := range all {
		info, err := os.Stat(path)
		must(t, err)
		for what, f := range map[string]func() error{
			"of another user":     func() error { return os.Chown(path, somebody, somebody) },
			"that others write":   func() error { return os.Chmod(path, info.Mode()|0o002) },
			"that a group writes": func() error { return os.Chmod(path, info.Mode()|0o020) },
		} {
			must(t, f())
			d, err := device.Open(dir)
			if c := watchword.CodeOf(err); c != watchword.FileUntrusted && c != watchword.KeyExposed {
				t.Errorf("%s %s: %v", path, what, err)
			}
			if err == nil {
				must(t, d.Close())
			}
			must(t, os.Chown(path, 0, 0))
			must(t, os.Chmod(path, info.Mode()))
		}
	}
	d, err := device.Open(dir)
	must(t, err)
	must(t, d.Close())
}
