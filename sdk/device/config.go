package device

import (
	"context"
	"net/http"
	"os"
	"strconv"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/token"
)

// Config is what is wanted of the device: one JSON object, signed by the server,
// whose version only grows.
type Config struct {
	Version int64
	Raw     []byte
}

// Into reads the configuration into a value.
func (c Config) Into(v any) error { return jsonv2.Unmarshal(c.Raw, v) }

// OnConfig says who hears of a new configuration. It is called once for each
// version; after an error, again later.
func (d *Device) OnConfig(f func(context.Context, Config) error) {
	d.handlers.mu.Lock()
	defer d.handlers.mu.Unlock()
	d.handlers.config = f
}

// lookAtConfig asks for the wanted configuration and hands a new one on.
func (d *Device) lookAtConfig(ctx context.Context) error {
	if !d.wantsConfig() {
		return nil
	}
	have := d.configVersion()
	r := rest.Request{Method: http.MethodGet, Path: "/v1/self/config"}
	if have > 0 {
		r.Header = map[string]string{"If-None-Match": strconv.Quote(strconv.FormatInt(have, 10))}
	}
	a, err := d.client.Do(ctx, r)
	if watchword.CodeOf(err) == watchword.NotFound {
		return nil
	}
	if err != nil || a.Status == http.StatusNotModified {
		return err
	}
	return d.takeConfig(ctx, a.Body)
}

// wantsConfig reports whether anybody hears of configurations.
func (d *Device) wantsConfig() bool {
	d.handlers.mu.RLock()
	defer d.handlers.mu.RUnlock()
	return d.handlers.config != nil
}

// takeConfig checks a signed configuration and hands a new one on. The one that is
// known already is no error.
func (d *Device) takeConfig(ctx context.Context, raw []byte) error {
	c, err := token.VerifyConfig(string(raw), token.NewKeySet(d.trust.Load().Command...), d.id.Issuer, d.id.ID, d.now())
	if err != nil {
		return err
	}
	have := d.configVersion()
	if c.Version == have {
		return nil
	}
	if c.Version < have {
		return watchword.Refuse(watchword.CommandStale, "the configuration is version %d, and %d is known", c.Version, have)
	}
	d.handlers.mu.RLock()
	f := d.handlers.config
	d.handlers.mu.RUnlock()
	if f == nil {
		return nil
	}
	if err := f(ctx, Config{c.Version, c.Document}); err != nil {
		return err
	}
	return durable.WriteFile(d.path(configFile), raw, 0o600)
}

// configVersion returns the version that was handed on last, 0 if none was.
func (d *Device) configVersion() int64 {
	raw, err := os.ReadFile(d.path(configFile))
	if err != nil {
		return 0
	}
	// It was in time when it came: here only its version counts.
	c, err := token.VerifyConfig(string(raw), token.NewKeySet(d.trust.Load().Command...), d.id.Issuer, d.id.ID, time.Time{})
	if err != nil {
		return 0
	}
	return c.Version
}
