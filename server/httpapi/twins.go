package httpapi

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/twin"
)

func viewTwin(t twin.Twin) api.Twin {
	orNull := func(b []byte) json.RawMessage {
		if b == nil {
			return json.RawMessage("null")
		}
		return b
	}
	return api.Twin{
		Config: orNull(t.Config), ConfigVersion: t.ConfigVersion, ConfigAt: optionalTime(t.ConfigAt),
		State: orNull(t.State), StateAt: optionalTime(t.StateAt),
	}
}

// optionalTime returns t for JSON: nil for the zero time.
func optionalTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

type twinOut struct {
	ETag string `header:"ETag"`
	Body api.Twin
}

func (a *API) twinRoutes() {
	register(a, operation{method: http.MethodGet, path: "/v1/devices/{id}/twin", summary: "Get a device's desired configuration and reported state"},
		func(ctx context.Context, c *caller, in *DevicePath) (*twinOut, error) {
			if _, err := a.device(ctx, c, in.ID); err != nil {
				return nil, err
			}
			t, err := a.Twins.Twin(ctx, c.Tenant(), in.ID)
			if err != nil {
				return nil, err
			}
			return &twinOut{etag(t.ConfigVersion), viewTwin(t)}, nil
		})

	type configIn struct {
		DevicePath
		Match   string `header:"If-Match"`
		Body    map[string]any
		RawBody []byte
	}
	register(a, operation{method: http.MethodPut, path: "/v1/devices/{id}/config", summary: "Set a device's desired configuration: a JSON object up to 32 KiB", maxBody: watchword.MaxDocument},
		func(ctx context.Context, c *caller, in *configIn) (*twinOut, error) {
			if _, err := a.device(ctx, c, in.ID); err != nil {
				return nil, err
			}
			v, err := ifMatch(in.Match, -1)
			if err != nil {
				return nil, err
			}
			doc, err := compactObject("config", in.RawBody)
			if err != nil {
				return nil, err
			}
			// Checked before it is stored: a configuration that no device accepts must not replace
			// the current one.
			if _, err := a.Commands.SignConfig(c.Tenant(), in.ID, 1, doc); err != nil {
				return nil, fieldError("config", err, "must be one JSON object, no member twice, at most 7 deep")
			}
			e := c.actor.DoneEntry(audit.ConfigSet, string(in.ID), a.Now(), map[string]string{"sha256": jose.Hash(doc)})
			t, err := a.Twins.SetConfig(ctx, c.Tenant(), in.ID, doc, v, a.Now(), e, func(t twin.Twin) error {
				signed, err := a.Commands.SignConfig(c.Tenant(), in.ID, t.ConfigVersion, doc)
				if err != nil {
					return err
				}
				d := &bus.Document{Name: "devices/" + string(in.ID) + "/config", ContentType: "application/jose", Payload: []byte(signed)}
				if err := a.Bus.Tenant(c.Tenant()).PublishDocument(d, nil); err != nil {
					a.Log.WarnContext(ctx, "a configuration that is set is not stored for an offline session", slog.String("device", string(in.ID)), slog.Any("err", err))
				}
				return nil
			})
			if err != nil {
				return nil, err
			}
			return &twinOut{etag(t.ConfigVersion), viewTwin(t)}, nil
		})
}
