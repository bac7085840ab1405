package device

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
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
// version; after an error, again later. In [Device.Run] it runs beside commands and functions, and never
// twice at once: where it hangs, newer configurations wait, of which the newest counts. Its context ends
// with [ErrStopping] as the cause where Run ends.
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
	if err := heard(ctx, f, Config{c.Version, c.Document}); err != nil {
		return &notApplied{err}
	}
	return durable.WriteFile(d.path(configFile), raw, 0o600)
}

// configVersion returns the version that was handed on last, 0 if none was.
func (d *Device) configVersion() int64 {
	raw, err := durable.ReadTrusted(d.path(configFile), 2*watchword.MaxDocument)
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

// notApplied is the error of a handler of configurations: another try may do better.
type notApplied struct{ err error }

func (e *notApplied) Error() string { return "the configuration was not applied: " + e.err.Error() }
func (e *notApplied) Unwrap() error { return e.err }

// heard turns a handler's panic into an error.
func heard(ctx context.Context, f func(context.Context, Config) error, c Config) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the handler panicked: %v", p)
		}
	}()
	return f(ctx, c)
}

// pushed is the configuration that came last over MQTT and was not looked at yet.
type pushed struct {
	mu  sync.Mutex
	raw []byte
}

// put replaces what is there; where it is kept for another try, only nothing.
func (p *pushed) put(raw []byte, again bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !again || p.raw == nil {
		p.raw = raw
	}
}

func (p *pushed) take() (raw []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	raw, p.raw = p.raw, nil
	return raw
}

// hearConfig hands on the configuration that came over MQTT, or asks for it.
func (r *run) hearConfig(ctx context.Context) error {
	raw := r.pushed.take()
	if raw == nil {
		return r.lookAtConfig(ctx)
	}
	err := r.takeConfig(ctx, raw)
	if _, again := errors.AsType[*notApplied](err); again {
		r.pushed.put(raw, true)
	}
	return err
}
