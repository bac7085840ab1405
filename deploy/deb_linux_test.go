package deploy_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// pack packs a binary, without compression that takes long, and returns the package.
func pack(t *testing.T, arch, binary, version, native string) string {
	t.Helper()
	outside(t, "dpkg-deb")
	out := t.TempDir()
	c := exec.CommandContext(t.Context(), "../tools/deb.sh", arch, binary, version, out)
	c.Env = append(os.Environ(), "DEB_COMPRESS=-Zgzip -z1", "COMPLETIONS_FROM="+native)
	if b, err := c.CombinedOutput(); err != nil {
		t.Fatalf("deb.sh: %v\n%s", err, b)
	}
	return filepath.Join(out, "watchword_"+version+"_"+arch+".deb")
}

// small writes a file for a binary whose content does not matter.
func small(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	must(t, os.WriteFile(path, []byte("program"), 0o700))
	return path
}

func TestDebianPackages(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64", "armhf"} {
		file := pack(t, arch, small(t), "1.2.3~rc.1", binary(t))
		info := tool(t, "dpkg-deb", "--info", file)
		for _, want := range []string{" Package: watchword\n", " Version: 1.2.3~rc.1\n", " Architecture: " + arch + "\n", " Depends: systemd | adduser\n"} {
			if !strings.Contains(info, want) {
				t.Errorf("%s: %q is not in %s", arch, want, info)
			}
		}
		got := map[string]string{}
		for line := range strings.Lines(tool(t, "dpkg-deb", "--contents", file)) {
			f := strings.Fields(line)
			if f[1] != "root/root" {
				t.Errorf("%s: not of root: %s", arch, line)
			}
			if !strings.HasSuffix(f[5], "/") {
				got[f[5]] = f[0]
			} else if f[0] != "drwxr-xr-x" {
				t.Errorf("%s: %s", arch, line)
			}
		}
		want := map[string]string{"./usr/bin/watchword": "-rwxr-xr-x"}
		for _, name := range []string{
			"etc/logrotate.d/watchword", "etc/watchword/functions.toml", "etc/watchword/watchword.toml", "usr/lib/systemd/system/watchword.service",
			"usr/lib/systemd/system/watchword-agent.service", "usr/lib/sysusers.d/watchword.conf", "usr/lib/tmpfiles.d/watchword.conf",
			"usr/share/bash-completion/completions/watchword", "usr/share/zsh/vendor-completions/_watchword", "usr/share/fish/vendor_completions.d/watchword.fish",
			"usr/share/doc/watchword/copyright", "usr/share/doc/watchword/changelog.gz",
		} {
			want["./"+name] = "-rw-r--r--"
		}
		for name, mode := range want {
			if got[name] != mode {
				t.Errorf("%s: the mode of %s is %q, want %q", arch, name, got[name], mode)
			}
			delete(got, name)
		}
		if len(got) > 0 {
			t.Errorf("%s has more: %v", arch, got)
		}
		var conffiles []string
		for line := range strings.Lines(tool(t, "dpkg-deb", "--info", file, "conffiles")) {
			conffiles = append(conffiles, strings.TrimSpace(line))
		}
		for name := range want {
			if etc := strings.TrimPrefix(name, "."); strings.HasPrefix(etc, "/etc/") && !slices.Contains(conffiles, etc) {
				t.Errorf("%s would overwrite %s, which its user edits", arch, etc)
			}
		}
	}
}

// The same input gives the same bytes, wherever and whenever.
func TestDebianPackagesAreReproducible(t *testing.T) {
	one, two := small(t), small(t)
	must(t, os.Chmod(two, 0o755))
	a, b := pack(t, "arm64", one, "1", binary(t)), pack(t, "arm64", two, "1", binary(t))
	if !bytes.Equal([]byte(read(t, a)), []byte(read(t, b))) {
		t.Error("two packages of one binary differ")
	}
}

// No script of the package starts or enables a service: the first start fixes the address of the server.
func TestDebianPackageStartsNothing(t *testing.T) {
	allowed := map[string][]string{
		"postinst": {"systemctl daemon-reload", "systemctl try-restart watchword.service watchword-agent.service"},
		"prerm":    {"systemctl --no-reload disable --now watchword.service watchword-agent.service"},
		"postrm":   {"systemctl daemon-reload"},
	}
	command := regexp.MustCompile(`(systemctl|deb-systemd-\w+|service|invoke-rc.d) [a-z0-9 .-]+`)
	for script, want := range allowed {
		var got []string
		for line := range strings.Lines(read(t, filepath.Join("deb", script))) {
			if line = strings.TrimSpace(line); !strings.HasPrefix(line, "echo ") && !strings.HasPrefix(line, "#") {
				got = append(got, command.FindAllString(line, -1)...)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s runs %q", script, got)
		}
	}
}

// The package is installed into a folder of its own, in which the program then runs as its user; upgraded, and purged.
func TestDebianPackageInstalls(t *testing.T) {
	needRoot(t)
	for _, name := range []string{"dpkg", "systemd-sysusers", "systemd-tmpfiles"} {
		outside(t, name)
	}
	root := t.TempDir()
	must(t, os.Chmod(root, 0o755))
	must(t, os.Chmod(filepath.Dir(root), 0o755)) // the folders above a trusted file
	for _, dir := range []string{"var/lib/dpkg/info", "var/lib/dpkg/updates", "etc"} {
		must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	for _, file := range []string{"var/lib/dpkg/status", "var/lib/dpkg/available"} {
		must(t, os.WriteFile(filepath.Join(root, file), nil, 0o644))
	}
	must(t, os.WriteFile(filepath.Join(root, "etc/hosts"), []byte("127.0.0.1 localhost\n"), 0o644))
	dpkg := func(args ...string) string {
		t.Helper()
		return tool(t, "dpkg", append([]string{"--root=" + root, "--force-script-chrootless", "--force-depends", "--log=/dev/null"}, args...)...)
	}
	arch := map[string]string{"arm": "armhf"}[runtime.GOARCH]
	if arch == "" {
		arch = runtime.GOARCH
	}
	dpkg("--force-architecture", "--install", pack(t, arch, binary(t), "1", binary(t)))

	uid, gid := user(t, root, "watchword")
	i := installed{root: root, uid: uid, gid: gid, env: []string{"HOME=/var/lib/watchword", "WATCHWORD_DATA=/var/lib/watchword", "WATCHWORD_METRICS_LISTEN=127.0.0.1:0"}}
	agentUID, agentGID := user(t, root, "watchword-agent")
	wantOwner(t, i.in("var/lib/watchword"), uid, gid, 0o700)
	wantOwner(t, i.in("var/log/watchword"), uid, gid, 0o750)
	wantOwner(t, i.in("var/lib/watchword-agent"), agentUID, agentGID, 0o700)

	// As an operator would: edit the configuration, start what the unit starts, create a device and enroll it.
	edited := "[server]\nhttps = \"localhost:0\"\nmqtts = \"localhost:0\"\n[log]\nfile = \"/var/log/watchword/watchword.log\"\n"
	must(t, os.WriteFile(i.in("etc/watchword/watchword.toml"), []byte(edited), 0o644))
	i.serve(t, func() {
		link := i.run(t, "/usr/bin/watchword", "device", "create", "lamp-1")
		must(t, os.WriteFile(i.in("link"), []byte(link), 0o644))
		a := i
		a.uid, a.gid, a.env = agentUID, agentGID, []string{"HOME=/var/lib/watchword-agent"}
		if out := a.run(t, "/usr/bin/watchword", "agent", "enroll", "/link", "--dir", "/var/lib/watchword-agent"); !strings.Contains(out, "lamp-1") {
			t.Errorf("enrolled: %s", out)
		}
		wantOwner(t, i.in("var/lib/watchword-agent/device.json"), agentUID, agentGID, 0o600) // the condition of the agent's unit
		a.serve(t, func() {}, unitCommand(t, i.in("usr/lib/systemd/system/watchword-agent.service"))...)
	}, unitCommand(t, i.in("usr/lib/systemd/system/watchword.service"))...)
	wantOwner(t, i.in("var/lib/watchword/keys/kek"), uid, gid, 0o600)
	wantOwner(t, i.in("var/log/watchword/watchword.log"), uid, gid, 0o640)

	dpkg("--force-architecture", "--install", pack(t, arch, binary(t), "2", binary(t)))
	if got := read(t, i.in("etc/watchword/watchword.toml")); got != edited {
		t.Errorf("the upgrade changed the configuration: %s", got)
	}
	dpkg("--purge", "watchword")
	for _, gone := range []string{"etc/watchword", "usr/bin/watchword", "var/log/watchword", "etc/logrotate.d/watchword"} {
		if _, err := os.Lstat(i.in(gone)); err == nil {
			t.Errorf("%s is still there after a purge", gone)
		}
	}
	for _, kept := range []string{"var/lib/watchword/keys/kek", "var/lib/watchword-agent/device.json"} {
		if _, err := os.Lstat(i.in(kept)); err != nil {
			t.Errorf("a purge removed %s: %v", kept, err)
		}
	}
}

// unitCommand returns the command line of a unit.
func unitCommand(t *testing.T, unit string) []string {
	t.Helper()
	for line := range strings.Lines(read(t, unit)) {
		if command, ok := strings.CutPrefix(line, "ExecStart="); ok {
			return strings.Fields(command)
		}
	}
	t.Fatalf("%s starts nothing", unit)
	return nil
}
