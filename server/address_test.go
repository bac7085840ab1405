package server_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/testport"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/token"
)

const (
	oldAddress = "https://old.example:8443"
	newAddress = "https://new.example:9443"
)

// movingServer is a server behind two names, of which each may lead to it or not, under a clock that the test sets.
type movingServer struct {
	*testing.T
	config server.Config
	o      server.Options
	ahead  *atomic.Int64 // of the clock, in nanoseconds
	server *server.Server
	info   server.Info
	key    *jose.PrivateKey
	stop   func()
	dead   map[string]*atomic.Bool // by host name
	dials  map[string]*atomic.Int64
	other  atomic.Pointer[string] // where new.example leads in place of the server; nil: to the server
}

func newMovingServer(t *testing.T, edit func(*server.Config, *server.Options)) *movingServer {
	t.Helper()
	m := &movingServer{T: t, ahead: &atomic.Int64{}, dead: map[string]*atomic.Bool{}, dials: map[string]*atomic.Int64{}}
	for _, h := range []string{"old.example", "new.example"} {
		m.dead[h], m.dials[h] = &atomic.Bool{}, &atomic.Int64{}
	}
	m.config = config(t, filepath.Join(t.TempDir(), "data"))
	m.config.Server.PublicURL = oldAddress
	m.config.Server.MQTTS = "localhost:" + testport.Reserve(t)
	m.o = quiet
	m.o.Now = m.now
	if edit != nil {
		edit(&m.config, &m.o)
	}
	m.start()
	raw, err := os.ReadFile(filepath.Join(m.config.Data, "operator.jwk"))
	check(t, err)
	m.key, err = jose.ParsePrivateJWK([]byte(strings.TrimSpace(string(raw))), jose.ForSigning)
	check(t, err)
	return m
}

func (m *movingServer) now() time.Time { return time.Now().Add(time.Duration(m.ahead.Load())) }

func (m *movingServer) start() {
	m.Helper()
	s, err := server.New(m.Context(), m.config, m.o)
	check(m.T, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	testwait.For(m.T, "the server", s.Ready())
	m.server, m.info = s, s.Info()
	m.stop = func() {
		if cancel(); ended != nil {
			check(m.T, testwait.For(m.T, "the end of the server", ended))
			ended = nil
		}
	}
	m.Cleanup(m.stop)
}

// dial leads both names to the server, unless they are dead.
func (m *movingServer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if m.dead[host] == nil {
		return nil, errors.New("no such host: " + address)
	}
	m.dials[host].Add(1)
	if m.dead[host].Load() {
		return nil, errors.New("nothing answers at " + address)
	}
	to := m.info.HTTPS
	if o := m.other.Load(); o != nil && host == "new.example" {
		return (&net.Dialer{}).DialContext(ctx, network, *o)
	}
	if port == portOf(m.info.MQTTS) {
		to = m.info.MQTTS
	}
	return (&net.Dialer{}).DialContext(ctx, network, to)
}

// owner returns a client of an issuer, which is also where it finds the server.
func (m *movingServer) owner(issuer string) *admin.Client {
	m.Helper()
	ca, err := os.ReadFile(m.info.CAFile)
	check(m.T, err)
	c, err := admin.New(admin.Options{URL: issuer, Dial: m.info.HTTPS, CA: ca, Subject: server.FirstOperator, Key: m.key, Now: m.now})
	check(m.T, err)
	return c
}

// movingDevice is a device whose folder outlives it.
type movingDevice struct {
	*device.Device
	m         *movingServer
	dir       string
	o         device.Options
	connected chan string
	acted     chan struct{}
	halt      func()
}

func (m *movingServer) device(owner *admin.Client, id watchword.SubjectID, edit func(*device.Options)) *movingDevice {
	m.Helper()
	made, err := owner.CreateDevice(m.Context(), id, nil, 0)
	check(m.T, err)
	d := &movingDevice{m: m, dir: filepath.Join(m.TempDir(), string(id)), connected: make(chan string, 64), acted: make(chan struct{}, 64)}
	d.o = device.Options{Log: quiet.Log, Dial: m.dial, Now: m.now, Connected: func(over string) { d.connected <- over }}
	if edit != nil {
		edit(&d.o)
	}
	d.open()
	check(m.T, d.Enroll(m.Context(), made.Enrollment.Link))
	m.Cleanup(func() { d.close() })
	return d
}

func (d *movingDevice) open() {
	d.m.Helper()
	var err error
	d.Device, err = device.OpenWith(d.dir, d.o)
	check(d.m.T, err)
	d.Handle("lamp.set", func(context.Context, *device.Command) (any, error) {
		d.acted <- struct{}{}
		return map[string]int{"level": 1}, nil
	})
}

// run lets the device obey until halt.
func (d *movingDevice) run() {
	d.m.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	d.halt = func() {
		cancel()
		check(d.m.T, testwait.For(d.m.T, "the end of the device", ended))
		d.halt = nil
	}
	testwait.For(d.m.T, "the connection of "+string(d.ID()), d.connected)
}

func (d *movingDevice) close() {
	if d.halt != nil {
		d.halt()
	}
	if d.Device != nil {
		check(d.m.T, d.Close())
		d.Device = nil
	}
}

// follow waits until the device has the address.
func (d *movingDevice) follow(address string) {
	d.m.Helper()
	for wait := testwait.Within(); d.Server() != address; time.Sleep(time.Millisecond) {
		wait.Check(d.m, fmt.Sprintf("%s, which is at %s, at %s", d.ID(), d.Server(), address))
	}
}

// command has the device act once.
func (d *movingDevice) command(owner *admin.Client) {
	d.m.Helper()
	c, err := owner.Send(d.m.Context(), admin.CommandOrder{Device: d.ID(), Function: "lamp.set", Args: json.RawMessage(`{}`)})
	check(d.m.T, err)
	testwait.For(d.m.T, "the act of "+string(d.ID()), d.acted)
	for !c.State.Final() {
		if c, err = owner.Command(d.m.Context(), c.ID, 10*time.Second); err != nil {
			d.m.Fatal(err)
		}
	}
	if c.State != watchword.Done {
		d.m.Fatalf("the command is %s", c.State)
	}
}

// A server moves while devices are connected, one of them only by log proofs. They follow by the bundle, obey commands before, during
// and after the overlap and over restarts, and prove their keys to the new address; clients of the former issuer are served until its
// end, and then refused. The log goes on under its origin.
func TestAddressMove(t *testing.T) {
	m := newMovingServer(t, nil)
	old := m.owner(oldAddress)
	one := m.device(old, "lamp-1", func(o *device.Options) { o.ProvePossession = true })
	logged := m.device(old, "lamp-2", func(o *device.Options) { o.RequireLogProof = true })
	for _, d := range []*movingDevice{one, logged} {
		d.run()
		d.command(old)
	}
	const overlap = 48 * time.Hour
	a, err := old.MoveAddress(t.Context(), "HTTPS://New.Example.:9443/", overlap)
	check(t, err)
	if a.URL != newAddress || a.Issuer != newAddress || len(a.Former) != 1 || a.Former[0].Issuer != oldAddress || !strings.HasPrefix(a.MQTTS, "new.example:") {
		t.Errorf("the address is %+v", a)
	}
	for _, d := range []*movingDevice{one, logged} {
		d.follow(newAddress)
		d.command(old)
	}
	fresh := m.owner(newAddress)
	for _, owner := range []*admin.Client{old, fresh} {
		if _, err := owner.Address(t.Context()); err != nil {
			t.Errorf("a client of %s during the overlap: %v", owner.URL(), err)
		}
	}
	if got := issuerOf(t, fresh); got != newAddress {
		t.Errorf("a new token is of %s", got)
	}
	late := m.device(fresh, "lamp-3", nil) // enrolled by a link of the new address
	if late.Server() != newAddress || !strings.HasPrefix(late.MQTT(), "new.example:") {
		t.Errorf("the link leads to %s and %s", late.Server(), late.MQTT())
	}
	m.metadata(oldAddress, oldAddress)
	m.metadata(newAddress, newAddress)
	stored, err := os.ReadFile(filepath.Join(one.dir, "device.json"))
	check(t, err)
	if strings.Contains(string(stored), `"mqtts": "old.example`) || !strings.Contains(string(stored), "new.example:"+portOf(m.info.MQTTS)) {
		t.Errorf("the device's folder has the address of MQTT of before: %s", stored)
	}

	// A restart, with the former address in the configuration still, and the devices' folders opened again.
	for _, d := range []*movingDevice{one, logged, late} {
		d.close()
	}
	m.stop()
	m.start()
	if m.info.URL != newAddress || m.info.Issuer != newAddress {
		t.Errorf("after a restart the server is at %s, %s", m.info.URL, m.info.Issuer)
	}
	fresh, old = m.owner(newAddress), m.owner(oldAddress)
	for _, d := range []*movingDevice{one, logged, late} {
		d.open()
		d.run()
		d.command(fresh)
		d.command(old)
	}
	if a, err = fresh.Address(t.Context()); err != nil || a.Devices == nil || a.Devices.Moved != 3 || a.Former[0].Devices != 0 || a.Devices.Unseen != 0 {
		t.Errorf("the devices are %+v of %+v, %v", a.Devices, a.Former, err)
	}

	// After the overlap.
	m.ahead.Store(int64(overlap + time.Minute))
	if _, err := m.owner(oldAddress).Address(t.Context()); watchword.CodeOf(err) != watchword.AudienceMismatch && watchword.CodeOf(err) != watchword.ClientInvalid {
		t.Errorf("a client of the former issuer after the overlap: %v", err)
	}
	fresh = m.owner(newAddress)
	for _, d := range []*movingDevice{one, logged, late} {
		d.close()
		d.open()
		d.run()
		d.command(fresh)
		d.close()
	}
	m.metadata(oldAddress, newAddress)
	m.stop()
	if v, err := server.VerifyLog(t.Context(), m.config.Data, nil); err != nil || v.Checkpoint.Origin != "old.example:8443/log" {
		t.Errorf("the log: %+v, %v", v.Checkpoint, err)
	}
}

// metadata checks what the metadata at an address says.
func (m *movingServer) metadata(at, want string) {
	m.Helper()
	m.metadataOf(at, "", want)
}

func (m *movingServer) metadataOf(at, tenantPath, want string) {
	m.Helper()
	ca, err := os.ReadFile(m.info.CAFile)
	check(m.T, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	c := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, Time: m.now},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, m.info.HTTPS)
		},
	}}
	q, err := http.NewRequestWithContext(m.Context(), http.MethodGet, at+"/.well-known/oauth-authorization-server"+tenantPath, nil)
	check(m.T, err)
	r, err := c.Do(q)
	check(m.T, err)
	defer r.Body.Close()
	var doc struct {
		Issuer   string `json:"issuer"`
		Endpoint string `json:"token_endpoint"`
	}
	check(m.T, json.NewDecoder(r.Body).Decode(&doc))
	if doc.Issuer != want || doc.Endpoint != want+"/oauth/token" {
		m.Errorf("the metadata at %s names %s and %s, want %s", at, doc.Issuer, doc.Endpoint, want)
	}
}

func issuerOf(t *testing.T, c *admin.Client) string {
	t.Helper()
	raw, err := c.Tokens().Get(t.Context())
	check(t, err)
	return token.UnverifiedIssuer(raw)
}

// While the new name leads nowhere, a device that has followed uses the former one, over TLS for the new name; once the new one
// answers, it uses that. After the overlap it uses the former one no more.
func TestAddressMoveToADeadName(t *testing.T) {
	m := newMovingServer(t, nil)
	old := m.owner(oldAddress)
	d := m.device(old, "lamp-1", nil)
	d.run()
	m.dead["new.example"].Store(true)
	_, err := old.MoveAddress(t.Context(), newAddress, time.Hour)
	check(t, err)
	d.follow(newAddress)
	d.close()
	d.open()
	d.run()
	d.command(old)
	d.close()
	m.dead["new.example"].Store(false)
	m.dead["old.example"].Store(true)
	m.ahead.Add(int64(2 * time.Minute)) // the former one is tried first for a minute
	d.open()
	d.run()
	d.command(old)
	d.close()
	m.dead["new.example"].Store(true)
	m.dead["old.example"].Store(false)
	m.ahead.Store(int64(time.Hour + time.Second))
	before := m.dials["old.example"].Load()
	d.open()
	if _, err := d.NewToken(t.Context()); watchword.CodeOf(err) != watchword.Unavailable {
		t.Errorf("a token with the new name dead, after the overlap: %v", err)
	}
	if n := m.dials["old.example"].Load(); n != before {
		t.Errorf("the former name was dialed %d times after the overlap", n-before)
	}
}

// Where the new name leads to another server, whose certificate the bundle does not vouch for, a device goes on over the former one.
func TestAddressMoveToAnotherServer(t *testing.T) {
	m := newMovingServer(t, nil)
	old := m.owner(oldAddress)
	d := m.device(old, "lamp-1", nil)
	d.run()
	stranger := httptest.NewUnstartedServer(http.NotFoundHandler())
	stranger.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	stranger.StartTLS()
	defer stranger.Close()
	m.other.Store(new(stranger.Listener.Addr().String()))
	_, err := old.MoveAddress(t.Context(), newAddress, time.Hour)
	check(t, err)
	d.follow(newAddress)
	d.close()
	d.open()
	d.run()
	d.command(old)
}

// A device that does not have the new bundle yet obeys what the server signs after the move, and its receipt counts; the evidence of the
// command verifies over both issuers.
func TestCommandBeforeTheBundleOfAMove(t *testing.T) {
	m := newMovingServer(t, nil)
	old := m.owner(oldAddress)
	d := m.device(old, "lamp-1", nil)
	d.run()
	d.command(old)
	d.close()
	proving := m.device(old, "lamp-2", func(o *device.Options) { o.ProvePossession = true })
	pin := token.TrustPin(trustOf(t, m).Roots[0])
	_, err := old.MoveAddress(t.Context(), newAddress, time.Hour)
	check(t, err)
	if _, err := proving.NewToken(t.Context()); err != nil || proving.Server() != oldAddress {
		t.Errorf("a proof for the former address, by a device at %s: %v", proving.Server(), err)
	}
	d.open()
	c, err := m.owner(newAddress).Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "lamp.set", Args: json.RawMessage(`{}`)})
	check(t, err)
	h, err := d.HTTPClient()
	check(t, err)
	access, err := d.Token(t.Context())
	check(t, err)
	epoch, seq := d.Position()
	q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("%s/v1/self/commands?limit=1&wait=10s&epoch=%d&after=%d", oldAddress, epoch, seq), nil)
	check(t, err)
	q.Header.Set("Authorization", "Bearer "+access)
	r, err := h.Do(q)
	check(t, err)
	defer r.Body.Close()
	var out struct{ Commands []struct{ JWE string } }
	check(t, json.NewDecoder(r.Body).Decode(&out))
	if len(out.Commands) != 1 || d.Server() != oldAddress {
		t.Fatalf("%d commands for a device at %s", len(out.Commands), d.Server())
	}
	receipt, err := d.Execute(t.Context(), out.Commands[0].JWE)
	check(t, err)
	check(t, d.SendReceipt(t.Context(), receipt))
	owner := m.owner(newAddress)
	if c, err = owner.Command(t.Context(), c.ID, 10*time.Second); err != nil || c.State != watchword.Done {
		t.Fatalf("the command is %s, %v", c.State, err)
	}
	raw, err := owner.Evidence(t.Context(), c.ID)
	check(t, err)
	if _, err := command.VerifyEvidence(raw, pin); err != nil {
		t.Errorf("the evidence: %v", err)
	}
	m.ahead.Store(int64(time.Hour + time.Minute))
	if _, err := proving.NewToken(t.Context()); watchword.CodeOf(err) != watchword.DPoPInvalid {
		t.Errorf("a proof for the former address after the overlap: %v", err)
	}
}

// trustOf returns the current trust bundle.
func trustOf(t *testing.T, m *movingServer) token.Trust {
	t.Helper()
	s, err := m.owner(m.info.Issuer).TrustBundle(t.Context())
	check(t, err)
	b, err := token.ReadTrust(s)
	check(t, err)
	return b
}

// A device that was off during the whole overlap still follows where it reaches the server under the name that it knows: the
// bundle keeps every former issuer.
func TestDeviceThatWasOffDuringTheOverlap(t *testing.T) {
	m := newMovingServer(t, nil)
	old := m.owner(oldAddress)
	devices := []*movingDevice{m.device(old, "lamp-1", nil), m.device(old, "lamp-2", func(o *device.Options) { o.ProvePossession = true })}
	for _, d := range devices {
		d.close()
	}
	_, err := old.MoveAddress(t.Context(), newAddress, time.Hour)
	check(t, err)
	m.ahead.Store(int64(48 * time.Hour))
	m.stop()
	m.start()
	for _, d := range devices {
		d.open()
		if d.Server() != oldAddress {
			t.Fatalf("%s is at %s", d.ID(), d.Server())
		}
		d.run()
		d.follow(newAddress)
		d.command(m.owner(newAddress))
	}
}

// Two tenants move with the server, each to an issuer of its own.
func TestAddressMoveOfTwoTenants(t *testing.T) {
	m := newMovingServer(t, nil)
	m.stop()
	addOwner(t, m.config.Data, "other", m.key)
	m.o.Tenants = map[watchword.TenantID][]string{"other": nil}
	m.start()
	a, b := m.owner(oldAddress), m.owner(oldAddress+"/t/other")
	one, other := m.device(a, "lamp-1", nil), m.device(b, "lamp-1", nil)
	one.run()
	other.run()
	if _, err := b.MoveAddress(t.Context(), newAddress, time.Hour); watchword.CodeOf(err) != watchword.NotFound {
		t.Errorf("another tenant moves the server: %v", err)
	}
	_, err := a.MoveAddress(t.Context(), newAddress, time.Hour)
	check(t, err)
	one.follow(newAddress)
	other.follow(newAddress + "/t/other")
	one.command(m.owner(newAddress))
	other.command(m.owner(newAddress + "/t/other"))
	other.command(b)
	m.metadataOf(oldAddress, "/t/other", oldAddress+"/t/other")
	m.metadataOf(newAddress, "/t/other", newAddress+"/t/other")
}

// Moves that are refused, and a move back.
func TestAddressMovesThatAreRefused(t *testing.T) {
	m := newMovingServer(t, func(c *server.Config, _ *server.Options) { c.Server.Names = []string{"old.example"} })
	owner := m.owner(oldAddress)
	for _, tc := range []struct {
		url     string
		overlap time.Duration
		want    watchword.Code
	}{
		{oldAddress, time.Hour, watchword.Conflict},
		{"https://OLD.example.:8443", time.Hour, watchword.Conflict},
		{"http://new.example", time.Hour, watchword.BadRequest},
		{"https://[fe80::1%25eth0]", time.Hour, watchword.BadRequest},
		{newAddress, time.Hour - time.Second, watchword.BadRequest},
		{newAddress, 17521 * time.Hour, watchword.BadRequest},
	} {
		if _, err := owner.MoveAddress(t.Context(), tc.url, tc.overlap); watchword.CodeOf(err) != tc.want {
			t.Errorf("%s for %s: %v, want %s", tc.url, tc.overlap, err, tc.want)
		}
	}
	if a, err := owner.Address(t.Context()); err != nil || a.URL != oldAddress || len(a.Former) > 0 || a.Devices != nil {
		t.Errorf("the address is %+v, %v", a, err)
	}
	d := m.device(owner, "lamp-1", nil)
	d.run()
	for _, to := range []string{newAddress, oldAddress} {
		_, err := owner.MoveAddress(t.Context(), to, time.Hour)
		check(t, err)
		d.follow(to)
		d.command(owner)
	}
	var a api.Address
	a, err := owner.Address(t.Context())
	if err != nil || a.URL != oldAddress || len(a.Former) != 1 || a.Former[0].Issuer != newAddress {
		t.Errorf("after a move back the address is %+v, %v", a, err)
	}
	m.stop()
	m.config.Server.PublicURL = "https://third.example"
	if _, err := server.New(t.Context(), m.config, m.o); watchword.CodeOf(err) != watchword.ConfigInvalid || !strings.Contains(err.Error(), "address move https://third.example") {
		t.Errorf("a third address in the configuration: %v", err)
	}
}

// In the last week before the end of a former issuer the log says once a day how many devices have not followed, and after the end that
// the issuer is refused.
func TestEndOfAFormerAddressIsAnnounced(t *testing.T) {
	var logged lockedBuffer
	m := newMovingServer(t, func(_ *server.Config, o *server.Options) { o.Log = slog.New(slog.NewTextHandler(&logged, nil)) })
	owner := m.owner(oldAddress)
	stays, follows, off := m.device(owner, "lamp-1", nil), m.device(owner, "lamp-2", nil), m.device(owner, "lamp-3", nil)
	off.close()
	moved := m.now()
	_, err := owner.MoveAddress(t.Context(), newAddress, 30*24*time.Hour)
	check(t, err)
	_, err = stays.NewToken(t.Context()) // it has not asked for the bundle
	check(t, err)
	follows.run()
	follows.follow(newAddress)
	_, err = follows.NewToken(t.Context())
	check(t, err)
	a, err := owner.Address(t.Context())
	if err != nil || a.Devices == nil || a.Devices.Moved != 1 || a.Former[0].Devices != 1 || a.Devices.Unseen != 1 {
		t.Errorf("the devices are %+v of %+v, %v", a.Devices, a.Former, err)
	}
	follows.close()
	stays.close()
	for _, tc := range []struct {
		ahead    time.Duration
		warnings int
		ends     int
	}{
		{22 * 24 * time.Hour, 0, 0},
		{23*24*time.Hour + time.Minute, 1, 0},
		{23*24*time.Hour + time.Hour, 0, 0},
		{24*24*time.Hour + time.Hour, 1, 0},
		{30*24*time.Hour + time.Minute, 0, 1},
		{30*24*time.Hour + time.Hour, 0, 0},
	} {
		before := len(logged.String())
		check(t, m.server.WatchAddress(t.Context(), moved.Add(tc.ahead)))
		text := logged.String()[before:]
		warnings, ends := strings.Count(text, "ends soon"), strings.Count(text, "not accepted any more")
		if warnings != tc.warnings || ends != tc.ends {
			t.Errorf("after %s: %d warnings and %d ends, want %d and %d: %s", tc.ahead, warnings, ends, tc.warnings, tc.ends, text)
		}
		if tc.warnings > 0 && !strings.Contains(text, "devices=1 unseen=1") {
			t.Errorf("after %s: %s", tc.ahead, text)
		}
	}
}
