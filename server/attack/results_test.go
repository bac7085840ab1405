package attack_test

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
)

// panics is a result whose encoding panics.
type panics struct{}

func (panics) MarshalJSON() ([]byte, error) { panic("no") }

// Whatever a function returns, its command ends with a receipt that the server takes.
func TestEveryResultEndsInAReceipt(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	raw := func(s string) any { return json.RawMessage(s) }
	nested := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	type ended struct {
		result any
		err    error
		want   watchword.ReceiptStatus
		code   string // of the result
	}
	cases := map[string]ended{
		"nothing":               {nil, nil, watchword.StatusDone, ""},
		"an-object":             {raw(`{"a":1}`), nil, watchword.StatusDone, ""},
		"seven-deep":            {raw(nested(7)), nil, watchword.StatusDone, ""},
		"a-nul":                 {"\x00", nil, watchword.StatusDone, ""},
		"a-number-beyond-float": {raw(`1e400`), nil, watchword.StatusDone, ""},
		"a-member-twice":        {raw(`{"a":1,"a":2}`), nil, watchword.StatusFailed, "result_invalid"},
		"a-member-twice-within": {raw(`[{"a":1,"\u0061":2}]`), nil, watchword.StatusFailed, "result_invalid"},
		"eight-deep":            {raw(nested(8)), nil, watchword.StatusFailed, "result_invalid"},
		"twelve-deep":           {raw(nested(12)), nil, watchword.StatusFailed, "result_invalid"},
		"a-lone-surrogate":      {raw(`"\ud800"`), nil, watchword.StatusFailed, "result_invalid"},
		"a-name-that-is-one":    {raw(`{"\udc00":1}`), nil, watchword.StatusFailed, "result_invalid"},
		"no-utf8":               {raw("\"\xff\""), nil, watchword.StatusFailed, "result_invalid"},
		"no-json":               {raw(`{`), nil, watchword.StatusFailed, "result_invalid"},
		"two-values":            {raw(`{} {}`), nil, watchword.StatusFailed, "result_invalid"},
		"an-infinity":           {math.Inf(1), nil, watchword.StatusFailed, "result_invalid"},
		"a-channel":             {make(chan int), nil, watchword.StatusFailed, "result_invalid"},
		"a-panic":               {panics{}, nil, watchword.StatusFailed, "result_invalid"},
		"40-kb":                 {strings.Repeat("x", 40_000), nil, watchword.StatusFailed, "result_invalid"},
		"10-mb":                 {strings.Repeat("x", 10_000_000), nil, watchword.StatusFailed, "result_invalid"},
		"20-kb-that-grow":       {strings.Repeat("<", 20_000), nil, watchword.StatusFailed, "result_invalid"},
		"a-long-refusal":        {nil, device.Refuse(strings.Repeat("x", 40_000), nil), watchword.StatusRefused, "result_invalid"},
		"a-long-failure":        {nil, device.Fail(strings.Repeat("x", 40_000), nil), watchword.StatusFailed, "result_invalid"},
		"an-error-of-bytes":     {nil, errors.New("\xff\x00\ud7ff"), watchword.StatusFailed, "failed"},
	}
	d.HandleAny(func(_ context.Context, c *device.Command) (any, error) {
		e := cases[c.Function]
		return e.result, e.err
	})
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- d.Run(ctx) }()
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		c, err := srv.admin.Send(ctx, admin.CommandOrder{Device: "lamp-1", Function: name})
		must(t, err)
		done, err := srv.admin.Command(ctx, c.ID, 20*time.Second)
		must(t, err)
		if done.Receipt == nil {
			t.Fatalf("%s: it is %s without a receipt", name, done.State)
		}
		var f struct{ Code string }
		_ = json.Unmarshal(done.Receipt.Result, &f) // no object has no code
		if want := cases[name]; done.Receipt.Status != want.want || f.Code != want.code {
			t.Errorf("%s: %s %s, want %s %s", name, done.Receipt.Status, done.Receipt.Result, want.want, want.code)
		}
	}
	// What the server would not take is not sent.
	for name, c := range map[string]struct {
		err  error
		want watchword.Code
	}{
		"a state":                     {d.ReportState(ctx, raw(`{"a":{"b":[[[[[[1]]]]]]}}`)), ""},
		"a state of two members":      {d.ReportState(ctx, raw(`{"a":1,"a":2}`)), watchword.BadRequest},
		"a state that is deep":        {d.ReportState(ctx, raw(`{"a":`+nested(8)+`}`)), watchword.BadRequest},
		"a state that is no object":   {d.ReportState(ctx, raw(`[]`)), watchword.BadRequest},
		"a state that is no Unicode":  {d.ReportState(ctx, raw(`{"a":"\ud800"}`)), watchword.BadRequest},
		"a state that is large":       {d.ReportState(ctx, map[string]string{"a": strings.Repeat("x", 32<<10)}), watchword.TooLarge},
		"an event":                    {d.Publish(ctx, "e", make([]byte, 32<<10)), ""},
		"an event that is large":      {d.Publish(ctx, "e", make([]byte, 32<<10+1)), watchword.TooLarge},
		"an event that is no JSON":    {d.Publish(ctx, "e", raw(`{`)), watchword.BadRequest},
		"an event of a stream's name": {d.Publish(ctx, "e//f", 1), watchword.BadRequest},
	} {
		wants(t, name, c.err, c.want)
	}
	cancel()
	must(t, <-ran)
}

// A configuration that no device takes is not kept in the place of the one that they have.
func TestAConfigurationThatNoDeviceTakes(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	received := make(chan device.Config, 1)
	d.OnConfig(func(_ context.Context, c device.Config) error { received <- c; return nil })
	set := func(doc string) error {
		_, err := srv.admin.SetConfig(t.Context(), "lamp-1", json.RawMessage(doc), -1)
		return err
	}
	wants(t, "eight deep", set(`{"a":[[[[[[[1]]]]]]]}`), watchword.BadRequest)
	must(t, set(`{"a":[[[[[["`+strings.Repeat("x", 30_000)+`"]]]]]]}`))
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- d.Run(ctx) }()
	select {
	case c := <-received:
		if c.Version != 1 || len(c.Raw) < 30_000 {
			t.Errorf("version %d of %d bytes", c.Version, len(c.Raw))
		}
	case <-time.After(20 * time.Second):
		t.Error("no configuration came within 20 s")
	}
	cancel()
	must(t, <-ran)
}
