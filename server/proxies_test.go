package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testport"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
)

// proxied is a server behind a proxy program, by a file of deploy/ with other ports and names.
type proxied struct {
	*testing.T
	info         server.Info
	owner        *admin.Client
	https, mqtts string // the proxy's addresses
}

// outsideProgram returns the path of a program that make test installs.
func outsideProgram(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range []string{"", "/usr/sbin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path
		}
	}
	if os.Getenv("WATCHWORD_OUTSIDE") == "required" {
		t.Fatalf("%s is missing", name)
	}
	t.Skipf("%s is not installed; make test installs it", name)
	return ""
}

func startProxied(t *testing.T, program, file string) *proxied {
	t.Helper()
	path := outsideProgram(t, program)
	dir := t.TempDir()
	p := &proxied{T: t, https: "127.0.0.1:" + testport.Reserve(t), mqtts: "127.0.0.1:" + testport.Reserve(t)}
	c := config(t, filepath.Join(dir, "data"))
	c.Server.HTTPS, c.Server.MQTTS = "127.0.0.1:"+testport.Reserve(t), "127.0.0.1:"+testport.Reserve(t)
	c.Server.PublicURL, c.Server.PublicMQTTS = "https://localhost:"+portOf(p.https), "localhost:"+portOf(p.mqtts)
	text, err := os.ReadFile(filepath.Join("..", "deploy", file))
	check(t, err)
	key := func(name, value string) bool { // that the file's comment tells people to set
		return regexp.MustCompile(`(?m)^#\s+` + name + `\s+= ` + regexp.QuoteMeta(value) + `(\s|$)`).Match(text)
	}
	if key("proxy_protocol", `["127.0.0.2"]`) {
		c.Server.ProxyProtocol = []string{"127.0.0.2"}
	}
	if key("trusted_proxies", `["127.0.0.2"]`) {
		c.Server.TrustedProxies = []string{"127.0.0.2"}
	}
	c.Server.ProxyCertificate = key("proxy_certificate", "true")
	p.info = running(t, c)
	o, err := admin.LocalOptions(c.Data)
	check(t, err)
	// On the server's machine the CLI uses the server's own address and certificate, from another address than the proxy's.
	p.owner, err = admin.New(o)
	check(t, err)

	cert, certKey := writeCertificate(t, dir, publicCertificate(t, "localhost"))
	ca, err := os.ReadFile(filepath.Join(c.Data, "tls", "ca.pem"))
	check(t, err)
	var both []byte
	for _, f := range []string{cert, certKey} {
		b, err := os.ReadFile(f)
		check(t, err)
		both = append(both, b...)
	}
	for name, b := range map[string][]byte{"watchword-ca.pem": ca, "hub.pem": both} {
		check(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	s := string(text)
	for _, r := range [][2]string{
		{`(?m)^(\s+listen\s+)443\b`, "${1}" + p.https},
		{`(?m)^(\s+listen\s+)8883\b`, "${1}" + p.mqtts},
		{`(bind\s+):443\b`, "${1}" + p.https},
		{`(bind\s+):8883\b`, "${1}" + p.mqtts},
		{`127\.0\.0\.1:8443`, p.info.HTTPS},
		{`127\.0\.0\.1:9883`, p.info.MQTTS},
		{`/etc/haproxy/hub\.example\.pem`, dir + "/hub.pem"},
		{`/etc/(nginx/hub\.example|haproxy)/watchword-ca\.pem`, dir + "/watchword-ca.pem"},
		{`/etc/nginx/hub\.example/fullchain\.pem`, cert},
		{`/etc/nginx/hub\.example/key\.pem`, certKey},
		{`hub\.example`, "localhost"},
		{`maxconn \d+`, "maxconn 100"}, // as many as the files that a test may open
		{`(?m)^http \{$`, "http {\n    client_body_temp_path " + dir + "/body;\n    proxy_temp_path " + dir + "/proxy;\n    fastcgi_temp_path " + dir + "/f;\n    uwsgi_temp_path " + dir + "/u;\n    scgi_temp_path " + dir + "/s;"},
	} {
		s = regexp.MustCompile(r[0]).ReplaceAllString(s, r[1])
	}
	conf := filepath.Join(dir, "proxy.conf")
	check(t, os.WriteFile(conf, []byte(s), 0o600))
	args := []string{"-db", "-f", conf}
	if program == "nginx" {
		global := "daemon off; error_log stderr; pid " + dir + "/pid;"
		if os.Getuid() == 0 {
			global += " user root;" // the test's folder belongs to root alone
		}
		args = []string{"-c", conf, "-e", "stderr", "-g", global}
	}
	cmd := exec.Command(path, args...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	check(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		_ = testwait.For(t, "the end of "+program, ended)
		if t.Failed() {
			t.Logf("%s says:\n%s", program, output.String())
		}
	})
	for _, a := range []string{p.https, p.mqtts} {
		for wait := testwait.Within(); ; time.Sleep(10 * time.Millisecond) {
			nc, err := net.Dial("tcp", a)
			if err == nil {
				check(t, nc.Close())
				break
			}
			wait.Check(t, program+" at "+a)
			select {
			case err := <-ended:
				ended <- err
				t.Fatalf("%s ended: %v", program, err)
			default:
			}
		}
	}
	return p
}

// dialFrom connects from a loopback address of the client's own, by which the server knows it, to the proxy.
func (p *proxied) dialFrom(client string, mqtt bool) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		to := p.https
		if address == "localhost:"+portOf(p.mqtts) {
			if to = p.mqtts; !mqtt {
				return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
			}
		}
		return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}}).DialContext(ctx, network, to)
	}
}

// device enrolls a device and runs it, over MQTT or over HTTPS alone, with a proof of its key in each connection and request or not.
func (p *proxied) device(id watchword.SubjectID, client string, mqtt, proof bool) *device.Device {
	p.Helper()
	made, err := p.owner.CreateDevice(p.Context(), id, nil, 0)
	check(p.T, err)
	connects := make(chan string, 8)
	d, err := device.OpenWith(filepath.Join(p.TempDir(), string(id)), device.Options{
		Log: quiet.Log, Dial: p.dialFrom(client, mqtt), ProvePossession: proof, Connected: func(over string) { connects <- over },
	})
	check(p.T, err)
	p.Cleanup(func() { check(p.T, d.Close()) })
	check(p.T, d.Enroll(p.Context(), made.Enrollment.Link))
	if d.Server() != p.info.URL || d.MQTT() != "localhost:"+portOf(p.mqtts) {
		p.Errorf("%s is at %s and %s", id, d.Server(), d.MQTT())
	}
	d.Handle("lamp.set", func(context.Context, *device.Command) (any, error) { return 1, nil })
	ctx, cancel := context.WithCancel(p.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	p.Cleanup(func() {
		cancel()
		check(p.T, testwait.For(p.T, "the end of the device", ended))
	})
	want := map[bool]string{true: "mqtt", false: "https"}[mqtt]
	if over := testwait.For(p.T, "the connection of "+string(id), connects); over != want {
		p.Errorf("%s is connected over %s", id, over)
	}
	return d
}

// command has a device act.
func (p *proxied) command(id watchword.SubjectID) {
	p.Helper()
	c, err := p.owner.Send(p.Context(), admin.CommandOrder{Device: id, Function: "lamp.set", Args: json.RawMessage(`{}`)})
	check(p.T, err)
	for wait := testwait.Within(); !c.State.Final(); wait.Check(p.T, "the receipt of "+string(id)) {
		c, err = p.owner.Command(p.Context(), c.ID, 10*time.Second)
		check(p.T, err)
	}
	if c.State != watchword.Done {
		p.Errorf("the command of %s is %s", id, c.State)
	}
}

// remotes checks the addresses of a subject's sessions, without ports.
func (p *proxied) remotes(id watchword.SubjectID, want ...string) {
	p.Helper()
	live, _, err := p.owner.AllSessions(p.Context(), id)
	check(p.T, err)
	got := []string{}
	for _, s := range live {
		got = append(got, s.Transport+" "+strings.TrimSuffix(regexp.MustCompile(`:\d+$`).ReplaceAllString(s.Remote, ""), ":"))
	}
	equal(p.T, "sessions of "+string(id), slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want)))
}

// webSocket connects an MQTT client over WebSocket from an address, with headers that name another client.
func (p *proxied) webSocket(d *device.Device, name, from, to string) *paho.Client {
	p.Helper()
	token, err := d.NewToken(p.Context())
	check(p.T, err)
	hc := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{ServerName: "localhost", InsecureSkipVerify: true}, // the device has verified it
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext(ctx, network, to)
		},
	}}
	ws, _, err := websocket.Dial(p.Context(), "wss://localhost:"+portOf(p.https)+"/mqtt", &websocket.DialOptions{
		HTTPClient: hc, Subprotocols: []string{"mqtt"}, HTTPHeader: http.Header{"X-Forwarded-For": {"198.51.100.1"}, "Forwarded": {"for=198.51.100.1"}},
	})
	check(p.T, err)
	c := paho.NewClient(paho.ClientConfig{Conn: websocket.NetConn(p.Context(), ws, websocket.MessageBinary)})
	_, err = c.Connect(p.Context(), &paho.Connect{ClientID: string(d.ID()) + "/" + name, KeepAlive: 30, Username: "jwt", UsernameFlag: true, Password: []byte(token), PasswordFlag: true})
	check(p.T, err)
	p.Cleanup(func() { _ = c.Disconnect(&paho.Disconnect{}) }) // the proxy may have gone before
	return c
}

// Behind nginx and HAProxy, with the configurations of deploy/: TLS passes through, or ends at the proxy with a public certificate.
// Devices enroll, receive commands over MQTT and over HTTPS with a proof of each request, and MQTT over WebSocket works. The server
// knows each client by its own address, whatever headers the client sends.
func TestProxies(t *testing.T) {
	for _, tc := range []struct{ program, file string }{
		{"nginx", "nginx/pass-through.conf"},
		{"nginx", "nginx/terminate.conf"},
		{"haproxy", "haproxy/pass-through.cfg"},
		{"haproxy", "haproxy/terminate.cfg"},
	} {
		t.Run(tc.file, func(t *testing.T) {
			t.Parallel()
			p := startProxied(t, tc.program, tc.file)
			lamp := p.device("lamp-1", "127.0.1.2", true, false)
			p.command("lamp-1")
			p.remotes("lamp-1", "mqtt 127.0.1.2")
			p.webSocket(lamp, "proxy", "127.0.1.3", p.https)
			p.webSocket(lamp, "direct", "127.0.1.4", p.info.HTTPS)
			p.remotes("lamp-1", "mqtt 127.0.1.2", "mqtt 127.0.1.3", "mqtt 127.0.1.4")
			p.device("lamp-2", "127.0.1.5", false, true)
			p.command("lamp-2")
			p.remotes("lamp-2", "poll 127.0.1.5")
			p.wrongCodes("127.0.1.6")
			p.device("lamp-3", "127.0.1.6", true, true)
			p.command("lamp-3")
		})
	}
}

// wrongCodes sends enrollments with unknown codes through the proxy until the address must wait.
func (p *proxied) wrongCodes(from string) {
	p.Helper()
	made, err := p.owner.CreateDevice(p.Context(), "guessed", nil, 0)
	check(p.T, err)
	d, err := device.OpenWith(filepath.Join(p.TempDir(), "guessing"), device.Options{Log: quiet.Log, Dial: p.dialFrom(from, true)})
	check(p.T, err)
	defer func() { check(p.T, d.Close()) }()
	link, err := url.Parse(made.Enrollment.Link)
	check(p.T, err)
	var codes []watchword.Code
	for range 8 {
		form, err := url.ParseQuery(link.Fragment)
		check(p.T, err)
		form.Set("code", watchword.NewNonce())
		link.Fragment = form.Encode()
		codes = append(codes, watchword.CodeOf(d.Enroll(p.Context(), link.String())))
	}
	if codes[0] != watchword.CodeInvalid || codes[7] != watchword.RateLimited {
		p.Errorf("enrollments with unknown codes end with %q", codes)
	}
}
