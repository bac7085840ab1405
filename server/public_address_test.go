package server_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
)

// addressedServer runs a server whose clients reach it under any name: dial connects each to its listener of HTTPS or MQTT.
func addressedServer(t *testing.T, c server.Config, o server.Options) (info server.Info, owner *admin.Client, dial func(ctx context.Context, network, address string) (net.Conn, error)) {
	t.Helper()
	check(t, c.Check())
	s, err := server.New(t.Context(), c, o)
	check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		check(t, testwait.For(t, "the end of the server", ended))
	})
	testwait.For(t, "the server", s.Ready())
	info = s.Info()
	raw, err := os.ReadFile(filepath.Join(c.Data, "operator.jwk"))
	check(t, err)
	k, err := jose.ParsePrivateJWK([]byte(strings.TrimSpace(string(raw))), jose.ForSigning)
	check(t, err)
	ca, err := os.ReadFile(info.CAFile)
	check(t, err)
	owner, err = admin.New(admin.Options{URL: info.URL, Dial: info.HTTPS, Issuer: info.Issuer, CA: ca, Subject: server.FirstOperator, Key: k, Now: o.Now})
	check(t, err)
	return info, owner, func(ctx context.Context, network, address string) (net.Conn, error) {
		to := info.HTTPS
		if strings.HasSuffix(address, ":8883") || address == info.MQTTS || strings.HasSuffix(address, ":"+portOf(info.MQTTS)) {
			to = info.MQTTS
		}
		return (&net.Dialer{}).DialContext(ctx, network, to)
	}
}

func portOf(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

// enrollAndConnect enrolls a device by a link and returns how it is connected.
func enrollAndConnect(t *testing.T, owner *admin.Client, dial func(context.Context, string, string) (net.Conn, error)) (d *device.Device, over string) {
	t.Helper()
	made, err := owner.CreateDevice(t.Context(), "lamp-1", nil, 0)
	check(t, err)
	connects := make(chan string, 8)
	d, err = device.OpenWith(filepath.Join(t.TempDir(), "lamp-1"), device.Options{
		Log: quiet.Log, Dial: dial, ProvePossession: true,
		Connected: func(over string) { connects <- over },
	})
	check(t, err)
	t.Cleanup(func() { check(t, d.Close()) })
	check(t, d.Enroll(t.Context(), made.Enrollment.Link))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	over = testwait.For(t, "the connection of the device", connects)
	cancel()
	check(t, testwait.For(t, "the end of the device", ended))
	return d, over
}

// Each spelling of an address gives one form of it, by which a device enrolls and connects, with its proofs and its TLS checks.
func TestSpellingsOfAddresses(t *testing.T) {
	for _, tc := range []struct {
		public, mqtts string
		names         []string
		url, mqtt     string // mqtt: without its port, unless mqtts is set
	}{
		{public: "https://hub.example", url: "https://hub.example", mqtt: "hub.example"},
		{public: "HTTPS://Hub.Example:443/", url: "https://hub.example", mqtt: "hub.example"},
		{public: "https://hub.example.:8443//", url: "https://hub.example:8443", mqtt: "hub.example"},
		{public: "https://hub.local:08443", url: "https://hub.local:8443", mqtt: "hub.local"},
		{public: "https://Hub_1", url: "https://hub_1", mqtt: "hub_1"},
		{public: "https://[2001:DB8:0:0::1]:8443", url: "https://[2001:db8::1]:8443", mqtt: "2001:db8::1"},
		{public: "https://[2001:DB8::1]/", url: "https://[2001:db8::1]", mqtt: "2001:db8::1"},
		{public: "https://[::ffff:192.0.2.1]", url: "https://192.0.2.1", mqtt: "192.0.2.1"},
		{public: "https://169.254.7.7:8443", url: "https://169.254.7.7:8443", mqtt: "169.254.7.7"},
		{public: "https://hub.example", mqtts: "MQTT.Example.:8883", url: "https://hub.example", mqtt: "mqtt.example:8883"},
		{names: []string{"HUB.example.", "hub.example", "10.0.0.1"}, url: "https://hub.example:*", mqtt: "hub.example"},
		{names: []string{"[2001:DB8::1]"}, url: "https://[2001:db8::1]:*", mqtt: "2001:db8::1"},
		{names: []string{"a.example"}, public: "https://B.example", url: "https://b.example", mqtt: "b.example"},
	} {
		t.Run(strings.Join(append(tc.names, tc.public, tc.mqtts), " "), func(t *testing.T) {
			t.Parallel()
			c := config(t, filepath.Join(t.TempDir(), "data"))
			c.Server.PublicURL, c.Server.PublicMQTTS, c.Server.Names = tc.public, tc.mqtts, tc.names
			info, owner, dial := addressedServer(t, c, quiet)
			want := strings.Replace(tc.url, "*", portOf(info.HTTPS), 1)
			if info.URL != want || info.Issuer != want {
				t.Errorf("the URL is %s, the issuer %s, want %s", info.URL, info.Issuer, want)
			}
			d, over := enrollAndConnect(t, owner, dial)
			mqtt := tc.mqtt
			if tc.mqtts == "" {
				mqtt = net.JoinHostPort(tc.mqtt, portOf(info.MQTTS))
			}
			if over != "mqtt" || d.Server() != want || d.MQTT() != mqtt {
				t.Errorf("the device is at %s and %s over %s, want %s and %s", d.Server(), d.MQTT(), over, want, mqtt)
			}
		})
	}
}

// What no client could use is refused before the start, and the error says what was found and what was expected.
func TestAddressesThatAreRefused(t *testing.T) {
	for _, tc := range []struct {
		key  string
		edit func(*server.ServerConfig)
		says []string
	}{
		{"server.public_url", publicURL("http://hub.example"), []string{"http://hub.example", "https://"}},
		{"server.public_url", publicURL("hub.example"), []string{`"hub.example"`, "https://HOST"}},
		{"server.public_url", publicURL("https://"), []string{"1 to 253 bytes"}},
		{"server.public_url", publicURL("https://hub.example/watchword"), []string{`"/watchword"`, "without path"}},
		{"server.public_url", publicURL("https://hub.example?x=1"), []string{`"?x=1"`}},
		{"server.public_url", publicURL("https://me:secret@hub.example"), []string{"without a user"}},
		{"server.public_url", publicURL("https://hub.example:0"), []string{"1 to 65535", `"0"`}},
		{"server.public_url", publicURL("https://hub.example:65536"), []string{"1 to 65535"}},
		{"server.public_url", publicURL("https://hub.example:"), []string{"1 to 65535"}},
		{"server.public_url", publicURL("https://hub example"), []string{`"hub example"`}},
		{"server.public_url", publicURL("https://hub..example"), []string{`"hub..example"`}},
		{"server.public_url", publicURL("https://-hub.example"), []string{`"-hub.example"`}},
		{"server.public_url", publicURL("https://bücher.example"), []string{"xn--"}},
		{"server.public_url", publicURL("https://10.0.0"), []string{"not an IPv4 address"}},
		{"server.public_url", publicURL("https://10.0.0.256"), []string{"not an IPv4 address"}},
		{"server.public_url", publicURL("https://2001:db8::1"), []string{"brackets"}},
		{"server.public_url", publicURL("https://[hub.example]"), []string{"not an IPv6 address"}},
		{"server.public_url", publicURL("https://[2001:db8::1]8443"), []string{"not a port"}},
		{"server.public_url", publicURL("https://[fe80::1%25eth0]:8443"), []string{"%eth0", "one machine"}},
		{"server.public_url", publicURL("https://[fe80::1%eth0]"), []string{"%eth0", "one machine"}},
		{"server.public_url", publicURL("https://[fe80::1]"), []string{"link-local", "fe80::1"}},
		{"server.public_url", publicURL("https://0.0.0.0:8443"), []string{"can connect to", "0.0.0.0"}},
		{"server.public_url", publicURL("https://[::]"), []string{"can connect to"}},
		{"server.public_url", publicURL("https://224.0.0.1"), []string{"can connect to"}},
		{"server.names", names(""), []string{"1 to 253 bytes"}},
		{"server.names", names("hub.example", "https://hub.example"), []string{"without scheme"}},
		{"server.names", names("hub.example:8443"), []string{"without scheme, port"}},
		{"server.names", names("*.example"), []string{"*"}},
		{"server.names", names("fe80::1%eth0"), []string{"%eth0"}},
		{"server.names", names("0.0.0.0"), []string{"can connect to"}},
		{"server.public_mqtts", mqtts("hub.example"), []string{"no port"}},
		{"server.public_mqtts", mqtts("mqtts://hub.example:8883"), []string{"mqtts"}},
		{"server.public_mqtts", mqtts("[fe80::1%eth0]:8883"), []string{"%eth0"}},
		{"server.public_mqtts", func(s *server.ServerConfig) { s.PublicMQTTS, s.MQTTS = "hub.example:8883", "" }, []string{"server.mqtts"}},
	} {
		c := config(t, t.TempDir())
		tc.edit(&c.Server)
		err := c.Check()
		text := ""
		if err != nil {
			text = err.Error()
		}
		if watchword.CodeOf(err) != watchword.ConfigInvalid || !strings.Contains(text, tc.key) || strings.Contains(text, "secret") && len(tc.says) == 0 {
			t.Errorf("%+v: %v", c.Server, err)
		}
		for _, s := range tc.says {
			if !strings.Contains(text, s) {
				t.Errorf("%q is not in the error: %v", s, err)
			}
		}
	}
}

func publicURL(u string) func(*server.ServerConfig) {
	return func(s *server.ServerConfig) { s.PublicURL = u }
}

func names(n ...string) func(*server.ServerConfig) {
	return func(s *server.ServerConfig) { s.Names = n }
}

func mqtts(a string) func(*server.ServerConfig) {
	return func(s *server.ServerConfig) { s.PublicMQTTS = a }
}

// A server may listen beyond loopback by its public URL alone: its certificate is for that name.
func TestPublicURLAlone(t *testing.T) {
	c := config(t, t.TempDir())
	c.Server.HTTPS, c.Server.MQTTS = "0.0.0.0:8443", "0.0.0.0:8883"
	if err := c.Check(); watchword.CodeOf(err) != watchword.ConfigInvalid {
		t.Errorf("without any name: %v", err)
	}
	c.Server.PublicURL = "https://hub.example:8443"
	check(t, c.Check())
}

// The issuer of a folder of an earlier build stays as it was written, and any spelling of it in the configuration is the same.
func TestIssuerOfAnEarlierSpelling(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	c := config(t, dir)
	c.Server.PublicURL = "https://hub.example"
	once(t, c)
	file := filepath.Join(dir, "watchword.db")
	db := openDatabase(t, file)
	_, err := db.ExecContext(t.Context(), `UPDATE instance SET issuer = 'https://Hub.Example:443'; DELETE FROM audit_checkpoints; DELETE FROM bundles`) // which name the issuer
	check(t, err)
	check(t, db.Close())
	check(t, os.Remove(filepath.Join(dir, "log.checkpoint")))
	for _, public := range []string{"https://Hub.Example:443", "https://hub.example", "https://hub.example."} {
		c.Server.PublicURL = public
		if info := once(t, c); info.Issuer != "https://Hub.Example:443" || info.URL != info.Issuer {
			t.Errorf("with %s: %+v", public, info)
		}
	}
	c.Server.PublicURL = "https://other.example"
	if _, err := server.New(t.Context(), c, quiet); watchword.CodeOf(err) != watchword.ConfigInvalid || !strings.Contains(err.Error(), "https://Hub.Example:443") {
		t.Errorf("another host: %v", err)
	}
}

// Tenants have host names and a name that clients can use, each their own.
func TestTenantsThatAreRefused(t *testing.T) {
	for _, tc := range []struct {
		tenants map[watchword.TenantID][]string
		says    string
	}{
		{map[watchword.TenantID][]string{"default": nil}, "default"},
		{map[watchword.TenantID][]string{"a/b": nil}, "a/b"},
		{map[watchword.TenantID][]string{"other": {"https://x"}}, "https://x"},
		{map[watchword.TenantID][]string{"other": {"Hub.example."}}, "hub.example"},
		{map[watchword.TenantID][]string{"other": {"x.example"}, "third": {"X.Example"}}, "x.example"},
	} {
		c := config(t, t.TempDir())
		c.Server.Names = []string{"hub.example"}
		o := quiet
		o.Tenants = tc.tenants
		if _, err := server.New(t.Context(), c, o); watchword.CodeOf(err) != watchword.ConfigInvalid || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%v: %v", tc.tenants, err)
		}
	}
}
