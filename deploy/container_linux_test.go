package deploy_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// image is what the steps of a Containerfile make.
type image struct {
	root    string
	uid     int
	gid     int
	env     []string
	volume  string
	command []string // ENTRYPOINT, then CMD
}

// buildImage runs the steps of a Containerfile. A stage is a folder. RUN runs on this machine, in the repository: paths below /out are
// those of the stage. An instruction or option that it does not know fails the test.
func buildImage(t *testing.T, path string) image {
	t.Helper()
	var out image
	stages := map[string]string{}
	stage, base := "", ""
	var entry, cmd []string
	list := func(text string) (words []string) {
		t.Helper()
		must(t, json.Unmarshal([]byte(text), &words))
		return words
	}
	for line := range strings.Lines(read(t, path)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		instruction, rest, _ := strings.Cut(line, " ")
		words := strings.Fields(rest)
		switch instruction {
		case "FROM":
			stage, base = t.TempDir(), words[0]
			must(t, os.Chmod(stage, 0o755))
			if len(words) == 3 && words[1] == "AS" {
				stages[words[2]] = stage
			}
			out = image{root: stage}
		case "WORKDIR":
			if rest != "/src" {
				t.Fatalf("not known: %s", line)
			}
		case "RUN":
			if !strings.HasPrefix(base, "docker.io/library/golang:") {
				t.Fatalf("%s has no shell: %s", base, line)
			}
			c := exec.CommandContext(t.Context(), "sh", "-ec", strings.ReplaceAll(rest, "/out/", stage+"/out/"))
			c.Dir = ".."
			if b, err := c.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", line, err, b)
			}
		case "COPY":
			if rest == ". ." && base != "scratch" { // the repository, in which RUN runs
				continue
			}
			from, owner := "", "0:0"
			for strings.HasPrefix(words[0], "--") {
				switch option, value, _ := strings.Cut(words[0], "="); option {
				case "--from":
					from = stages[value]
				case "--chown":
					owner = value
				default:
					t.Fatalf("not known: %s", line)
				}
				words = words[1:]
			}
			if from == "" || len(words) != 2 || !strings.HasSuffix(words[0], "/") {
				t.Fatalf("not known: %s", line)
			}
			copyTree(t, filepath.Join(from, words[0]), filepath.Join(stage, words[1]), owner)
		case "USER":
			out.uid, out.gid = owners(t, rest)
		case "ENV":
			out.env = append(out.env, rest)
		case "VOLUME":
			out.volume = rest
		case "ENTRYPOINT":
			entry = list(rest)
		case "CMD":
			cmd = list(rest)
		case "EXPOSE", "STOPSIGNAL":
		default:
			t.Fatalf("not known: %s", line)
		}
	}
	out.command = append(entry, cmd...)
	return out
}

// owners returns the numbers of "UID:GID".
func owners(t *testing.T, text string) (uid, gid int) {
	t.Helper()
	if _, err := fmt.Sscanf(text, "%d:%d", &uid, &gid); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return uid, gid
}

// copyTree copies the content of a folder, with modes, as COPY does.
func copyTree(t *testing.T, from, to, owner string) {
	t.Helper()
	uid, gid := owners(t, owner)
	must(t, filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == from {
			return err
		}
		rel, err := filepath.Rel(from, path)
		must(t, err)
		target := filepath.Join(to, rel)
		info, err := d.Info()
		must(t, err)
		if d.IsDir() {
			must(t, os.MkdirAll(target, 0o755))
		} else {
			must(t, os.WriteFile(target, []byte(read(t, path)), 0o600))
		}
		must(t, os.Chown(target, uid, gid))
		return os.Chmod(target, info.Mode())
	}))
}

// The steps of the Containerfile make a root folder in which the server runs as another user than root, with a read-only root file system
// and volumes as container engines and Kubernetes make them.
func TestContainerRuns(t *testing.T) {
	needRoot(t)
	if out, err := tryTool(t, "unshare", "-m", "true"); err != nil {
		t.Skipf("no mounts can be made here: %s", out)
	}
	im := buildImage(t, "container/Containerfile")
	if im.uid == 0 || im.uid != im.gid {
		t.Fatalf("the user is %d:%d", im.uid, im.gid)
	}
	wantOwner(t, filepath.Join(im.root, im.volume), im.uid, im.gid, 0o700)
	must(t, os.WriteFile(filepath.Join(im.root, "etc/hosts"), []byte("127.0.0.1 localhost\n"), 0o644)) // container engines make it
	env := append([]string{"WATCHWORD_METRICS_LISTEN=127.0.0.1:0"}, im.env...)
	for i := range env { // ports that are free
		env[i] = strings.NewReplacer("=:8443", "=:0", "=:8883", "=:0").Replace(env[i])
	}
	start := func(volume string, more ...string) (*exec.Cmd, installed) {
		script := `mount --bind "$1" "$1" && mount --bind "$2" "$1$3" && mount -t tmpfs -o mode=1777 tmpfs "$1/tmp" && mount -o remount,ro,bind "$1" && shift 3 && exec "$@"`
		i := installed{root: im.root, uid: im.uid, gid: im.gid, env: append(append([]string{}, env...), more...)}
		i.wrap = []string{"unshare", "-m", "sh", "-ec", script, "sh", im.root, volume, im.volume}
		return i.command(t, im.command...), i
	}
	const url = "WATCHWORD_SERVER_PUBLIC_URL=https://localhost:8443"
	for _, c := range []struct {
		name     string
		uid, gid int
		mode     fs.FileMode
		files    fs.FileMode // added to the files after the first start; 0: there is no second start
		refused  string
	}{
		{"an empty volume of an engine", im.uid, im.gid, 0o700, 0, ""},
		{"a volume that others can enter", im.uid, im.gid, 0o755, 0, ""},
		{"a volume with fsGroup", 0, im.gid, 0o2775, 0, ""},
		{"a folder of the host that belongs to root", 0, 0, 0o755, 0, "permission denied"},
		{"a volume that all can write to", 0, 0, 0o777, 0, "chmod go-w"},
		{"a volume of another group", 0, im.gid + 1, 0o2777, 0, "chmod go-w"},
		{"a volume whose files the group may read", 0, im.gid, 0o2775, 0o060, "can be read or written by others"},
	} {
		t.Run(c.name, func(t *testing.T) {
			volume := t.TempDir()
			must(t, os.Chown(volume, c.uid, c.gid))
			must(t, os.Chmod(volume, c.mode&0o777))
			must(t, exec.Command("chmod", strconv.FormatUint(uint64(c.mode), 8), volume).Run()) // with setgid
			if c.refused == "" || c.files != 0 {
				_, i := start(volume, url)
				i.serve(t, func() {}, im.command...)
				wantOwner(t, filepath.Join(volume, "operator.jwk"), im.uid, im.gid, 0o600)
			}
			if c.files != 0 {
				must(t, os.Chmod(filepath.Join(volume, "operator.jwk"), 0o600|c.files))
			}
			if c.refused != "" {
				cmd, _ := start(volume, url)
				if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), c.refused) {
					t.Errorf("%v, without %q: %s", err, c.refused, out)
				}
			}
		})
	}
	// The first start fixes the address: without one that clients can use it is refused.
	cmd, _ := start(t.TempDir())
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "server.https must be a loopback address unless") {
		t.Errorf("without a name: %v: %s", err, out)
	}
}

// The manifest of Kubernetes has the user, the ports and the volume of the Containerfile.
func TestManifestFitsTheContainer(t *testing.T) {
	manifest, file := read(t, "kubernetes/watchword.yaml"), read(t, "container/Containerfile")
	find := func(text, pattern string) string {
		t.Helper()
		m := regexp.MustCompile(`(?m)` + pattern).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("no %s", pattern)
		}
		return m[1]
	}
	uid, gid := owners(t, find(file, `^USER (\S+)$`))
	for key, want := range map[string]string{
		`^ +runAsUser: (\S+)$`: strconv.Itoa(uid), `^ +runAsGroup: (\S+)$`: strconv.Itoa(gid), `^ +fsGroup: (\S+)$`: strconv.Itoa(gid),
		`name: data, mountPath: (\S+)}$`:        find(file, `^VOLUME (\S+)$`),
		`{name: https, containerPort: (\d+)}$`:  find(file, `^ENV WATCHWORD_SERVER_HTTPS=:(\d+)$`),
		`{name: mqtts, containerPort: (\d+)}$`:  find(file, `^ENV WATCHWORD_SERVER_MQTTS=:(\d+)$`),
		`^ +readOnlyRootFilesystem: (\S+)$`:     "true",
		`^ +runAsNonRoot: (\S+)$`:               "true",
		`^ +allowPrivilegeEscalation: (\S+)$`:   "false",
		`^ +automountServiceAccountToken: (.+)`: "false",
		`^ +fsGroupChangePolicy: (\S+)$`:        "OnRootMismatch",
	} {
		if got := find(manifest, key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
}
