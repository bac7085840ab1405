package agent

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/watchword-iot/watchword/internal/testwait"
)

func TestTheFolderOfAControlGroup(t *testing.T) {
	const mounts = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - tmpfs tmpfs rw\n" +
		"31 30 0:27 ROOT /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw\n"
	for _, tc := range []struct{ name, of, root, want string }{
		{"a service", "12:cpu:/a\n0::/system.slice/watchword.service\n", "/", "/sys/fs/cgroup/unified/system.slice/watchword.service"},
		{"the root", "0::/\n", "/", "/sys/fs/cgroup/unified"},
		{"a container", "0::/docker/1/agent\n", "/docker/1", "/sys/fs/cgroup/unified/agent"},
		{"outside of what is mounted", "0::/docker/12\n", "/docker/1", ""},
		{"version 1 alone", "12:cpu:/a\n", "/", ""},
	} {
		got, err := cgroupFolder(tc.of, strings.Replace(mounts, "ROOT", tc.root, 1))
		if got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%s: %q %v", tc.name, got, err)
		}
	}
}

// The programs of an agent that was killed are ended by the next one; those of an agent
// that runs are not.
func TestProgramsOfADeadAgentAreEnded(t *testing.T) {
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	own, err := ownCgroup()
	if err != nil {
		t.Skip("this machine has no control groups of version 2: ", err)
	}
	ends := map[int]chan error{}
	for _, agent := range []int{dead.Process.Pid, os.Getpid()} {
		dir := filepath.Join(own, cgroupPrefix+strconv.Itoa(agent)+"-test")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Skip("no control group can be made here: ", err)
		}
		folder, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer folder.Close()
		p := exec.Command("sleep", "1000")
		p.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(folder.Fd())}
		if err := p.Start(); err != nil {
			_ = os.Remove(dir)
			t.Skip("no process can be started in a control group here: ", err)
		}
		end := make(chan error, 1)
		go func() { end <- p.Wait() }()
		ends[agent] = end
		t.Cleanup(func() {
			tr := &tree{cgroup: dir}
			_ = tr.kill() // of a group that is gone
			tr.dropCgroup()
		})
	}
	sweepCgroups()
	if err := testwait.For(t, "the end of the dead agent's program", ends[dead.Process.Pid]); err == nil {
		t.Error("it ended by itself")
	}
	if _, err := os.Stat(filepath.Join(own, cgroupPrefix+strconv.Itoa(dead.Process.Pid)+"-test")); err == nil {
		t.Error("its group is left")
	}
	select {
	case err := <-ends[os.Getpid()]:
		t.Errorf("the program of an agent that runs was ended: %v", err)
	default:
	}
	events, err := os.ReadFile(filepath.Join(own, cgroupPrefix+strconv.Itoa(os.Getpid())+"-test", "cgroup.events"))
	if err != nil || !strings.Contains(string(events), "populated 1") {
		t.Errorf("%s %v", events, err)
	}
}
