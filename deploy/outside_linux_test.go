package deploy_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// outside finds a program that others wrote. Under make test it must be there.
func outside(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
		return path
	case os.Getenv("WATCHWORD_OUTSIDE") == "required":
		t.Fatalf("%s is missing", name)
	}
	t.Skipf("%s is not installed; make test installs it", name)
	return ""
}

// tool runs a program and returns its output, of both streams.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := tryTool(t, name, args...)
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return out
}

func tryTool(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c := exec.CommandContext(t.Context(), name, args...)
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.String(), err
}

var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "watchword-deploy-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "watchword")
	c := exec.Command("go", "build", "-o", path, "../cmd/watchword")
	c.Env = append(os.Environ(), "CGO_ENABLED=0") // as make deb and the Containerfile do: it runs without a C library
	c.Stderr = os.Stderr
	return path, c.Run()
})

// binary returns the program, built for this machine.
func binary(t *testing.T) string {
	t.Helper()
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := built(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path)) // a temporary folder
	}
	os.Exit(code)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

// needRoot skips a test that changes its root folder and user.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it runs the program in a root folder of its own as another user")
	}
}
