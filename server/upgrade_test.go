package server_test

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
)

// upgraded is a data folder of an earlier build, made by testdata/upgrade/make.sh, under a server of this build. Its clock
// is two hours after the folder's last use: before everything in it expires, however much later the test runs.
type upgraded struct {
	t     *testing.T
	made  string // the archive's name, a date
	dir   string
	now   func() time.Time
	info  server.Info
	admin *admin.Client
	roots *x509.CertPool
	stop  func()
}

// unpack writes an archive's files with the modes that they have in it.
func unpack(t *testing.T, archive, dir string) {
	t.Helper()
	f, err := os.Open(archive)
	check(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	check(t, err)
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		check(t, err)
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.FileInfo().IsDir() {
			check(t, os.MkdirAll(path, h.FileInfo().Mode().Perm()))
			continue
		}
		b, err := io.ReadAll(r)
		check(t, err)
		check(t, os.WriteFile(path, b, h.FileInfo().Mode().Perm()))
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func upgrade(t *testing.T, archive string) *upgraded {
	t.Helper()
	u := &upgraded{t: t, made: strings.TrimSuffix(filepath.Base(archive), ".tar.gz"), dir: t.TempDir()}
	unpack(t, archive, u.dir)
	made, err := strconv.ParseInt(strings.TrimSpace(string(u.read("made"))), 10, 64)
	check(t, err)
	began := time.Now()
	u.now = func() time.Time { return time.Unix(made, 0).Add(2*time.Hour + time.Since(began)) }
	u.start()
	return u
}

func (u *upgraded) read(name string) []byte {
	u.t.Helper()
	b, err := os.ReadFile(filepath.Join(u.dir, name))
	check(u.t, err)
	return b
}

func (u *upgraded) start() {
	u.t.Helper()
	c := config(u.t, filepath.Join(u.dir, "data"))
	c.Server.PublicURL = "https://localhost:28443" // as it was founded
	o := quiet
	o.Now = u.now
	s, err := server.New(u.t.Context(), c, o)
	check(u.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	testwait.For(u.t, "the server", s.Ready())
	u.stop = func() {
		if cancel(); ended != nil {
			check(u.t, testwait.For(u.t, "the end of the server", ended))
			ended = nil
		}
	}
	u.t.Cleanup(u.stop)
	u.info = s.Info()
	ca := u.read("data/tls/ca.pem")
	u.roots = x509.NewCertPool()
	u.roots.AppendCertsFromPEM(ca)
	key, err := jose.ParsePrivateJWK(u.read("data/operator.jwk"), jose.ForSigning)
	check(u.t, err)
	u.admin, err = admin.New(admin.Options{
		URL: u.info.URL, Dial: u.info.HTTPS, Issuer: u.info.Issuer, CA: ca, Subject: server.FirstOperator, Key: key, Now: u.now,
	})
	check(u.t, err)
}

// device opens a device's folder, with the ports of this run for those that it knows.
func (u *upgraded) device(id watchword.SubjectID) *device.Device {
	u.t.Helper()
	d, err := device.OpenWith(filepath.Join(u.dir, string(id)), device.Options{
		Log: quiet.Log, Now: u.now, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			to := map[string]string{"localhost:28443": u.info.HTTPS, "localhost:28883": u.info.MQTTS}[address]
			return (&net.Dialer{}).DialContext(ctx, network, to)
		},
	})
	check(u.t, err)
	u.t.Cleanup(func() {
		if err := d.Close(); err != nil && !errors.Is(err, os.ErrClosed) { // a test may have closed it
			u.t.Error(err)
		}
	})
	return d
}

// mqtt connects a client to the session that it left. Its messages are received from the channel.
func (u *upgraded) mqtt(d *device.Device, client string) (*paho.Client, *paho.Connack, <-chan *paho.Publish) {
	u.t.Helper()
	token, err := d.NewToken(u.t.Context())
	check(u.t, err)
	nc, err := tls.Dial("tcp", u.info.MQTTS, &tls.Config{RootCAs: u.roots, ServerName: "localhost", Time: u.now})
	check(u.t, err)
	got := make(chan *paho.Publish, 64)
	c := paho.NewClient(paho.ClientConfig{
		Conn: packets.NewThreadSafeConn(nc),
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) {
			got <- r.Packet
			return true, nil
		}},
	})
	week := uint32(7 * 24 * 3600)
	ack, err := c.Connect(u.t.Context(), &paho.Connect{
		ClientID: client, KeepAlive: 30, Username: "jwt", UsernameFlag: true, Password: []byte(token), PasswordFlag: true,
		Properties: &paho.ConnectProperties{SessionExpiryInterval: &week},
	})
	check(u.t, err)
	u.t.Cleanup(func() { _ = c.Disconnect(&paho.Disconnect{}) }) // the server may have gone before
	return c, ack, got
}

// collect returns n messages as "topic payload", sorted.
func collect(t *testing.T, got <-chan *paho.Publish, n int) []string {
	t.Helper()
	var out []string
	for limit := time.After(20 * time.Second); len(out) < n; {
		select {
		case p := <-got:
			out = append(out, p.Topic+" "+string(p.Payload))
		case <-limit:
			t.Fatalf("%d messages of %d came: %q", len(out), n, out)
		}
	}
	slices.Sort(out)
	return out
}

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

// commands returns a device's commands as "number state", oldest first.
func (u *upgraded) commands(id watchword.SubjectID) (out []string) {
	u.t.Helper()
	cs, err := u.admin.Commands(u.t.Context(), admin.Filter{Device: id}, 100)
	check(u.t, err)
	for _, c := range slices.Backward(cs) {
		out = append(out, strconv.FormatInt(c.Seq, 10)+" "+string(c.State))
	}
	return out
}

// run lets a device obey until the test has ended, and returns the channel of the levels that it set.
func run(t *testing.T, d *device.Device) <-chan int {
	t.Helper()
	levels := make(chan int, 16)
	d.Handle("lamp.set", func(_ context.Context, c *device.Command) (any, error) {
		var in struct{ Level int }
		if err := json.Unmarshal(c.Raw, &in); err != nil {
			return nil, err
		}
		levels <- in.Level
		return in, nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		check(t, testwait.For(t, "the end of the device", ended))
	})
	return levels
}

func level(t *testing.T, levels <-chan int, want int) {
	t.Helper()
	select {
	case got := <-levels:
		if got != want {
			t.Errorf("the device set level %d, want %d", got, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("the device did not set level %d", want)
	}
}

// await waits until a command has its receipt.
func (u *upgraded) await(c api.Command) api.Command {
	u.t.Helper()
	ctx, cancel := context.WithTimeout(u.t.Context(), 30*time.Second)
	defer cancel()
	for !c.State.Final() {
		next, err := u.admin.Command(ctx, c.ID, 10*time.Second)
		if err != nil {
			u.t.Fatalf("command %d of %s is %s: %v", c.Seq, c.Device, c.State, err)
		}
		c = next
	}
	return c
}

// After the upgrade a folder of an earlier build has its earlier content, and its subjects continue where they were.
func TestDataFolderUpgrade(t *testing.T) {
	archives, err := filepath.Glob("testdata/upgrade/*.tar.gz")
	check(t, err)
	if len(archives) == 0 {
		t.Fatal("no archives")
	}
	for _, archive := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(archive), ".tar.gz"), func(t *testing.T) {
			t.Parallel()
			u := upgrade(t, archive)
			t.Run("subjects", u.testSubjects)
			t.Run("policies", u.testPolicies)
			t.Run("operators", u.testOperators)
			t.Run("messages", u.testMessages)
			t.Run("commands", u.testCommands)
			t.Run("log", u.testLog)
		})
	}
}

// A device's folder that an earlier build left keeps its memory: the number of the last
// command, what it signed for it, and that its counters are known. A device that had lost
// them would obey only what carries its nonce, and none of these commands does.
func TestDeviceFolderUpgrade(t *testing.T) {
	archives, err := filepath.Glob("testdata/upgrade/*.tar.gz")
	check(t, err)
	if len(archives) == 0 {
		t.Fatal("no archives")
	}
	for _, archive := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(archive), ".tar.gz"), func(t *testing.T) {
			t.Parallel()
			u := upgrade(t, archive)
			d := u.device("lamp-1")
			levels := 0
			handle := func(d *device.Device) {
				d.Handle("lamp.set", func(context.Context, *device.Command) (any, error) {
					levels++
					return map[string]int{"level": 50}, nil
				})
			}
			handle(d)
			if epoch, seq := d.Position(); epoch != 1 || seq != 2 {
				t.Errorf("lamp-1 is at %d.%d", epoch, seq)
			}
			jwe := u.next(d)
			receipt, err := d.Execute(t.Context(), jwe)
			check(t, err)
			check(t, d.SendReceipt(t.Context(), receipt))
			equal(t, "commands of lamp-1", u.commands("lamp-1"), []string{"1 done", "2 failed", "3 done"})
			check(t, d.Close())
			d = u.device("lamp-1")
			handle(d)
			again, err := d.Execute(t.Context(), jwe)
			check(t, err)
			if again != receipt || levels != 1 {
				t.Errorf("command 3 was done %d times; signed for anew: %v", levels, again != receipt)
			}
			check(t, d.Close())
			two := u.device("lamp-2") // it never obeyed; it opens, and is nowhere
			if epoch, seq := two.Position(); epoch != 0 || seq != 0 {
				t.Errorf("lamp-2 is at %d.%d", epoch, seq)
			}
		})
	}
}

// next asks for the next command over HTTPS, without a nonce.
func (u *upgraded) next(d *device.Device) string {
	u.t.Helper()
	c, err := d.HTTPClient()
	check(u.t, err)
	token, err := d.Token(u.t.Context())
	check(u.t, err)
	epoch, seq := d.Position()
	q, err := http.NewRequestWithContext(u.t.Context(), http.MethodGet,
		fmt.Sprintf("https://localhost:28443/v1/self/commands?limit=1&wait=10s&epoch=%d&after=%d", epoch, seq), nil)
	check(u.t, err)
	q.Header.Set("Authorization", "Bearer "+token)
	r, err := c.Do(q)
	check(u.t, err)
	defer r.Body.Close()
	var out struct{ Commands []struct{ JWE string } }
	check(u.t, json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&out))
	if r.StatusCode != http.StatusOK || len(out.Commands) != 1 {
		u.t.Fatalf("the next command: %s, %d commands", r.Status, len(out.Commands))
	}
	return out.Commands[0].JWE
}

func (u *upgraded) in(t *testing.T) *upgraded {
	here := *u
	here.t = t
	return &here
}

func (u *upgraded) testSubjects(t *testing.T) {
	u = u.in(t)
	ctx := t.Context()
	var got []string
	check(t, u.admin.Devices(ctx, nil, "", func(d api.Device) error {
		got = append(got, string(d.ID)+" "+string(d.State)+" "+d.Labels["kind"]+" "+d.Labels["site"])
		return nil
	}))
	equal(t, "devices", got, []string{
		"lamp-1 active lamp a", "lamp-2 active lamp a", "lamp-3 suspended lamp a", "lamp-4 revoked lamp a", "lamp-5 new lamp ", "lamp-7 active lamp a",
	})
	if _, err := u.admin.CreateDevice(ctx, "lamp-6", nil, 0); watchword.CodeOf(err) != watchword.Conflict {
		t.Errorf("the id of a deleted device was given again: %v", err)
	}
	d, err := u.admin.Device(ctx, "lamp-7")
	check(t, err)
	keys := map[string]int{}
	for _, k := range d.Keys {
		keys[string(k.Purpose)+" "+string(k.State)]++
	}
	if d.Proof != "required" || len(keys) != 4 || len(d.Keys) != 4 {
		t.Errorf("lamp-7 has proof %q and keys %v", d.Proof, keys)
	}
	twin, err := u.admin.Twin(ctx, "lamp-1")
	check(t, err)
	if twin.ConfigVersion != 1 || string(twin.Config) != `{"every":5}` {
		t.Errorf("lamp-1's configuration is version %d, %s", twin.ConfigVersion, twin.Config)
	}
	if d, err := u.admin.Resume(ctx, "lamp-3"); err != nil || d.State != watchword.Active {
		t.Errorf("lamp-3 resumed is %q, %v", d.State, err)
	}
	if _, err := u.admin.Link(ctx, "lamp-5", time.Hour); err != nil {
		t.Errorf("a link for lamp-5: %v", err)
	}
}

func (u *upgraded) testPolicies(t *testing.T) {
	u = u.in(t)
	ctx := t.Context()
	text, version, err := u.admin.Policy(ctx, "lamps")
	check(t, err)
	if version != 2 || !strings.Contains(string(text), "maximum = 70") {
		t.Errorf("lamps is version %d:\n%s", version, text)
	}
	if _, _, err := u.admin.Policy(ctx, "gone"); watchword.CodeOf(err) != watchword.NotFound {
		t.Errorf("a deleted policy: %v", err)
	}
	for args, want := range map[string]bool{`{"level":70}`: true, `{"level":71}`: false} {
		e, err := u.admin.Explain(ctx, "lamp-1", "call", "fn:lamp-2/lamp.set", json.RawMessage(args))
		check(t, err)
		if e.Allowed != want {
			t.Errorf("lamp.set with %s: allowed %v", args, e.Allowed)
		}
	}
	owner, err := u.admin.Operators().Get(ctx, "operator") // whose role was a label
	check(t, err)
	if _, labelled := owner.Labels["role"]; owner.Role != "owner" || labelled {
		t.Errorf("the first operator has role %q and labels %s", owner.Role, owner.Labels)
	}
	p, err := u.admin.ApplyPolicy(ctx, "lamps", append(text, "\n# edited\n"...), 2)
	check(t, err)
	if p.Version != 3 {
		t.Errorf("the next version of lamps is %d", p.Version)
	}
}

func (u *upgraded) testMessages(t *testing.T) {
	u = u.in(t)
	_, away, err := u.admin.AllSessions(t.Context(), "lamp-1")
	check(t, err)
	// Its will is due, and waits for clients that reconnect after the start, including its own client.
	if len(away) != 1 || away[0].MQTT.Client != "lamp-1/panel" || away[0].WillAt == nil {
		t.Errorf("sessions left behind: %+v", away)
	}
	c, ack, got := u.mqtt(u.device("lamp-1"), "lamp-1/panel")
	if !ack.SessionPresent {
		t.Error("the session of lamp-1/panel is gone")
	}
	equal(t, "what waited for lamp-1/panel", collect(t, got, 5), []string{
		`devices/lamp-2/events/power {"w":3}`, "sites/a/from-4 4", "sites/a/note first", "sites/a/scene evening", "sites/b/note shared",
	})
	other, _, kept := u.mqtt(u.device("lamp-2"), "lamp-2/tool")
	_, err = other.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "sites/+/#", QoS: 1}, {Topic: "devices/+/events/#", QoS: 1}}})
	check(t, err)
	want := []string{`devices/lamp-2/events/power {"w":3}`, "sites/a/scene evening"}
	if u.made == "2026-11-27" { // sites/a/from-4 is of a device that is revoked, but no row says whose it is
		want = slices.Insert(want, 1, "sites/a/from-4 4")
	}
	equal(t, "retained messages", collect(t, kept, len(want)), want)
	// The subscriptions of the session are there, the shared one too.
	for _, topic := range []string{"sites/a/again", "sites/b/again"} {
		_, err = other.Publish(t.Context(), &paho.Publish{Topic: topic, QoS: 1, Payload: []byte("2")})
		check(t, err)
	}
	equal(t, "what came after", collect(t, got, 2), []string{"sites/a/again 2", "sites/b/again 2"})
	equal(t, "what came after the retained messages", collect(t, kept, 2), []string{"sites/a/again 2", "sites/b/again 2"})
	check(t, c.Disconnect(&paho.Disconnect{}))
	check(t, other.Disconnect(&paho.Disconnect{}))
}

func (u *upgraded) testCommands(t *testing.T) {
	u = u.in(t)
	ctx := t.Context()
	equal(t, "commands of lamp-1", u.commands("lamp-1"), []string{"1 done", "2 failed", "3 queued"})
	equal(t, "commands of lamp-2", u.commands("lamp-2"), []string{"1 cancelled", "2 expired", "3 unknown", "4 delivered", "5 sent", "6 queued"})
	cs, err := u.admin.Commands(ctx, admin.Filter{Device: "lamp-1"}, 100)
	check(t, err)
	first, err := u.admin.Command(ctx, cs[len(cs)-1].ID, 0)
	check(t, err)
	if string(first.Args) != `{"level":40}` || first.Receipt == nil || string(first.Receipt.Result) != `{"level":40}` {
		t.Errorf("the first command of lamp-1: %s, %+v", first.Args, first.Receipt)
	}
	one := u.device("lamp-1")
	if epoch, seq := one.Position(); epoch != 1 || seq != 2 {
		t.Errorf("lamp-1 is at %d.%d", epoch, seq)
	}
	levels := run(t, one)
	level(t, levels, 50)
	if c := u.await(cs[0]); c.State != watchword.Done {
		t.Errorf("what waited for lamp-1 is %s", c.State)
	}
	c, err := u.admin.Send(ctx, admin.CommandOrder{Device: "lamp-1", Function: "lamp.set", Args: json.RawMessage(`{"level":60}`)})
	check(t, err)
	level(t, levels, 60)
	if c = u.await(c); c.State != watchword.Done || c.Seq != 4 {
		t.Errorf("a new command of lamp-1 is number %d, %s", c.Seq, c.State)
	}
	levels = run(t, u.device("lamp-2"))
	level(t, levels, 5)
	level(t, levels, 6)
	cs, err = u.admin.Commands(ctx, admin.Filter{Device: "lamp-2"}, 100)
	check(t, err)
	for _, c := range cs {
		if c.Seq >= 5 {
			u.await(c)
		}
	}
	equal(t, "commands of lamp-2", u.commands("lamp-2"), []string{"1 cancelled", "2 expired", "3 unknown", "4 delivered", "5 done", "6 done"})
}

func (u *upgraded) testLog(t *testing.T) {
	u = u.in(t)
	es, err := u.admin.Entries(t.Context(), 0, 10_000)
	check(t, err)
	u.stop()
	before := t.TempDir()
	unpack(t, filepath.Join("testdata", "upgrade", filepath.Base(filepath.Dir(t.Name()))+".tar.gz"), before)
	old, err := os.ReadFile(filepath.Join(before, "data", "log.checkpoint"))
	check(t, err)
	was, err := server.VerifyLog(t.Context(), filepath.Join(before, "data"), nil, old)
	check(t, err)
	is, err := server.VerifyLog(t.Context(), filepath.Join(u.dir, "data"), nil, old) // what it was, and then more
	check(t, err)
	if was.Entries < 80 || is.Entries <= was.Entries || is.Bodies != is.Entries || is.Uncovered != 0 || is.Checkpoint.Size < int64(len(es)) {
		t.Errorf("the log had %d entries, and has %d with %d bodies, %d beyond the last checkpoint of %d", was.Entries, is.Entries, is.Bodies, is.Uncovered, is.Checkpoint.Size)
	}
	// Its numbers go on, and the last start is one of this build.
	if e := es[was.Entries]; e.Seq != was.Entries+1 {
		t.Errorf("the first entry of this build is number %d of %d", e.Seq, was.Entries)
	}
	if !slices.ContainsFunc(es[was.Entries:], func(e api.Entry) bool { return e.Kind == "server.start" && e.Data["version"] == quiet.Version }) {
		t.Error("the log has no start of this build")
	}
}
