package attack_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
)

const neighbourPolicy = `for = { kind = "lamp" }
[[allow]]
call = ["lamp.*"]
on   = { kind = "lamp", site = "${site}" }
args = { level = { maximum = 80 } }
[[deny]]
call = ["lamp.reset"]
`

// A device calls a function on another with its own token, as far as policy lets it.
func TestDeviceMayNotCallAnother(t *testing.T) {
	srv := serve(t, nil)
	ctx := t.Context()
	_, err := srv.admin.ApplyPolicy(ctx, "neighbours", []byte(neighbourPolicy), 0)
	must(t, err)
	at := func(site string) watchword.Labels { return watchword.Labels{"kind": "lamp", "site": site} }
	a := srv.enroll("lamp-a", device.Options{SignCurve: "Ed25519", SealCurve: "X25519"}, at("one"))
	b := counting(srv.enroll("lamp-b", device.Options{}, at("one")))
	srv.enroll("lamp-far", device.Options{}, at("two"))
	run, stop := context.WithCancel(ctx)
	ran := make(chan error, 1)
	go func() { ran <- b.Run(run) }()

	c, err := a.Call(ctx, "lamp-b", "lamp.set", map[string]int{"level": 70}, 20*time.Second)
	must(t, err)
	if c.State != watchword.Done || b.acts.Load() != 1 || c.Receipt == nil || string(c.Receipt.Result) != `{"ok":true}` {
		t.Errorf("the call is %s after %d acts", c.State, b.acts.Load())
	}
	whole, err := srv.admin.Command(ctx, c.ID, 0)
	must(t, err)
	if whole.By != "lamp-a" {
		t.Errorf("ordered by %s", whole.By)
	}
	for _, tc := range []struct {
		name, fn string
		to       watchword.SubjectID
		args     any
	}{
		{"over the bound", "lamp.set", "lamp-b", map[string]int{"level": 81}},
		{"a level that is no number", "lamp.set", "lamp-b", map[string]string{"level": "70"}},
		{"of another site", "lamp.set", "lamp-far", map[string]int{"level": 1}},
		{"denied by name", "lamp.reset", "lamp-b", nil},
		{"another function", "firmware.update", "lamp-b", nil},
		{"nobody", "lamp.set", "ghost", nil},
	} {
		_, err := a.Call(ctx, tc.to, tc.fn, tc.args, 0)
		wants(t, tc.name, err, watchword.Denied)
	}
	_, err = srv.admin.SetLabels(ctx, "lamp-b", at("two"), 0)
	must(t, err)
	_, err = a.Call(ctx, "lamp-b", "lamp.set", map[string]int{"level": 1}, 0)
	wants(t, "after the other device moved away", err, watchword.Denied)
	_, err = srv.admin.Command(ctx, c.ID, 0)
	must(t, err)
	if a := srv.request("GET", "/v1/commands/"+string(c.ID), srv.token(b.Device), ""); a.status != 403 {
		t.Errorf("who did not order it reads it: %d %s", a.status, a.body)
	}
	stop()
	must(t, <-ran)
	if got := srv.log.String(); strings.Contains(got, "81") && strings.Contains(got, "level 81") {
		t.Error("an argument's value is in the log")
	}
}

// What a device wants of its server is there after a restart: configuration, state, functions.
func TestTwinConfigurationIsSigned(t *testing.T) {
	srv := serve(t, nil)
	ctx := t.Context()
	d := srv.enroll("lamp-1", device.Options{}, nil)
	got := make(chan device.Config, 4)
	d.OnConfig(func(_ context.Context, c device.Config) error {
		got <- c
		return nil
	})
	d.HandleFunction(device.Function{Name: "lamp.set", Schema: []byte(`{"type":"object"}`)}, func(context.Context, *device.Command) (any, error) { return nil, nil })
	_, err := srv.admin.SetConfig(ctx, "lamp-1", []byte(`{"interval":30}`), -1)
	must(t, err)
	run, stop := context.WithCancel(ctx)
	ran := make(chan error, 1)
	go func() { ran <- d.Run(run) }()
	select {
	case c := <-got:
		var v struct {
			Interval int `json:"interval"`
		}
		must(t, c.Into(&v))
		if c.Version != 1 || v.Interval != 30 {
			t.Errorf("got %d %s", c.Version, c.Raw)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("no configuration came")
	}
	must(t, d.ReportState(ctx, map[string]int{"level": 7}))
	twin, err := srv.admin.Twin(ctx, "lamp-1")
	must(t, err)
	if string(twin.State) != `{"level":7}` || twin.ConfigVersion != 1 {
		t.Errorf("got %+v", twin)
	}
	shown, err := srv.admin.Device(ctx, "lamp-1")
	must(t, err)
	if len(shown.Functions) != 1 || shown.Functions[0].Name != "lamp.set" {
		t.Errorf("functions %+v", shown.Functions)
	}
	_, err = srv.admin.Send(ctx, admin.CommandOrder{Device: "lamp-1", Function: "lamp.get"})
	wants(t, "a function that was not announced", err, watchword.FunctionUnknown)
	stop()
	must(t, <-ran)
}
