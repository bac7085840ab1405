// Package release tests that what the repository has can be released: a proxy serves it as a version, the go command
// installs the program from it and builds programs with its SDK packages.
package release

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/zip"
)

const (
	product = "github.com/watchword-iot/watchword"
	root    = "../.."
)

// modules are the folders of the modules that are released, each after those that it requires.
var modules = []string{".", "server", "cmd"}

// inGraph is how many modules "go list -m all" may print in a program that uses an SDK package, the program and the
// product among them; docs/decisions/0025-modules.md says which and why. Where paho.golang is compiled the graph has what its
// tests require beside, whose go.mod files need not be in the module cache: 0 counts none.
var inGraph = map[string]int{"sdk/verify": 5, "sdk/admin": 5, "sdk/device": 0, "sdk/agent": 0, "sdk/sim": 0}

// maxZip is how many bytes the zips of the modules may have together.
const maxZip = 4 << 20

// A release is served from a folder as a module proxy serves it: the program is installed from it, and programs that use
// the SDK packages are built with it. All other modules are read from the module cache, and nothing from the network.
func TestAReleaseInstalls(t *testing.T) {
	p := newProxy(t)
	bin := t.TempDir()
	p.run(t, bin, "install", product+"/cmd/watchword@latest")
	out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "watchword"), "version").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte(p.version)) {
		t.Errorf("watchword version: %v\n%s", err, out)
	}
	for sdk, most := range inGraph {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "go.mod"), "module example.com/program\n\ngo 1.26.0\n\nrequire "+product+" "+p.version+"\n")
		write(t, filepath.Join(dir, "main.go"), "package main\n\nimport _ \""+product+"/"+sdk+"\"\n\nfunc main() {}\n")
		p.run(t, dir, "build", "-o", filepath.Join(dir, "program"), ".")
		if most == 0 {
			continue
		}
		lines := strings.Split(strings.TrimSpace(p.run(t, dir, "list", "-m", "all")), "\n")
		if len(lines) > most {
			t.Errorf("a program with %s lists %d modules, want %d at most:\n%s", sdk, len(lines), most, strings.Join(lines, "\n"))
		}
	}
}

// proxy is a folder that the go command takes for a module proxy. It has one version of each module of the product, made of
// the files as they are.
type proxy struct {
	version string
	dir     string
	cache   string // GOMODCACHE
}

func newProxy(t *testing.T) *proxy {
	t.Helper()
	p := &proxy{dir: t.TempDir(), version: fmt.Sprintf("v0.0.0-test.%d.%d", time.Now().UnixNano(), os.Getpid())}
	p.cache = strings.TrimSpace(p.run(t, ".", "env", "GOMODCACHE"))
	size := 0
	for _, m := range modules {
		size += p.add(t, m)
	}
	if size > maxZip {
		t.Errorf("the zips have %d bytes, want %d at most: what is built does not belong into them", size, maxZip)
	}
	return p
}

// add adds the module of a folder, and returns the size of its zip. As in a release, it requires the others in this version.
func (p *proxy) add(t *testing.T, folder string) (size int) {
	t.Helper()
	name := path.Join(product, folder)
	at := filepath.Join(p.dir, filepath.FromSlash(name), "@v")
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, folder, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	mod, err := modfile.Parse("go.mod", text, nil)
	if err != nil {
		t.Fatal(err)
	}
	if mod.Module.Mod.Path != name {
		t.Fatalf("the module in %s is %s", folder, mod.Module.Mod.Path)
	}
	for _, m := range modules {
		other := path.Join(product, m)
		for _, r := range mod.Require {
			if r.Mod.Path == other {
				if err := mod.AddRequire(other, p.version); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if text, err = mod.Format(); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(at, "list"), p.version+"\n")
	write(t, filepath.Join(at, p.version+".info"), fmt.Sprintf(`{"Version":%q,"Time":"2026-11-28T00:00:00Z"}`, p.version))
	write(t, filepath.Join(at, p.version+".mod"), string(text))
	var b bytes.Buffer
	if err := zip.Create(&b, module.Version{Path: name, Version: p.version}, released(t, filepath.Join(root, folder), filepath.Join(at, p.version+".mod"))); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(at, p.version+".zip"), b.String())
	t.Cleanup(func() { // what the go command took over into its cache
		for _, path := range []string{name + "@" + p.version, filepath.Join("cache", "download", name, "@v", p.version+".*")} {
			found, err := filepath.Glob(filepath.Join(p.cache, filepath.FromSlash(path)))
			if err != nil || len(found) == 0 {
				t.Errorf("%s is not in the module cache: %v", path, err)
			}
			for _, f := range found {
				if err := os.RemoveAll(f); err != nil {
					t.Error(err)
				}
			}
		}
	})
	return b.Len()
}

// released returns the files of the module in a folder, with another file as its go.mod: all but hidden ones, what is
// built or installed beside the sources, and the modules below it.
func released(t *testing.T, folder, mod string) (files []zip.File) {
	t.Helper()
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			_, nested := os.Stat(filepath.Join(path, "go.mod"))
			if path != folder && (nested == nil || strings.HasPrefix(d.Name(), ".") || path == filepath.Join(root, "bin") || d.Name() == "node_modules") {
				return filepath.SkipDir
			}
			return nil
		}
		if d.Type().IsRegular() && !strings.HasPrefix(d.Name(), ".") {
			f := file{path: path, name: strings.TrimPrefix(filepath.ToSlash(path), filepath.ToSlash(folder)+"/")}
			if f.name == "go.mod" {
				f.path = mod
			}
			files = append(files, f)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// file is a file of a module.
type file struct {
	path string // where it is read
	name string // its path in the module
}

func (f file) Path() string { return f.name }

func (f file) Lstat() (os.FileInfo, error) { return os.Lstat(f.path) }

func (f file) Open() (io.ReadCloser, error) { return os.Open(f.path) }

// run runs the go command in a folder, with the proxy and the module cache alone, and returns what it prints.
func (p *proxy) run(t *testing.T, dir string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "go", args...)
	c.Dir = dir
	c.Env = append(
		os.Environ(), "GOPROXY=file://"+filepath.ToSlash(p.dir)+",file://"+filepath.ToSlash(filepath.Join(p.cache, "cache", "download"))+",off",
		"GOSUMDB=off", "GOFLAGS=-mod=mod -modcacherw -buildvcs=false", "GOWORK=off", "GOBIN="+dir,
	)
	var errs bytes.Buffer
	c.Stderr = &errs
	out, err := c.Output()
	if err != nil {
		t.Fatalf("go %s: %v\n%s%s", strings.Join(args, " "), err, out, errs.String())
	}
	return string(out)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
