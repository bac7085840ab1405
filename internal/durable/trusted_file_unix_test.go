//go:build unix

package durable_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/testwait"
)

const other = 54321 // a user id that does not exist

// needRoot skips where nothing can be given away.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file to another user")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, path string, mode fs.FileMode) string {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte("text"), 0o600))
	must(t, os.Chmod(path, mode))
	return path
}

func TestTrustedFileOwner(t *testing.T) {
	needRoot(t)
	for name, c := range map[string]struct {
		make    func(t *testing.T, dir string) string // returns the path that is read
		trusted watchword.Code                        // of ReadTrusted; empty: it is read
		private watchword.Code                        // of ReadPrivate
		says    string
	}{
		"a private file":                   {func(t *testing.T, d string) string { return put(t, d+"/f", 0o600) }, "", "", ""},
		"a file that others read":          {func(t *testing.T, d string) string { return put(t, d+"/f", 0o644) }, "", watchword.KeyExposed, "chmod 600 "},
		"a file that a group reads":        {func(t *testing.T, d string) string { return put(t, d+"/f", 0o640) }, "", watchword.KeyExposed, "chmod 600 "},
		"a file that a group writes":       {func(t *testing.T, d string) string { return put(t, d+"/f", 0o620) }, watchword.FileUntrusted, watchword.KeyExposed, ""},
		"a file that others write":         {func(t *testing.T, d string) string { return put(t, d+"/f", 0o602) }, watchword.FileUntrusted, watchword.KeyExposed, ""},
		"a file that every user may write": {func(t *testing.T, d string) string { return put(t, d+"/f", 0o666) }, watchword.FileUntrusted, watchword.KeyExposed, ""},
		"a file of another user":           {func(t *testing.T, d string) string { return own(t, put(t, d+"/f", 0o600)) }, watchword.FileUntrusted, watchword.FileUntrusted, fmt.Sprintf("belongs to uid %d, who could change or replace it, and root runs this; run this as its owner (sudo -u '#%d' …)", other, other)},
		"in a folder that others write":    {func(t *testing.T, d string) string { return mode(t, put(t, d+"/sub/f", 0o600), "..", 0o757) }, watchword.FileUntrusted, watchword.FileUntrusted, "chmod go-w "},
		"in a folder that a group writes": {
			func(t *testing.T, d string) string { return mode(t, put(t, d+"/sub/f", 0o600), "..", 0o775) },
			watchword.FileUntrusted, watchword.FileUntrusted, "chmod go-w ",
		},
		"in a sticky folder": {func(t *testing.T, d string) string {
			return mode(t, put(t, d+"/sub/f", 0o600), "..", 0o777|fs.ModeSticky)
		}, "", "", ""},
		"below what a group writes": {func(t *testing.T, d string) string { return mode(t, put(t, d+"/a/b/f", 0o600), "../..", 0o775) }, "", "", ""},
		"below what others write": {
			func(t *testing.T, d string) string { return mode(t, put(t, d+"/a/b/f", 0o600), "../..", 0o757) },
			watchword.FileUntrusted, watchword.FileUntrusted, "chmod go-w ",
		},
		"in a folder of another user": {
			func(t *testing.T, d string) string { p := put(t, d+"/sub/f", 0o600); own(t, d+"/sub"); return p },
			watchword.FileUntrusted, watchword.FileUntrusted, "chown root: ",
		},
		"in a sticky folder of another user": {
			func(t *testing.T, d string) string {
				p := put(t, d+"/sub/f", 0o600)
				own(t, d+"/sub")
				return mode(t, p, "..", 0o777|fs.ModeSticky)
			},
			watchword.FileUntrusted, watchword.FileUntrusted, "chown root: ",
		},
		"far below a folder of another user": {
			func(t *testing.T, d string) string { p := put(t, d+"/a/b/c/f", 0o600); own(t, d+"/a"); return p },
			watchword.FileUntrusted, watchword.FileUntrusted, "chown root: ",
		},
		"by a link": {func(t *testing.T, d string) string { return link(t, put(t, d+"/f", 0o600), d+"/l") }, "", "", ""},
		"by a link that says where from here": {func(t *testing.T, d string) string {
			put(t, d+"/x/f", 0o600)
			put(t, d+"/y/z", 0o600)
			return link(t, "../x/f", d+"/y/l")
		}, "", "", ""},
		"by a link to what others write": {func(t *testing.T, d string) string { return link(t, put(t, d+"/f", 0o602), d+"/l") }, watchword.FileUntrusted, watchword.KeyExposed, ""},
		"by a link into a folder that others write": {
			func(t *testing.T, d string) string {
				return link(t, mode(t, put(t, d+"/sub/f", 0o600), "..", 0o757), d+"/l")
			},
			watchword.FileUntrusted, watchword.FileUntrusted, "/sub can be written",
		},
		"by a linked folder in what others write": {
			func(t *testing.T, d string) string {
				put(t, d+"/x/sub/f", 0o600)
				put(t, d+"/y/z", 0o600)
				must(t, os.Chmod(d+"/y", 0o757))
				return link(t, d+"/x/sub", d+"/y/l") + "/f"
			},
			watchword.FileUntrusted, watchword.FileUntrusted, "/y can be written",
		},
		"by another user's link in a sticky folder": {
			func(t *testing.T, d string) string {
				put(t, d+"/f", 0o600)
				put(t, d+"/sub/z", 0o600)
				must(t, os.Chmod(d+"/sub", 0o777|fs.ModeSticky))
				l := link(t, d+"/f", d+"/sub/l")
				must(t, os.Lchown(l, other, other))
				return l
			},
			watchword.FileUntrusted, watchword.FileUntrusted, "chown -h root: ",
		},
		"a folder": {func(t *testing.T, d string) string { return d }, watchword.FileUntrusted, watchword.FileUntrusted, "is a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			path := c.make(t, t.TempDir())
			b, err := durable.ReadTrusted(path, 4)
			wants(t, "trusted", c.trusted, b, err)
			if err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("it does not say %q: %v", c.says, err)
			}
			b, err = durable.ReadPrivate(path)
			wants(t, "private", c.private, b, err)
			if err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("it does not say %q: %v", c.says, err)
			}
			if got := watchword.CodeOf(durable.CheckFile(path)); got != c.trusted {
				t.Errorf("CheckFile says %s, want %q", got, c.trusted)
			}
		})
	}
}

// The command of a message can be pasted into a shell, whatever the names, and corrects the problem.
func TestSuggestedCommandFixesFilePermissions(t *testing.T) {
	needRoot(t)
	const name = "it's $(touch made) `touch made`; touch made #\\\n\"*"
	file := func(t *testing.T, d string, m fs.FileMode) string { return put(t, filepath.Join(d, name, name), m) }
	for what, make := range map[string]func(t *testing.T, d string) string{
		"a file that others write": func(t *testing.T, d string) string { return file(t, d, 0o622) },
		"a file that others read":  func(t *testing.T, d string) string { return file(t, d, 0o644) },
		"another user's file":      func(t *testing.T, d string) string { return own(t, file(t, d, 0o600)) },
		"another user's link": func(t *testing.T, d string) string {
			l := link(t, file(t, d, 0o600), filepath.Join(d, name, "link"))
			must(t, os.Lchown(l, other, other))
			return l
		},
		"a folder that others write":     func(t *testing.T, d string) string { return mode(t, file(t, d, 0o600), "..", 0o777) },
		"another user's folder":          func(t *testing.T, d string) string { p := file(t, d, 0o600); own(t, filepath.Dir(p)); return p },
		"all of it, and more than once ": func(t *testing.T, d string) string { return own(t, mode(t, file(t, d, 0o666), "..", 0o777)) },
		"what begins with a dash, with no folder before it": func(t *testing.T, d string) string {
			return filepath.Base(put(t, d+"/-R", 0o666))
		},
	} {
		t.Run(what, func(t *testing.T) {
			d := t.TempDir()
			t.Chdir(d)
			path := make(t, d)
			for range 4 {
				_, err := durable.ReadPrivate(path)
				if err == nil {
					break
				}
				refused, _ := errors.AsType[*watchword.Error](err)
				if refused == nil {
					t.Fatal(err)
				}
				_, command, found := strings.Cut(refused.Detail, "run ch")
				if !found {
					t.Fatalf("it says no command: %v", err)
				}
				command, _, _ = strings.Cut("ch"+command, ", and replace the secrets")
				if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v\n%s", command, err, out)
				}
			}
			if b, err := durable.ReadPrivate(path); err != nil || string(b) != "text" {
				t.Errorf("not mended: %q, %v", b, err)
			}
			if _, err := os.Stat(d + "/made"); err == nil {
				t.Error("the shell ran a name")
			}
		})
	}
}

func wants(t *testing.T, how string, want watchword.Code, b []byte, err error) {
	t.Helper()
	if watchword.CodeOf(err) != want || want == "" && string(b) != "text" || want != "" && b != nil {
		t.Errorf("%s: %q, %v; want code %q", how, b, err, want)
	}
}

// own changes the owner of a file or folder to another user.
func own(t *testing.T, path string) string {
	t.Helper()
	must(t, os.Chown(path, other, other))
	return path
}

// mode changes the mode of what is at path/rel, and returns path.
func mode(t *testing.T, path, rel string, m fs.FileMode) string {
	t.Helper()
	must(t, os.Chmod(filepath.Join(path, rel), m))
	return path
}

func link(t *testing.T, to, at string) string {
	t.Helper()
	must(t, os.Symlink(to, at))
	return at
}

func TestMissingTrustedFile(t *testing.T) {
	d := t.TempDir()
	for _, path := range []string{d + "/f", d + "/a/b/f", link(t, d+"/nowhere", d+"/l")} {
		if _, err := durable.ReadTrusted(path, 4); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
	must(t, os.Symlink(d+"/round", d+"/round"))
	if _, err := durable.ReadTrusted(d+"/round", 4); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("a link to itself: %v", err)
	}
	if _, err := durable.ReadTrusted(put(t, d+"/f", 0o600)+"/below", 4); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
	if _, err := durable.ReadTrusted(d+"/f", 3); watchword.CodeOf(err) != watchword.TooLarge {
		t.Errorf("a file that is too long: %v", err)
	}
}

// Another user's pipe in the place of a file is refused before it is opened: opening would wait for a writer.
func TestPipeOfAnotherOwnerIsRefused(t *testing.T) {
	needRoot(t)
	d := folder(t, t.TempDir()+"/f", 0o777|fs.ModeSticky)
	must(t, syscall.Mkfifo(d+"/pipe", 0o600))
	own(t, d+"/pipe")
	err := make(chan error, 1)
	go func() {
		_, e := durable.ReadTrusted(d+"/pipe", 4)
		err <- e
	}()
	if e := testwait.For(t, "the refusal of a pipe", err); watchword.CodeOf(e) != watchword.FileUntrusted {
		t.Errorf("got %v", e)
	}
}

// A shell's <(…) is a pipe, which has no place in a folder.
func TestOwnPipeIsTrusted(t *testing.T) {
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	_, err = w.WriteString("text")
	must(t, err)
	must(t, w.Close())
	path := fmt.Sprintf("/dev/fd/%d", r.Fd())
	if _, err := os.Stat(path); err != nil {
		t.Skipf("no %s here: %v", path, err)
	}
	b, err := durable.ReadTrusted(path, 4)
	wants(t, "a pipe", "", b, err)
}

func TestFolderIsCheckedBeforeUse(t *testing.T) {
	needRoot(t)
	for name, c := range map[string]struct {
		make            func(t *testing.T, d string) string
		want, ofPrivate watchword.Code
	}{
		"one that is not there": {func(_ *testing.T, d string) string { return d + "/new" }, "", ""},
		"two that are not":      {func(_ *testing.T, d string) string { return d + "/new/deep" }, "", ""},
		"a private one":         {func(t *testing.T, d string) string { return folder(t, d+"/f", 0o700) }, "", ""},
		"one that others enter": {func(t *testing.T, d string) string { return folder(t, d+"/f", 0o755) }, "", watchword.KeyExposed},
		"one that a group has":  {func(t *testing.T, d string) string { return folder(t, d+"/f", 0o770) }, watchword.FileUntrusted, watchword.KeyExposed},
		"one that all have":     {func(t *testing.T, d string) string { return folder(t, d+"/f", 0o777) }, watchword.FileUntrusted, watchword.KeyExposed},
		"a sticky one":          {func(t *testing.T, d string) string { return folder(t, d+"/f", 0o777|fs.ModeSticky) }, watchword.FileUntrusted, watchword.KeyExposed},
		"another user's":        {func(t *testing.T, d string) string { return own(t, folder(t, d+"/f", 0o700)) }, watchword.FileUntrusted, watchword.FileUntrusted},
		"a new one in what others write": {
			func(t *testing.T, d string) string { return folder(t, d+"/f", 0o757) + "/new" },
			watchword.FileUntrusted, watchword.FileUntrusted,
		},
		"two new ones in what others write": {
			func(t *testing.T, d string) string { return folder(t, d+"/f", 0o757) + "/new/deep" },
			watchword.FileUntrusted, watchword.FileUntrusted,
		},
		"a new one in a sticky folder":      {func(t *testing.T, d string) string { return folder(t, d+"/f", 0o777|fs.ModeSticky) + "/new" }, "", ""},
		"a new one in what a group writes":  {func(t *testing.T, d string) string { return folder(t, d+"/f", 0o775) + "/new" }, "", ""},
		"a new one in another user's":       {func(t *testing.T, d string) string { return own(t, folder(t, d+"/f", 0o755)) + "/new" }, watchword.FileUntrusted, watchword.FileUntrusted},
		"two new ones below another user's": {func(t *testing.T, d string) string { return own(t, folder(t, d+"/f", 0o755)) + "/a/b" }, watchword.FileUntrusted, watchword.FileUntrusted},
		"a file":                            {func(t *testing.T, d string) string { return put(t, d+"/f", 0o600) }, watchword.FileUntrusted, watchword.FileUntrusted},
	} {
		for private, want := range map[bool]watchword.Code{false: c.want, true: c.ofPrivate} {
			t.Run(fmt.Sprintf("%s, private %v", name, private), func(t *testing.T) {
				path := c.make(t, t.TempDir())
				_, before := os.Stat(path)
				err := durable.EnsureFolder(path, private)
				if watchword.CodeOf(err) != want {
					t.Errorf("got %v, want code %q", err, want)
				}
				info, after := os.Stat(path)
				switch {
				case want == "" && (after != nil || !info.IsDir() || before != nil && info.Mode().Perm() != 0o700):
					t.Errorf("it was not made: %v, %v", info, after)
				case want == "" && before != nil:
					if info, err := os.Stat(filepath.Join(path, "..")); strings.HasSuffix(path, "/new/deep") && (err != nil || info.Mode().Perm() != 0o700) {
						t.Errorf("the folder above was made with %v, %v", info.Mode(), err)
					}
				case want != "" && before != nil && after == nil:
					t.Error("it was made")
				}
				if above := filepath.Dir(path); want != "" && before != nil {
					if names, err := os.ReadDir(above); err == nil && len(names) > 0 {
						t.Errorf("%v were made in %s", names, above)
					}
				}
			})
		}
	}
}

func folder(t *testing.T, path string, m fs.FileMode) string {
	t.Helper()
	must(t, os.Mkdir(path, 0o700))
	must(t, os.Chmod(path, m))
	return path
}

// A process of another user than root trusts root and no third user.
func TestFilesOfRootAreTrusted(t *testing.T) {
	if dir := os.Getenv("WATCHWORD_TEST_AS_ANOTHER"); dir != "" {
		ofOwnGroup := watchword.Code("")
		if os.Getegid() != other {
			ofOwnGroup = watchword.FileUntrusted
		}
		for name, want := range map[string]watchword.Code{
			"roots": "", "own": "", "thirds": watchword.FileUntrusted,
			"own-group": ofOwnGroup, "folder/own": ofOwnGroup, "everybodys": watchword.FileUntrusted, "roots-group": watchword.FileUntrusted, "thirds-group": watchword.FileUntrusted,
		} {
			b, err := durable.ReadTrusted(filepath.Join(dir, name), 4)
			wants(t, name, want, b, err)
			if name == "thirds" && !strings.Contains(err.Error(), fmt.Sprintf("chown %d ", other)) {
				t.Errorf("%s: it says %v", name, err)
			}
		}
		for _, name := range []string{"own-group", "group-writes", "group-reads"} {
			if _, err := durable.ReadPrivate(filepath.Join(dir, name)); watchword.CodeOf(err) != watchword.KeyExposed {
				t.Errorf("a private file, %s: %v", name, err)
			}
		}
		// Root gives a secret to the process by the process's own group, which may read it alone.
		given, writable := watchword.Code(""), watchword.KeyExposed
		if os.Getegid() != other {
			given = watchword.KeyExposed
		}
		for name, want := range map[string]watchword.Code{"given": given, "given-readonly": given, "given-writable": writable, "given-all": writable} {
			_, err := durable.ReadPrivate(filepath.Join(dir, name))
			if errors.Is(err, fs.ErrPermission) && os.Getegid() != other { // the system refuses it before
				continue
			}
			if watchword.CodeOf(err) != want {
				t.Errorf("a private file of root, %s: %v, want code %q", name, err, want)
			}
		}
		return
	}
	needRoot(t)
	dir, err := os.MkdirTemp("", "believed-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755))
	put(t, dir+"/roots", 0o644)
	must(t, os.Chown(put(t, dir+"/own", 0o644), other, other))
	must(t, os.Chown(put(t, dir+"/thirds", 0o644), other+1, other+1))
	for name, c := range map[string]struct {
		mode     fs.FileMode
		uid, gid int
	}{
		"own-group": {0o664, other, other}, "everybodys": {0o666, other, other}, "roots-group": {0o664, other, 0}, "thirds-group": {0o664, other, other + 1},
		"folder/own": {0o664, other, other}, "group-writes": {0o620, other, other}, "group-reads": {0o640, other, other},
		"given": {0o640, 0, other}, "given-readonly": {0o440, 0, other}, "given-writable": {0o660, 0, other}, "given-all": {0o644, 0, other},
	} {
		path := put(t, filepath.Join(dir, name), c.mode)
		must(t, os.Chown(path, c.uid, c.gid))
	}
	must(t, os.Chown(dir+"/folder", other, other))
	must(t, os.Chmod(dir+"/folder", 0o775))
	bin, err := os.ReadFile(os.Args[0]) // the test's own folder is closed to others
	must(t, err)
	must(t, os.WriteFile(dir+"/test", bin, 0o755))
	for _, group := range []uint32{other, other + 1} {
		c := exec.Command(dir+"/test", "-test.run", "^TestFilesOfRootAreTrusted$", "-test.v")
		c.Env = append(os.Environ(), "WATCHWORD_TEST_AS_ANOTHER="+dir)
		c.Dir = "/"
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: other, Gid: group}}
		if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Errorf("%v\n%s", err, out)
		}
	}
}
