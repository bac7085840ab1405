//go:build unix

package device_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/device"
)

// A folder that another user owns, or that others can write to, is refused before anything is created in it.
func TestUntrustedFolderIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a folder to another user")
	}
	for name, c := range map[string]struct {
		mode     fs.FileMode
		owner    int
		below    string
		commands string
	}{
		"of another user":                 {0o700, 54321, "", "chown root: "},
		"below one of another user":       {0o700, 54321, "lamp", "chown root: "},
		"that all can write to":           {0o777, 0, "", "chmod go-w "},
		"that a group can write to":       {0o770, 0, "", "chmod go-w "},
		"below one that all can write to": {0o777, 0, "lamp", "chmod go-w "},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Chmod(dir, c.mode); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(dir, c.owner, c.owner); err != nil {
				t.Fatal(err)
			}
			d, err := device.Open(filepath.Join(dir, c.below))
			if watchword.CodeOf(err) != watchword.FileUntrusted || !strings.Contains(err.Error(), c.commands) {
				t.Errorf("got %v, want file_untrusted with %q", err, c.commands)
			}
			if err == nil {
				_ = d.Close()
			}
			if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
				t.Errorf("%v was made, %v", names, err)
			}
		})
	}
}
