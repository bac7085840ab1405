//go:build unix

package durable

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/watchword-iot/watchword"
)

// maxLinks limits symbolic links on a path, as Linux does.
const maxLinks = 40

// checkPath resolves a path from the root as the system does, and checks each folder and link, and
// what the path leads to. last is the permission bits that the file's folder must not have; the
// folders above it are checked for other users only, not for groups. Code: file_untrusted;
// otherwise the error of the system.
func checkPath(path string, last fs.FileMode) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	at, rest, links := "/", split(abs), 0
	for {
		info, err := os.Lstat(at)
		if err != nil {
			return err
		}
		if len(rest) == 0 {
			return checkOwner(at, info)
		}
		forbidden := fs.FileMode(0o002)
		if len(rest) == 1 {
			forbidden = last
		}
		if err := checkAncestor(at, path, info, forbidden); err != nil {
			return err
		}
		next := filepath.Join(at, rest[0])
		if rest[0] == ".." { // target of a link
			at, rest = filepath.Dir(at), rest[1:]
			continue
		}
		info, err = os.Lstat(next)
		if err != nil {
			return err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			at, rest = next, rest[1:]
			continue
		}
		if err := checkOwner(next, info); err != nil {
			return err
		}
		if links++; links > maxLinks {
			return &fs.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
		}
		target, err := os.Readlink(next)
		if err != nil {
			return err
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(split(target), rest[1:]...)
	}
}

// split splits a path into its names, without empty ones and ".".
func split(path string) (names []string) {
	for name := range strings.SplitSeq(path, "/") {
		if name != "" && name != "." {
			names = append(names, name)
		}
	}
	return names
}

// checkAncestor checks a folder on the path.
func checkAncestor(dir, path string, info fs.FileInfo, forbidden fs.FileMode) error {
	if err := checkOwner(dir, info); err != nil {
		return watchword.Wrap(err, watchword.FileUntrusted, "%s is below a folder of another user, who could replace it: use another location, or: %s", path, watchword.DetailOf(err))
	}
	if mode := info.Mode(); mode.Perm()&forbidden&^ownGroup(info) != 0 && mode&fs.ModeSticky == 0 {
		return watchword.Refuse(watchword.FileUntrusted, "the folder %s can be written by others (mode %04o), who could replace %s: run chmod go-w %s", dir, mode.Perm(), path, shellWord(dir))
	}
	return nil
}

// checkEntry checks owner and mode of a trusted file or folder.
func checkEntry(path string, info fs.FileInfo, forbidden fs.FileMode) error {
	if err := checkOwner(path, info); err != nil {
		return err
	}
	mode := info.Mode().Perm()
	switch {
	case mode&forbidden == 0, forbidden == writableByOthers && mode&forbidden&^ownGroup(info) == 0:
		return nil
	case forbidden == accessibleByOthers && !info.IsDir() && mode&forbidden&^ownGroupOfRoots(info) == 0:
		return nil
	case forbidden == accessibleByOthers && info.IsDir():
		return watchword.Refuse(watchword.KeyExposed, "the folder %s can be entered by others (mode %04o); run chmod 700 %s", path, mode, shellWord(path))
	case forbidden == accessibleByOthers:
		return watchword.Refuse(watchword.KeyExposed, "%s can be read or written by others (mode %04o); run chmod 600 %s, and replace the secrets in it if others may have read it", path, mode, shellWord(path))
	}
	return watchword.Refuse(watchword.FileUntrusted, "%s can be written by others (mode %04o): check that its content is correct, and run chmod go-w %s", path, mode, shellWord(path))
}

// ownGroup returns the group permission bit to ignore where the group is the user's own, with the
// same number as the user, as useradd creates them. With umask 002, as on many distributions, that
// group can write to every file. The user root has no such group.
func ownGroup(info fs.FileInfo) fs.FileMode {
	me := os.Geteuid()
	if st, ok := info.Sys().(*syscall.Stat_t); ok && me != 0 && os.Getegid() == me && int(st.Gid) == me {
		return 0o020
	}
	return 0
}

// ownGroupOfRoots returns the group permission bit to ignore for a private file of root that the user's own group may read, and not
// write: so root gives a secret to a process of another user, such as a mounted secret of Kubernetes with fsGroup. A private file of
// the user's own has no such group.
func ownGroupOfRoots(info fs.FileInfo) fs.FileMode {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid == 0 && ownGroup(info) != 0 {
		return 0o040
	}
	return 0
}

// checkOwner refuses an owner other than the process's user and root.
func checkOwner(path string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return watchword.Refuse(watchword.FileUntrusted, "%s: its owner cannot be read", path)
	}
	me, owner := os.Geteuid(), int(st.Uid)
	switch {
	case owner == me, owner == 0:
		return nil
	case runtime.GOOS == "android" && owner == 1000: // on Android, folders above those of apps belong to the user system
		return nil
	}
	who, name := fmt.Sprintf("uid %d", owner), fmt.Sprintf("'#%d'", owner)
	if u, err := user.LookupId(strconv.Itoa(owner)); err == nil {
		who, name = fmt.Sprintf("%s (uid %d)", u.Username, owner), shellWord(u.Username)
	}
	chown := "chown"
	if info.Mode()&fs.ModeSymlink != 0 {
		chown = "chown -h" // the link itself
	}
	if me == 0 {
		// chown comes last: a service whose file is given to root cannot read it any more.
		return watchword.Refuse(watchword.FileUntrusted, "%s belongs to %s, who could change or replace it, and root runs this; run this as its owner (sudo -u %s …), or use a path of root alone; only if no process of its owner needs it, check its content and run %s root: %s", path, who, name, chown, shellWord(path))
	}
	return watchword.Refuse(watchword.FileUntrusted, "%s belongs to %s, who could change or replace it, not to uid %d that runs this; run this as its owner, or run %s %d %s as root", path, who, me, chown, me, shellWord(path))
}

// shellWord quotes a path for a shell, so that a suggested command can be pasted.
func shellWord(path string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+@:,=%", r)
	}
	if strings.IndexFunc(path, func(r rune) bool { return !plain(r) }) < 0 && !strings.HasPrefix(path, "-") {
		return path
	}
	if strings.HasPrefix(path, "-") {
		path = "./" + path // not an option
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
