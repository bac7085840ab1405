package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/watchword-iot/watchword/internal/testwait"
)

// managed is a process of this program below a service manager, which is the test.
type managed struct {
	t      *testing.T
	cmd    *exec.Cmd
	states chan string // datagrams, except WATCHDOG=1
	alive  chan struct{}
	ended  chan error
	errs   bytes.Buffer // standard error, once ended
}

// startManaged runs this program with a notify socket and a watchdog of 2 s.
func startManaged(t *testing.T, dir string, args ...string) *managed {
	t.Helper()
	return startManagedTo(t, nil, dir, args...)
}

// startManagedTo is startManaged with a file for standard error.
func startManagedTo(t *testing.T, stderr *os.File, dir string, args ...string) *managed {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "watchword") // testscript's main looks at the name
	if err := os.Symlink(self, link); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, fmt.Sprintf("notify-%s", args[0]))
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	m := &managed{t: t, cmd: exec.Command(link, args...), states: make(chan string, 100), alive: make(chan struct{}, 1), ended: make(chan error, 1)}
	m.cmd.Env = append(os.Environ(), "HOME="+dir, "NOTIFY_SOCKET="+socket, "WATCHDOG_USEC=2000000",
		"WATCHWORD_SERVER_HTTPS=localhost:0", "WATCHWORD_SERVER_MQTTS=localhost:0", "WATCHWORD_METRICS_LISTEN=127.0.0.1:0")
	if m.cmd.Stderr = &m.errs; stderr != nil {
		m.cmd.Stderr = stderr
	}
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			if s := string(b[:n]); s == "WATCHDOG=1" {
				select {
				case m.alive <- struct{}{}:
				default:
				}
			} else {
				m.states <- s
			}
		}
	}()
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { m.ended <- m.cmd.Wait() }()
	t.Cleanup(func() {
		if m.cmd.ProcessState == nil {
			_ = m.cmd.Process.Kill() // ended already, or to be
			<-m.ended
		}
		_ = c.Close()
		if t.Failed() {
			t.Logf("%v: %s", args, m.errs.String())
		}
	})
	return m
}

// wants wants that the next state begins so, and returns the rest.
func (m *managed) wants(state string) string {
	m.t.Helper()
	got := testwait.For(m.t, "the state "+state, m.states)
	rest, ok := strings.CutPrefix(got, state)
	if !ok {
		m.t.Fatalf("the state is %q, want %q", got, state)
	}
	return rest
}

func (m *managed) signal(s syscall.Signal) {
	m.t.Helper()
	if err := m.cmd.Process.Signal(s); err != nil {
		m.t.Fatal(err)
	}
}

// hangup sends SIGHUP and returns the status after the reload.
func (m *managed) hangup() string {
	m.t.Helper()
	m.signal(syscall.SIGHUP)
	if at := m.wants("RELOADING=1\nMONOTONIC_USEC="); at == "" {
		m.t.Error("the reload has no time")
	}
	return m.wants("READY=1\nSTATUS=")
}

// ends waits for the end and returns the process's state.
func (m *managed) ends() *os.ProcessState {
	m.t.Helper()
	var exit *exec.ExitError
	if err := testwait.For(m.t, "the end of the process", m.ended); err != nil && !errors.As(err, &exit) {
		m.t.Fatal(err)
	}
	return m.cmd.ProcessState
}

// certificate writes a self-signed certificate and its key, both with one modification time, so that the server does not find them by
// itself.
func certificate(t *testing.T, cert, key string, serial int64) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	write(t, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	write(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))
}

// write writes a file whose modification time is always the same.
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	then := time.Unix(1_700_000_000, 0)
	if err := os.Chtimes(path, then, then); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// serverAddress returns the HTTPS address of the server of a data folder.
func serverAddress(t *testing.T, data string) string {
	t.Helper()
	var place struct{ HTTPS string }
	if err := json.Unmarshal([]byte(read(t, filepath.Join(data, "server.json"))), &place); err != nil {
		t.Fatal(err)
	}
	return place.HTTPS
}

// SIGHUP never ends a server. It has the certificate, the log file and the configuration read again; what is not valid keeps what was
// in use, and an error says so. The service manager sees each state.
func TestSIGHUPReloadsAServer(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	config := func(level, log, more string) {
		t.Helper()
		write(t, in("config.toml"), fmt.Sprintf("[server]\ntls_cert = %q\ntls_key = %q\n[log]\nlevel = %q\nfile = %q\n%s", in("cert.pem"), in("key.pem"), level, in(log), more))
	}
	certificate(t, in("cert.pem"), in("key.pem"), 1)
	config("info", "log", "")
	m := startManaged(t, dir, "serve", "--data", in("data"), "--config", in("config.toml"))
	m.wants("READY=1\nSTATUS=serves https://localhost:")
	serial := func(want int64) {
		t.Helper()
		c, err := tls.Dial("tcp", serverAddress(t, in("data")), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // which certificate it is, is the question
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got := c.ConnectionState().PeerCertificates[0].SerialNumber.Int64(); got != want {
			t.Errorf("the certificate is number %d, want %d", got, want)
		}
	}
	serial(1)
	testwait.For(t, "the signal to the watchdog", m.alive)
	testwait.For(t, "the second signal to the watchdog", m.alive)

	// The log was renamed, the certificate renewed.
	if err := os.Rename(in("log"), in("log.1")); err != nil {
		t.Fatal(err)
	}
	certificate(t, in("cert.pem"), in("key.pem"), 2)
	if status := m.hangup(); strings.Contains(status, "not reloaded") {
		t.Errorf("the status is %q", status)
	}
	serial(2)
	if got := read(t, in("log")); !strings.Contains(got, "msg=reloaded") {
		t.Errorf("the new log has %q", got)
	}
	rotated := read(t, in("log.1"))

	// A configuration that is not valid, a certificate that is none: each says so, and the other parts are reloaded.
	config("loud", "other", "")
	certificate(t, in("cert.pem"), in("key.pem"), 3)
	if status := m.hangup(); !strings.Contains(status, "not reloaded") || !strings.Contains(status, "log.level") {
		t.Errorf("the status is %q", status)
	}
	serial(3)
	config("warn", "other", "[limits]\ntoken_rate = 7\n")
	write(t, in("cert.pem"), "no certificate")
	if status := m.hangup(); !strings.Contains(status, "not reloaded") || !strings.Contains(status, "tls_cert") {
		t.Errorf("the status is %q", status)
	}
	serial(3)
	if got := read(t, in("log")); !strings.Contains(got, "level=ERROR") || !strings.Contains(got, "log.level") {
		t.Errorf("the log does not say what was not valid: %q", got)
	}
	other := read(t, in("other"))
	if !strings.Contains(other, "take effect at the next start\" keys=limits.token_rate") || !strings.Contains(other, "level=ERROR") {
		t.Errorf("the other log has %q", other)
	}
	certificate(t, in("cert.pem"), in("key.pem"), 4)
	if status := m.hangup(); strings.Contains(status, "not reloaded") {
		t.Errorf("the status is %q", status)
	}
	serial(4)
	if got := read(t, in("other")); strings.Contains(got, "level=INFO") || strings.Count(got, "limits.token_rate") != 2 {
		t.Errorf("the level is not warn, or the key that needs a start is not named again: %q", got)
	}
	if got := read(t, in("log.1")); got != rotated {
		t.Errorf("the renamed log was written: %q", got)
	}

	m.signal(syscall.SIGTERM)
	m.wants("STOPPING=1")
	if s := m.ends(); s.ExitCode() != 0 {
		t.Errorf("ended with %v", s)
	}
}

// The first SIGINT drains; the second ends the process at once, which waits for a request. SIGHUP does neither.
func TestASecondSIGINTEndsAServer(t *testing.T) {
	dir := t.TempDir()
	m := startManaged(t, dir, "serve", "--data", filepath.Join(dir, "data"))
	m.wants("READY=1")
	c, err := tls.Dial("tcp", serverAddress(t, filepath.Join(dir, "data")), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // nothing is said over it
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "POST /oauth/token HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 10\r\n\r\na"); err != nil {
		t.Fatal(err)
	}
	m.signal(syscall.SIGINT)
	m.wants("STOPPING=1")
	m.signal(syscall.SIGHUP) // ends nothing, now either
	m.signal(syscall.SIGINT)
	s := m.ends()
	if ws, ok := s.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() || ws.Signal() != syscall.SIGINT {
		t.Errorf("ended with %v", s)
	}
}

// A log whose reader ended does not end a server.
func TestAServerOutlivesTheReaderOfItsLog(t *testing.T) {
	dir := t.TempDir()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	m := startManagedTo(t, w, dir, "serve", "--data", filepath.Join(dir, "data"))
	drained := make(chan struct{})
	go func() { // until READY, so that the server does not wait for the pipe
		_, _ = io.Copy(io.Discard, r) // closed below
		close(drained)
	}()
	m.wants("READY=1")
	if err := errors.Join(w.Close(), r.Close()); err != nil {
		t.Fatal(err)
	}
	testwait.For(t, "the end of the reader", drained)
	m.hangup() // each writes a line
	m.hangup()
	m.signal(syscall.SIGTERM)
	m.wants("STOPPING=1")
	if s := m.ends(); s.ExitCode() != 0 {
		t.Errorf("ended with %v", s)
	}
}

// SIGHUP has an agent read its functions again. A file that is not valid keeps the functions before.
func TestSIGHUPReloadsAnAgent(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	s := startManaged(t, dir, "serve", "--data", in("data"))
	s.wants("READY=1")
	run := func(args ...string) string {
		t.Helper()
		c := exec.CommandContext(t.Context(), in("watchword"), args...)
		c.Env = append(os.Environ(), "HOME="+dir, "WATCHWORD_DATA="+in("data"))
		out, err := c.Output()
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		return string(out)
	}
	write(t, in("link"), run("device", "create", "lamp-1"))
	run("agent", "enroll", in("link"), "--dir", in("lamp"))
	functions := func(name string) {
		write(t, in("functions.toml"), fmt.Sprintf("[functions.%q]\nrun = [\"/bin/sh\", \"-c\", \"echo '\\\"%s\\\"'\"]\n", name, name))
	}
	functions("one")
	m := startManaged(t, dir, "agent", "run", "--dir", in("lamp"), "--functions", in("functions.toml"), "--log-file", in("log"))
	m.wants("READY=1\nSTATUS=runs lamp-1 of https://localhost:")
	testwait.For(t, "the signal to the watchdog", m.alive)
	does := func(name string) {
		t.Helper()
		for wait := testwait.Within(); !strings.Contains(run("device", "show", "lamp-1", "--json"), `"`+name+`"`); {
			wait.Check(t, "the announcement of "+name)
		}
		if out := run("command", "send", "lamp-1", name, "--wait", "30s", "--json"); !strings.Contains(out, `"done"`) {
			t.Errorf("%s: %s", name, out)
		}
	}
	does("one")
	functions("two")
	if err := os.Rename(in("log"), in("log.1")); err != nil {
		t.Fatal(err)
	}
	m.hangup()
	does("two")
	write(t, in("functions.toml"), "[functions.three]\nrun = [\"/no/such/program\"]\n")
	if status := m.hangup(); !strings.Contains(status, "not reloaded") || !strings.Contains(status, "three") {
		t.Errorf("the status is %q", status)
	}
	does("two")
	if got := read(t, in("log")); !strings.Contains(got, "msg=reloaded") || !strings.Contains(got, "level=ERROR") {
		t.Errorf("the log has %q", got)
	}
	m.signal(syscall.SIGTERM)
	m.wants("STOPPING=1")
	if s := m.ends(); s.ExitCode() != 0 {
		t.Errorf("ended with %v", s)
	}
}
