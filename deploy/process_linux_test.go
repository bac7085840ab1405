package deploy_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// installed is the program as it runs in a folder that is the root of its file system, as an unprivileged user.
type installed struct {
	root     string
	uid, gid int
	env      []string
	wrap     []string // program with arguments that makes the mounts and runs the rest of its command line; nil: none is needed
}

// in returns the path of a file of the root folder.
func (i installed) in(path string) string { return filepath.Join(i.root, path) }

func (i installed) command(t *testing.T, args ...string) *exec.Cmd {
	if i.wrap != nil {
		args = append(append(append([]string{}, i.wrap...), "chroot", fmt.Sprintf("--userspec=%d:%d", i.uid, i.gid), "--groups=", i.root), args...)
		c := exec.CommandContext(t.Context(), args[0], args[1:]...)
		c.Env = append([]string{"PATH=" + os.Getenv("PATH")}, i.env...)
		return c
	}
	c := exec.CommandContext(t.Context(), args[0], args[1:]...)
	c.Dir, c.Env = "/", append([]string{"PATH=/usr/bin:/bin"}, i.env...)
	c.SysProcAttr = &syscall.SysProcAttr{Chroot: i.root, Credential: &syscall.Credential{Uid: uint32(i.uid), Gid: uint32(i.gid)}}
	return c
}

// run runs a program to its end and returns its standard output.
func (i installed) run(t *testing.T, args ...string) string {
	t.Helper()
	c := i.command(t, args...)
	var errs bytes.Buffer
	c.Stderr = &errs
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, errs.String())
	}
	return string(out)
}

// serve starts a server, waits until it reports READY=1 as a service of Type=notify, calls while, and has it stop. It wants exit
// status 0.
func (i installed) serve(t *testing.T, while func(), args ...string) {
	t.Helper()
	socket := fmt.Sprintf("@watchword-deploy-%d-%d", os.Getpid(), time.Now().UnixNano()) // abstract: it is in no root folder
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	must(t, err)
	defer l.Close()
	c := i.command(t, args...)
	c.Env = append(c.Env, "NOTIFY_SOCKET="+socket)
	var errs bytes.Buffer
	c.Stderr = &errs
	must(t, c.Start())
	ended := make(chan error, 1)
	go func() {
		ended <- c.Wait()
		_ = l.SetReadDeadline(time.Now()) // nothing more is sent
	}()
	must(t, l.SetReadDeadline(time.Now().Add(60*time.Second)))
	b := make([]byte, 4096)
	n, err := l.Read(b)
	if err != nil || !strings.HasPrefix(string(b[:n]), "READY=1") {
		_ = c.Process.Kill() // it may have ended
		<-ended
		t.Fatalf("%v: %q, %v instead of READY=1\n%s", args, b[:n], err, errs.String())
	}
	while()
	must(t, c.Process.Signal(syscall.SIGTERM))
	select {
	case err = <-ended:
	case <-time.After(60 * time.Second):
		err = errors.Join(errors.New("it did not end"), c.Process.Kill())
	}
	if err != nil {
		t.Errorf("%v: %v\n%s", args, err, errs.String())
	}
}

// user returns the numbers of a user of a root folder.
func user(t *testing.T, root, name string) (uid, gid int) {
	t.Helper()
	for line := range strings.Lines(read(t, filepath.Join(root, "etc/passwd"))) {
		f := strings.Split(line, ":")
		if f[0] != name {
			continue
		}
		uid, err := strconv.Atoi(f[2])
		must(t, err)
		gid, err := strconv.Atoi(f[3])
		must(t, err)
		return uid, gid
	}
	t.Fatalf("there is no user %s", name)
	return 0, 0
}

// wantOwner wants that a file or folder has an owner and a mode.
func wantOwner(t *testing.T, path string, uid, gid int, mode os.FileMode) {
	t.Helper()
	info, err := os.Lstat(path)
	must(t, err)
	if st := info.Sys().(*syscall.Stat_t); int(st.Uid) != uid || int(st.Gid) != gid || info.Mode().Perm() != mode {
		t.Errorf("%s belongs to %d:%d with mode %o, want %d:%d and %o", path, st.Uid, st.Gid, info.Mode().Perm(), uid, gid, mode)
	}
}
