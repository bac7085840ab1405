package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// tree is all processes that one program started, itself among them, also those that
// left its process group and session and whose parents have ended. They are found by
//
//   - a control group of their own (cgroup v2, Linux 5.14), where the agent may make one;
//   - else, in a dedicated process, as its descendants: it is made the parent of its
//     descendants' orphans (PR_SET_CHILD_SUBREAPER), so none is lost;
//   - else as the program's descendants, and by process group, session and the mark in
//     their environment. A process that left all of these is not found.
//
// Its methods are for one goroutine.
type tree struct {
	dedicated bool
	mark      string // the value of runMark

	cgroup string   // folder; "" without
	folder *os.File // of cgroup

	pid   int
	start uint64 // start time of the program, in kernel ticks; 0 if /proc cannot be read
	stop  chan struct{}
	swept sync.WaitGroup
}

// sweepEvery is the interval at which a dedicated process reaps orphans.
const sweepEvery = 5 * time.Second

func newTree(o runner, mark string) *tree {
	t := &tree{dedicated: o.opts.Dedicated, mark: mark}
	if !o.noCgroup {
		t.makeCgroup()
	}
	return t
}

// makeCgroup creates a group below the agent's own. If it fails, the other methods are used.
func (t *tree) makeCgroup() {
	own, err := ownCgroup()
	if err != nil {
		return
	}
	dir := filepath.Join(own, cgroupPrefix+strconv.Itoa(os.Getpid())+"-"+t.mark)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return
	}
	t.cgroup = dir
	if _, err = os.Stat(filepath.Join(dir, "cgroup.kill")); err == nil { // Linux 5.14
		t.folder, err = os.Open(dir)
	}
	if err != nil {
		t.dropCgroup()
	}
}

// cgroupPrefix begins the name of a program's control group; the number of the agent's
// process follows.
const cgroupPrefix = "watchword-"

// sweepCgroups kills the programs of agents that were killed, and removes their groups.
func sweepCgroups() {
	own, err := ownCgroup()
	if err != nil {
		return
	}
	groups, _ := filepath.Glob(filepath.Join(own, cgroupPrefix+"*")) // the pattern is valid
	for _, dir := range groups {
		name := strings.TrimPrefix(filepath.Base(dir), cgroupPrefix)
		number, _, _ := strings.Cut(name, "-")
		pid, err := strconv.Atoi(number)
		if err != nil || pid <= 0 || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			continue // the agent runs
		}
		t := &tree{cgroup: dir}
		_ = t.kill() // the group of a process that cannot be killed stays
		t.dropCgroup()
	}
}

func (t *tree) dropCgroup() {
	if t.folder != nil {
		_ = t.folder.Close() // it was only read
	}
	if t.cgroup != "" {
		_ = os.Remove(t.cgroup) // it stays if it has a process that cannot be killed
	}
	t.folder, t.cgroup = nil, ""
}

func (t *tree) attach(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if t.folder != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(t.folder.Fd())
		return
	}
	if t.dedicated {
		const prSetChildSubreaper = 36 // linux/prctl.h
		// An error means a kernel before 3.4; orphans are then found as in a process that is not dedicated.
		_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0)
	}
}

// withoutCgroup discards the control group after a start failed: the kernel or a container may forbid starting a process in
// it. It reports whether there was one.
func (t *tree) withoutCgroup() bool {
	existed := t.cgroup != ""
	t.dropCgroup()
	return existed
}

func (t *tree) started(pid int) {
	t.pid = pid
	if p, ok := readProcess(pid); ok {
		t.start = p.start
	}
	if t.cgroup != "" || !t.dedicated {
		return
	}
	t.stop = make(chan struct{})
	t.swept.Go(func() {
		tick := time.NewTicker(sweepEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				t.reap(processes())
			case <-t.stop:
				return
			}
		}
	})
}

// terminate sends SIGTERM to the program's process group; processes outside of it are only killed.
func (t *tree) terminate() { _ = syscall.Kill(-t.pid, syscall.SIGTERM) } // it may have ended

// kill kills all processes repeatedly until none is left (without a control group: until two checks find none), for
// killLimit at most.
func (t *tree) kill() error {
	if t.stop != nil {
		close(t.stop)
		t.swept.Wait()
		t.stop = nil
	}
	pause, none := time.Millisecond, 0
	for end := time.Now().Add(killTimeout); ; pause = min(2*pause, 100*time.Millisecond) {
		left, err := t.killOnce()
		if none++; err != nil || left > 0 {
			none = 0
		}
		// One check of /proc is not enough: during execve(2) a process has no environment, and a process that is created
		// while /proc is read is missed if its parent ends meanwhile.
		if none > 1 || none == 1 && t.cgroup != "" {
			return nil
		}
		if time.Now().After(end) {
			return errors.Join(err, fmt.Errorf("%d processes are left", left))
		}
		time.Sleep(pause)
	}
}

// killOnce sends SIGKILL to all processes of the program, and returns their number.
func (t *tree) killOnce() (int, error) {
	if t.pid > 0 {
		_ = syscall.Kill(-t.pid, syscall.SIGKILL) // it may have ended
	}
	if t.cgroup != "" {
		if err := os.WriteFile(filepath.Join(t.cgroup, "cgroup.kill"), []byte("1"), 0); errors.Is(err, fs.ErrNotExist) {
			return 0, nil // it was removed, so it was empty
		} else if err != nil {
			return 1, err
		}
		events, err := os.ReadFile(filepath.Join(t.cgroup, "cgroup.events"))
		if err != nil || !bytes.Contains(events, []byte("populated 0")) {
			return 1, err
		}
		return 0, nil
	}
	all := processes()
	mine := t.running(all)
	for _, p := range mine {
		p.kill()
	}
	if t.dedicated {
		t.reap(all)
	}
	return len(mine), nil
}

// running returns the processes in all that belong to the program and have not ended.
func (t *tree) running(all map[int]process) []process {
	if t.start == 0 { // the program had ended before it was examined, or there is no /proc
		return nil
	}
	self := os.Getpid()
	known := map[int]bool{}
	var is func(p process, depth int) bool
	is = func(p process, depth int) bool {
		if v, ok := known[p.pid]; ok || depth > len(all) {
			return v
		}
		known[p.pid] = false // ends a cycle
		v := p.pid == t.pid || p.group == t.pid || p.session == t.pid || t.dedicated && p.parent == self
		if parent, ok := all[p.parent]; !v && ok && p.parent != self {
			v = is(parent, depth+1)
		}
		if !v && !t.dedicated {
			v = p.marked(t.mark)
		}
		// Nothing that ran before the program is the program's.
		v = v && p.start >= t.start && p.pid != self
		known[p.pid] = v
		return v
	}
	var out []process
	for _, p := range all {
		if is(p, 0) && p.state != 'Z' && p.state != 'X' {
			out = append(out, p)
		}
	}
	return out
}

// reap collects orphans that ended: this process is their parent, and no other process waits for them. [exec.Cmd] collects
// the program itself.
func (t *tree) reap(all map[int]process) {
	for _, p := range all {
		if p.parent == os.Getpid() && p.state == 'Z' && p.pid != t.pid && p.start >= t.start && t.start > 0 {
			_, _ = syscall.Wait4(p.pid, nil, syscall.WNOHANG, nil) // it may have been collected already
		}
	}
}

func (t *tree) close() { t.dropCgroup() }

// process is one line of /proc.
type process struct {
	pid, parent, group, session int
	state                       byte
	start                       uint64 // in ticks since the start of the machine
}

// processes reads /proc; what ends meanwhile is left out. It is empty where there is none.
func processes() map[int]process {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1) // those that were read count
	out := make(map[int]process, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			if p, ok := readProcess(pid); ok {
				out[pid] = p
			}
		}
	}
	return out
}

// readProcess reads /proc/PID/stat (proc_pid_stat(5)).
func readProcess(pid int) (process, bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return process{}, false
	}
	end := bytes.LastIndexByte(b, ')') // the name before it may hold anything
	if end < 0 {
		return process{}, false
	}
	f := strings.Fields(string(b[end+1:])) // from the third field on
	if len(f) < 20 {
		return process{}, false
	}
	p := process{pid: pid, state: f[0][0]}
	var errs [4]error
	p.parent, errs[0] = strconv.Atoi(f[1])
	p.group, errs[1] = strconv.Atoi(f[2])
	p.session, errs[2] = strconv.Atoi(f[3])
	p.start, errs[3] = strconv.ParseUint(f[19], 10, 64)
	return p, errors.Join(errs[:]...) == nil
}

// marked reports whether a process has the mark of a run in its environment.
func (p process) marked(mark string) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(p.pid) + "/environ")
	return err == nil && bytes.Contains(append([]byte{0}, b...), []byte("\x00"+runMark+"="+mark+"\x00"))
}

// kill sends SIGKILL to this process, and not to a later one with the same number: the handle ([os.FindProcess],
// pidfd_open) is of one process, and the start time identifies it.
func (p process) kill() {
	h, err := os.FindProcess(p.pid)
	if err != nil {
		return // it has ended
	}
	defer func() { _ = h.Release() }() // a handle that is not used again
	if now, ok := readProcess(p.pid); ok && now.start == p.start {
		_ = h.Kill() // it may have ended; a further check finds it otherwise
	}
}

// ownCgroup is the folder of this process's control group of version 2.
var ownCgroup = sync.OnceValues(readOwnCgroup)

func readOwnCgroup() (string, error) {
	of, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	return cgroupFolder(string(of), string(mounts))
}

// cgroupFolder reads cgroups(7) and proc_pid_mountinfo(5).
func cgroupFolder(of, mounts string) (string, error) {
	group := ""
	for line := range strings.Lines(of) {
		if g, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			group = g
		}
	}
	if group == "" {
		return "", errors.New("no control group of version 2")
	}
	for line := range strings.Lines(mounts) {
		before, after, ok := strings.Cut(line, " - ")
		f := strings.Fields(before)
		if !ok || !strings.HasPrefix(after, "cgroup2 ") || len(f) < 5 {
			continue
		}
		root := strings.TrimSuffix(f[3], "/")
		if rest, inside := strings.CutPrefix(group, root); inside && (rest == "" || rest[0] == '/') {
			return filepath.Join(f[4], rest), nil
		}
	}
	return "", errors.New("no control group of version 2 is mounted")
}
