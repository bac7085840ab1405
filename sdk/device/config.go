package device

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/token"
)

// Config is what is wanted of the device: one JSON object, signed by the server,
// whose version only grows within an epoch, and whose epoch only grows.
type Config struct {
	Epoch   int64 // as of commands; 1 from a server that does not say
	Version int64
	Raw     []byte
}

// Into reads the configuration into a value.
func (c Config) Into(v any) error { return jsonv2.Unmarshal(c.Raw, v) }

// OnConfig registers the handler of new configurations. It is called once for each
// version; after an error, again later. In [Device.Run] it runs beside commands and functions, and never
// twice at once: where it hangs, newer configurations wait, of which the newest counts. Its context ends
// with [ErrStopping] as the cause where Run ends.
func (d *Device) OnConfig(f func(context.Context, Config) error) {
	d.handlers.mu.Lock()
	defer d.handlers.mu.Unlock()
	d.handlers.config = f
}

// fetchConfig asks for the wanted configuration and hands a new one on.
func (d *Device) fetchConfig(ctx context.Context) error {
	if !d.wantsConfig() {
		return nil
	}
	r := rest.Request{Method: http.MethodGet, Path: "/v1/self/config"}
	if tag := d.configETag.Load(); tag != nil {
		r.Header = map[string]string{"If-None-Match": *tag}
	}
	a, err := d.client.Do(ctx, r)
	if watchword.CodeOf(err) == watchword.NotFound {
		return nil
	}
	if err != nil || a.Status == http.StatusNotModified {
		return err
	}
	if err := d.applyConfig(ctx, a.Body); err != nil {
		return err
	}
	tag := a.Header.Get("ETag")
	if d.configETag.Store(&tag); tag == "" {
		d.configETag.Store(nil)
	}
	return nil
}

// wantsConfig reports whether anybody hears of configurations.
func (d *Device) wantsConfig() bool {
	d.handlers.mu.RLock()
	defer d.handlers.mu.RUnlock()
	return d.handlers.config != nil
}

// applyConfig checks a signed configuration and hands a new one on. The one that is
// known already is not an error.
func (d *Device) applyConfig(ctx context.Context, raw []byte) error {
	c, err := token.VerifyConfig(string(raw), token.NewKeySet(d.trust.Load().Command...), d.identity.Issuer, d.identity.ID, d.now())
	if err != nil {
		return err
	}
	epoch := d.trust.Load().Epoch
	switch {
	case c.Epoch > epoch: // only the root's word starts the versions anew
		return watchword.Refuse(watchword.BundleInvalid, "the configuration is of a later epoch than the trust bundle")
	case c.Epoch == 0:
		c.Epoch = 1 // of a server that does not say: no later than any that it could say
	case c.Epoch < epoch:
		return watchword.Refuse(watchword.CommandStale, "the configuration is from before the server lost its counters")
	}
	number, known := configPosition(c), d.knownConfig()
	if number == known {
		return d.restoreConfig(raw, number)
	}
	if !number.after(known) {
		return watchword.Refuse(watchword.CommandStale, "the configuration is version %d of epoch %d, and %d of epoch %d is known", c.Version, c.Epoch, known.Seq, known.Epoch)
	}
	d.handlers.mu.RLock()
	f := d.handlers.config
	d.handlers.mu.RUnlock()
	if f == nil {
		return nil
	}
	if err := callConfigHandler(ctx, f, Config{c.Epoch, c.Version, c.Document}); err != nil {
		return &notApplied{err}
	}
	if err := d.counters.update(func(c *counters) { c.ConfigEpoch, c.ConfigVersion = number.Epoch, number.Seq }); err != nil {
		return err
	}
	return durable.WriteFile(d.path(configFile), raw, 0o600)
}

func configPosition(c token.Config) position { return position{max(c.Epoch, 1), c.Version} }

// knownConfig returns the epoch and version that were handed on last. They are kept as numbers: what
// signed the configuration then may not count any more.
func (d *Device) knownConfig() position {
	c := d.counters.values()
	return position{c.ConfigEpoch, c.ConfigVersion}
}

// restoreConfig writes the configuration that is known where the folder does not have it any more.
func (d *Device) restoreConfig(raw []byte, number position) error {
	if file, _ := d.configInFolder(); file == number {
		return nil
	}
	return durable.WriteFile(d.path(configFile), raw, 0o600)
}

// configInFolder returns epoch and version of the configuration in the folder; zero where there is
// none, or none that can be believed. signed says that a valid key has signed it; else a key that
// does not count any more may have.
func (d *Device) configInFolder() (number position, signed bool) {
	raw, err := durable.ReadTrusted(d.path(configFile), 2*watchword.MaxDocument)
	if err != nil {
		return position{}, false
	}
	// It was in time when it came.
	c, err := token.VerifyConfig(string(raw), token.NewKeySet(d.trust.Load().Command...), d.identity.Issuer, d.identity.ID, time.Time{})
	signed = err == nil
	if watchword.CodeOf(err) == watchword.KeyUnknown {
		c, err = token.ReadConfig(string(raw))
	}
	if err != nil {
		return position{}, false
	}
	return configPosition(c), signed
}

// notApplied is the error of a handler of configurations: another try may do better.
type notApplied struct{ err error }

func (e *notApplied) Error() string { return "the configuration was not applied: " + e.err.Error() }
func (e *notApplied) Unwrap() error { return e.err }

// callConfigHandler turns a handler's panic into an error.
func callConfigHandler(ctx context.Context, f func(context.Context, Config) error, c Config) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the handler panicked: %v", p)
		}
	}()
	return f(ctx, c)
}

// pushedConfig is the configuration that came last over MQTT and was not looked at yet.
type pushedConfig struct {
	mu  sync.Mutex
	raw []byte
}

// put replaces what is there; where it is kept for another try, only nothing.
func (p *pushedConfig) put(raw []byte, again bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !again || p.raw == nil {
		p.raw = raw
	}
}

func (p *pushedConfig) take() (raw []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	raw, p.raw = p.raw, nil
	return raw
}

// updateConfig hands on the configuration that came over MQTT, or asks for it.
func (r *run) updateConfig(ctx context.Context) error {
	raw := r.pushedConfig.take()
	if raw == nil {
		return r.fetchConfig(ctx)
	}
	err := r.applyConfig(ctx, raw)
	if _, again := errors.AsType[*notApplied](err); again {
		r.pushedConfig.put(raw, true)
	}
	return err
}
