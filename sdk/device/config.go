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

// Config is the desired configuration of the device: one JSON object, signed by the server. Its version only grows within
// an epoch, and its epoch only grows.
type Config struct {
	Epoch   int64 // as of commands; 1 if the server states none
	Version int64
	Raw     []byte
}

// Into decodes the configuration into a value.
func (c Config) Into(v any) error { return jsonv2.Unmarshal(c.Raw, v) }

// OnConfig registers the handler of new configurations. It is called once for each version, and again later after an error.
// In [Device.Run] it runs concurrently with commands and functions, never twice at once: while it runs, only the newest of
// the configurations that arrive is kept. Its context ends with the cause [ErrStopping] when Run ends.
func (d *Device) OnConfig(f func(context.Context, Config) error) {
	d.handlers.mu.Lock()
	defer d.handlers.mu.Unlock()
	d.handlers.config = f
}

// fetchConfig fetches the configuration and passes a new one to the handler.
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

// wantsConfig reports whether a handler of configurations is registered.
func (d *Device) wantsConfig() bool {
	d.handlers.mu.RLock()
	defer d.handlers.mu.RUnlock()
	return d.handlers.config != nil
}

// applyConfig verifies a signed configuration and passes a new one to the handler. It is no error if the configuration is
// already known.
func (d *Device) applyConfig(ctx context.Context, raw []byte) error {
	trust := d.trust.Load()
	c, err := token.VerifyConfig(string(raw), token.NewKeySet(trust.Command...), token.ClaimedIssuer(string(raw), trust.IssuerNames()), d.identity.ID, d.now())
	if err != nil {
		return err
	}
	epoch := d.trust.Load().Epoch
	switch {
	case c.Epoch > epoch: // only the root can restart the versions
		return watchword.Refuse(watchword.BundleInvalid, "the epoch of the configuration is higher than that of the trust bundle")
	case c.Epoch == 0:
		c.Epoch = 1 // the server states no epoch: treated as the lowest
	case c.Epoch < epoch:
		return watchword.Refuse(watchword.CommandStale, "the epoch of the configuration is lower than that of the trust bundle")
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

// knownConfig returns epoch and version of the configuration that was last passed to the handler. They are stored as
// numbers, because the key that signed it may no longer be valid.
func (d *Device) knownConfig() position {
	c := d.counters.values()
	return position{c.ConfigEpoch, c.ConfigVersion}
}

// restoreConfig writes the known configuration to the folder if it is missing there.
func (d *Device) restoreConfig(raw []byte, number position) error {
	if file, _ := d.configInFolder(); file == number {
		return nil
	}
	return durable.WriteFile(d.path(configFile), raw, 0o600)
}

// configInFolder returns epoch and version of the configuration in the folder; zero if there is none that can be trusted.
// signed reports whether a currently valid key has signed it; otherwise a key that is no longer valid may have.
func (d *Device) configInFolder() (number position, signed bool) {
	raw, err := durable.ReadTrusted(d.path(configFile), 2*watchword.MaxDocument)
	if err != nil {
		return position{}, false
	}
	// It was valid when it was received, so its expiry is not checked.
	trust := d.trust.Load()
	c, err := token.VerifyConfig(string(raw), token.NewKeySet(trust.Command...), token.ClaimedIssuer(string(raw), trust.IssuerNames()), d.identity.ID, time.Time{})
	signed = err == nil
	if watchword.CodeOf(err) == watchword.KeyUnknown {
		c, err = token.ReadConfig(string(raw))
	}
	if err != nil {
		return position{}, false
	}
	return configPosition(c), signed
}

// notApplied is the error of a handler of configurations; the call may be repeated.
type notApplied struct{ err error }

func (e *notApplied) Error() string { return "the configuration was not applied: " + e.err.Error() }
func (e *notApplied) Unwrap() error { return e.err }

// callConfigHandler calls f and converts a panic into an error.
func callConfigHandler(ctx context.Context, f func(context.Context, Config) error, c Config) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the handler panicked: %v", p)
		}
	}()
	return f(ctx, c)
}

// pushedConfig is the last configuration that was received over MQTT and is not processed yet.
type pushedConfig struct {
	mu  sync.Mutex
	raw []byte
}

// put replaces the stored configuration; with again set, for another attempt, only if none is stored.
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

// updateConfig processes the configuration that was received over MQTT, or else fetches it.
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
