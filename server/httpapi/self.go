package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/internal/truncate"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/internal/schema"
	"github.com/watchword-iot/watchword/server/twin"
	"github.com/watchword-iot/watchword/token"
)

func viewPermissions(ps []watchword.Permission) ([]json.RawMessage, error) {
	out := make([]json.RawMessage, len(ps))
	for i, p := range ps {
		b, err := p.MarshalJSON()
		if err != nil {
			return nil, err
		}
		out[i] = b
	}
	return out, nil
}

func (a *API) selfRoutes() {
	a.selfKeyRoutes()
	type selfOut struct{ Body api.Self }
	register(a, operation{method: http.MethodGet, path: "/v1/self", summary: "Get the caller's subject, token and permissions"},
		func(ctx context.Context, c *caller, _ *noBody) (*selfOut, error) {
			s, err := a.Registry.Subject(ctx, c.Tenant(), c.Subject())
			if err != nil {
				return nil, err
			}
			d := viewDevice(s)
			out := &selfOut{api.Self{
				ID: s.ID, Kind: s.Kind, Role: s.Role, State: s.State, Labels: d.Labels, Incarnation: s.Incarnation, Issuer: a.Auth.Issuer(c.Tenant()),
				Token: api.SelfToken{JTI: c.JTI(), ExpiresAt: c.Expires().UTC(), Key: c.Key()},
			}}
			if k, ok := s.SignKey(c.Key(), a.Now()); ok {
				out.Body.Token.KeyEndsAt = optionalTime(k.Ends)
			}
			if out.Body.Permissions.Perm, err = viewPermissions(c.Policy().Perm()); err != nil {
				return nil, err
			}
			out.Body.Permissions.Deny, err = viewPermissions(c.Policy().Deny())
			return out, err
		})

	a.handle(route{pattern: "POST /v1/self/events/{stream...}", maxBody: watchword.MaxDocument}, a.publishEvent)
	a.describe(http.MethodPost, "/v1/self/events/{stream}", "Publish an event: any body up to 32 KiB, with its content type", nil)
	a.handle(route{pattern: "PUT /v1/self/state", maxBody: watchword.MaxDocument, contentType: "application/json"}, a.reportState)
	a.describe(http.MethodPut, "/v1/self/state", "Report the device's state: a JSON object up to 32 KiB", nil)
	a.handle(route{pattern: "GET /v1/self/state"}, a.selfState)
	a.describe(http.MethodGet, "/v1/self/state", "Get the last reported state", nil)
	a.handle(route{pattern: "PUT /v1/self/trust", maxBody: watchword.MaxBundle}, a.receiveBundle)
	a.describe(http.MethodPut, "/v1/self/trust", "Hand in the trust bundle that this subject has, if it is of a higher epoch than the server's: another server was restored from a backup", nil)
	a.handle(route{pattern: "GET /v1/self/config"}, a.selfConfig)
	a.describe(http.MethodGet, "/v1/self/config", "Get the desired configuration, signed", nil)

	type functions struct{ Body api.FunctionList }
	register(a, operation{method: http.MethodPut, path: "/v1/self/functions", summary: "Announce the functions of this device", status: http.StatusNoContent, maxBody: 96 << 10},
		func(ctx context.Context, c *caller, in *functions) (*noBody, error) {
			fs, err := a.parseFunctions(ctx, in.Body.Functions)
			if err != nil {
				return nil, err
			}
			return nil, a.Twins.SetFunctions(ctx, c.Tenant(), c.Versions(), c.Subject(), fs, a.Now())
		})
	register(a, operation{method: http.MethodGet, path: "/v1/self/functions", summary: "Get the functions that this device has announced"},
		func(ctx context.Context, c *caller, _ *noBody) (*functions, error) {
			fs, err := a.Twins.Functions(ctx, c.Tenant(), c.Subject())
			out := &functions{}
			out.Body.Functions = viewFunctions(fs)
			return out, err
		})
}

// maxObjects limits the JSON objects of all schemas of one announcement, since compiling takes
// time.
const maxObjects = 4096

// functionField adds to a schema error the function that it belongs to, so that a device can
// announce the others.
func functionField(err error, name string) error {
	if e, ok := errors.AsType[*watchword.Error](err); ok {
		of := *e
		of.Field, of.Detail = "functions."+name, "schema: "+e.Detail
		return &of
	}
	return err
}

// fieldError names a member whose value no device would accept in a signed document.
func fieldError(field string, err error, must string) error {
	switch code := watchword.CodeOf(err); code {
	case watchword.BadRequest, watchword.TooLarge:
		return &watchword.Error{Code: code, Field: field, Detail: must, Err: err}
	}
	return err
}

// parseFunctions parses and checks the functions that a device announces. Schemas are compiled
// under [Dependencies.SchemaSlots]. Codes: bad_request; too_large; busy.
func (a *API) parseFunctions(ctx context.Context, in []api.Function) ([]twin.Function, error) {
	seen, objects := map[string]bool{}, 0
	out := make([]twin.Function, len(in))
	for i, f := range in {
		if err := watchword.CheckName("functions.name", f.Name); err != nil {
			return nil, err
		}
		if seen[f.Name] {
			return nil, watchword.RefuseField("functions", "each function must be given once")
		}
		seen[f.Name] = true
		out[i] = twin.Function{Name: f.Name, Schema: f.Schema}
		if len(f.Schema) == 0 || string(f.Schema) == "null" {
			out[i].Schema = nil
			continue
		}
		var compiled *schema.Schema
		if err := a.SchemaSlots.Do(ctx, func() (err error) {
			if compiled, err = command.CompileSchema(f.Schema); err != nil {
				return functionField(err, f.Name)
			}
			return nil
		}); err != nil {
			return nil, err
		}
		if objects += compiled.Objects(); objects > maxObjects {
			return nil, watchword.RefuseField("functions", "all schemas together must have at most 4096 objects")
		}
	}
	return out, nil
}

func selfTopic(c *caller, rest string) string { return "devices/" + string(c.Subject()) + "/" + rest }

func (a *API) publishEvent(w http.ResponseWriter, r *http.Request, c *caller) error {
	stream := r.PathValue("stream")
	for segment := range strings.SplitSeq(stream, "/") {
		if err := watchword.CheckName("stream", segment); err != nil {
			return err
		}
	}
	if err := c.Publish(selfTopic(c, "events/"+stream)).Err(); err != nil {
		return err
	}
	now := a.Now()
	// Rates use the monotonic clock, since MQTT connections of the same subject wait by it for the
	// same rate.
	if err := a.PublishRates.Take(quota.Key{Tenant: c.Tenant(), Subject: c.Subject()}, 1, time.Now()); err != nil {
		return err
	}
	e := &bus.Event{Device: c.Subject(), Stream: stream, ContentType: strings.Clone(truncate.LogText(r.Header.Get("Content-Type"))), At: now, Data: c.body}
	d := &bus.Document{Name: e.Topic(), ContentType: e.ContentType, Payload: c.body}
	if err := a.Bus.Tenant(c.Tenant()).PublishDocument(d, e); err != nil {
		return err
	}
	writeAnswer(w, http.StatusAccepted, api.PublishResponse{ID: e.ID()})
	return nil
}

// compactObject checks that b is one strict JSON object and returns it without white space. Code:
// bad_request, with Field.
func compactObject(field string, b []byte) ([]byte, error) {
	if err := jose.Walk(b, func(string, jsontext.Value) error { return nil }); err != nil {
		return nil, &watchword.Error{Code: watchword.BadRequest, Field: field, Detail: "must be one JSON object, no member twice, at most 8 deep", Err: err}
	}
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		return nil, watchword.RefuseField(field, "must be one JSON object")
	}
	return out.Bytes(), nil
}

func (a *API) reportState(w http.ResponseWriter, r *http.Request, c *caller) error {
	if err := c.Publish(selfTopic(c, "state")).Err(); err != nil {
		return err
	}
	doc, err := compactObject("state", c.body)
	if err != nil {
		return err
	}
	// Rates use the monotonic clock, as in publishEvent.
	if err := a.ControlRates.Take(quota.Key{Tenant: c.Tenant(), Subject: c.Subject()}, twin.ReportCost, time.Now()); err != nil {
		return err
	}
	publish := func() error {
		return a.Bus.Tenant(c.Tenant()).PublishDocument(&bus.Document{Name: selfTopic(c, "state"), ContentType: "application/json", Payload: doc}, nil)
	}
	if err := a.Twins.ReportState(r.Context(), c.Tenant(), c.Versions(), c.Subject(), doc, a.Now(), publish); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// receiveBundle takes the trust bundle of a subject: see [keyring.Rotator.ReceiveBundle].
func (a *API) receiveBundle(w http.ResponseWriter, r *http.Request, c *caller) error {
	if err := a.ControlRates.Take(quota.Key{Tenant: c.Tenant(), Subject: c.Subject()}, twin.ReportCost, time.Now()); err != nil {
		return err
	}
	if err := a.Keys.ReceiveBundle(r.Context(), c.actor.Actor, string(bytes.TrimSpace(c.body)), a.Now()); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (a *API) selfState(w http.ResponseWriter, r *http.Request, c *caller) error {
	t, err := a.Twins.Twin(r.Context(), c.Tenant(), c.Subject())
	if err != nil {
		return err
	}
	if t.State == nil {
		return watchword.Refuse(watchword.NotFound, "the device has not reported its state yet")
	}
	w.Header().Set("ETag", etag(t.StateVersion))
	writeAnswer(w, http.StatusOK, json.RawMessage(t.State))
	return nil
}

func (a *API) selfConfig(w http.ResponseWriter, r *http.Request, c *caller) error {
	if err := c.Authority.Subscribe(selfTopic(c, "config")).Err(); err != nil {
		return err
	}
	t, err := a.Twins.Twin(r.Context(), c.Tenant(), c.Subject())
	if err != nil {
		return err
	}
	if t.Config == nil {
		return watchword.Refuse(watchword.NotFound, "no configuration has been set yet")
	}
	tag := fmt.Sprintf(`"%d.%d"`, a.Commands.Epoch(), t.ConfigVersion)
	w.Header().Set("ETag", tag)
	w.Header().Set("Cache-Control", "no-cache")
	known := r.Header.Get("If-None-Match")
	// Devices that do not know epochs send the version alone; it is of epoch 1.
	if known == tag || a.Commands.Epoch() == 1 && known == etag(t.ConfigVersion) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	jws, err := a.Commands.SignConfig(c.Tenant(), c.Subject(), t.ConfigVersion, t.Config)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/"+token.TypConfig)
	_, _ = w.Write([]byte(jws)) // the error means that the client has closed the connection
	return nil
}
