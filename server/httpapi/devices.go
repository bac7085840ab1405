package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/truncate"
	"github.com/watchword-iot/watchword/server/enroll"
	"github.com/watchword-iot/watchword/server/twin"
)

func viewDevice(s watchword.Subject) api.Device {
	d := api.Device{
		ID: s.ID, Kind: s.Kind, State: s.State, Labels: s.Labels, Name: s.Name, Version: s.Version, Incarnation: s.Incarnation, Proof: s.Proof,
		CreatedAt: s.Created.UTC(), ChangedAt: s.Changed.UTC(),
	}
	d.LastSeenAt = optionalTime(s.LastSeen)
	if d.Labels == nil {
		d.Labels = watchword.Labels{}
	}
	d.Keys = viewKeys(s.Keys)
	return d
}

func viewKeys(keys []watchword.Key) (out []api.DeviceKey) {
	for _, k := range keys {
		out = append(out, api.DeviceKey{
			ID: k.ID, Purpose: k.Purpose, State: k.State, Name: k.Name, AddedAt: k.Added.UTC(), EndsAt: optionalTime(k.Ends), Retired: optionalTime(k.Retired), JWK: k.JWK,
		})
	}
	return out
}

func viewLink(l enroll.Link) *api.Enrollment {
	return &api.Enrollment{Link: l.URL, Code: l.Code, Pin: l.Pin, ExpiresAt: l.Expires.UTC(), KeyEndsAt: optionalTime(l.KeyEnds)}
}

func viewFunctions(fs []twin.Function) []api.Function {
	out := make([]api.Function, len(fs))
	for i, f := range fs {
		out[i] = api.Function{Name: f.Name, Schema: f.Schema}
	}
	return out
}

type deviceOut struct {
	ETag string `header:"ETag"`
	Body api.Device
}

func deviceAnswer(s watchword.Subject, err error) (*deviceOut, error) {
	if err != nil {
		return nil, err
	}
	return &deviceOut{ETag: etag(s.Version), Body: viewDevice(s)}, nil
}

type DevicePath struct {
	ID watchword.SubjectID `path:"id" maxLength:"64"`
}

type reasonIn struct {
	DevicePath
	Body *api.ReasonRequest `required:"false"`
}

func (in *reasonIn) reason() string {
	if in.Body == nil {
		return ""
	}
	return in.Body.Reason
}

func (a *API) deviceRoutes() {
	type deviceCreateIn struct {
		Once string `header:"Idempotency-Key" maxLength:"128"`
		Body api.CreateDeviceRequest
	}
	register(a, operation{method: http.MethodPost, path: "/v1/devices", summary: "Add a device and create its one-time enrollment link", status: http.StatusCreated},
		func(ctx context.Context, c *caller, in *deviceCreateIn) (*deviceOut, error) {
			ttl, err := parseDuration("ttl", in.Body.TTL)
			if err != nil {
				return nil, err
			}
			s, link, err := a.Enrollment.Create(ctx, c.actor, enroll.NewSubject{
				ID: watchword.SubjectID(in.Body.ID), Kind: watchword.Device, Labels: in.Body.Labels, Name: in.Body.Name, Proof: in.Body.Proof, TTL: ttl,
			}, a.Now())
			if watchword.CodeOf(err) == watchword.Conflict && in.Once != "" {
				// The id makes creation idempotent: the same request again returns the device that
				// the first one created.
				old, oerr := a.Registry.Subject(ctx, c.Tenant(), watchword.SubjectID(in.Body.ID))
				if oerr == nil && old.Version == 1 && old.Labels.String() == watchword.Labels(in.Body.Labels).String() && old.Proof == in.Body.Proof && old.Name == in.Body.Name {
					return deviceAnswer(old, nil)
				}
			}
			out, err := deviceAnswer(s, err)
			if err == nil {
				out.Body.Enrollment = viewLink(link)
			}
			return out, err
		})

	type deviceListOut struct{ Body api.DeviceList }
	register(a, operation{method: http.MethodGet, path: "/v1/devices", summary: "List devices by label, state and text, in an order of choice"},
		func(ctx context.Context, c *caller, in *subjectListIn) (*deviceListOut, error) {
			rows, next, err := a.listSubjects(ctx, c, watchword.Device, in, func(s watchword.Subject) any { return viewDevice(s) })
			if err != nil {
				return nil, err
			}
			out := &deviceListOut{}
			out.Body.Devices, out.Body.NextPageToken = []api.Device{}, next
			ids := make([]watchword.SubjectID, len(rows))
			for i, s := range rows {
				ids[i] = s.ID
			}
			for i, online := range a.Guard.Online(c.Tenant(), ids) {
				d := viewDevice(rows[i])
				d.Online = online
				out.Body.Devices = append(out.Body.Devices, d)
			}
			return out, nil
		})

	register(a, operation{method: http.MethodGet, path: "/v1/devices/{id}", summary: "Get a device with its keys, functions and live sessions"},
		func(ctx context.Context, c *caller, in *DevicePath) (*deviceOut, error) {
			s, err := a.device(ctx, c, in.ID)
			if err != nil {
				return nil, err
			}
			out, _ := deviceAnswer(s, nil)
			fs, err := a.Twins.Functions(ctx, c.Tenant(), in.ID)
			if err != nil {
				return nil, err
			}
			out.Body.Functions = viewFunctions(fs)
			out.Body.Sessions = viewSessions(a.Guard.SubjectSessions(c.Tenant(), in.ID), a.Now())
			out.Body.PendingLink, err = a.pendingLink(ctx, c, in.ID)
			return out, err
		})

	type deviceLabelsIn struct {
		DevicePath
		Match string `header:"If-Match"`
		Body  api.LabelsRequest
	}
	register(a, operation{method: http.MethodPut, path: "/v1/devices/{id}/labels", summary: "Replace a device's labels; the change is effective for live sessions at once"},
		func(ctx context.Context, c *caller, in *deviceLabelsIn) (*deviceOut, error) {
			v, err := ifMatch(in.Match, 0)
			if err != nil {
				return nil, err
			}
			if _, err := a.device(ctx, c, in.ID); err != nil {
				return nil, err
			}
			return deviceAnswer(a.Registry.SetLabels(ctx, c.actor, in.ID, in.Body.Labels, v, a.Now()))
		})

	type deviceNameIn struct {
		DevicePath
		Body api.NameRequest
	}
	register(a, operation{method: http.MethodPut, path: "/v1/devices/{id}/name", summary: "Set what people call a device; nothing is decided by it"},
		func(ctx context.Context, c *caller, in *deviceNameIn) (*deviceOut, error) {
			if _, err := a.device(ctx, c, in.ID); err != nil {
				return nil, err
			}
			return deviceAnswer(a.Registry.SetName(ctx, c.actor, in.ID, in.Body.Name, a.Now()))
		})

	type deviceProofIn struct {
		DevicePath
		Body api.ProofRequest
	}
	register(a, operation{method: http.MethodPut, path: "/v1/devices/{id}/proof", summary: "Set whether the device must prove its key with every request; the change is effective for live sessions at once"},
		func(ctx context.Context, c *caller, in *deviceProofIn) (*deviceOut, error) {
			if _, err := a.device(ctx, c, in.ID); err != nil {
				return nil, err
			}
			return deviceAnswer(a.Registry.SetProof(ctx, c.actor, in.ID, in.Body.Proof, a.Now()))
		})

	type deviceLinkIn struct {
		DevicePath
		Body *api.LinkRequest `required:"false"`
	}
	type deviceLinkOut struct{ Body *api.Enrollment }
	register(a, operation{method: http.MethodPost, path: "/v1/devices/{id}/link", summary: "Create a new one-time link for a device that is new or revoked; the previous link becomes invalid"},
		func(ctx context.Context, c *caller, in *deviceLinkIn) (*deviceLinkOut, error) {
			var ttl time.Duration
			if in.Body != nil {
				var err error
				if ttl, err = parseDuration("ttl", in.Body.TTL); err != nil {
					return nil, err
				}
			}
			if _, err := a.device(ctx, c, in.ID); err != nil {
				return nil, err
			}
			l, err := a.Enrollment.CreateLink(ctx, c.actor, in.ID, enroll.Lifetimes{Link: ttl}, a.Now())
			if err != nil {
				return nil, err
			}
			return &deviceLinkOut{viewLink(l)}, nil
		})

	register(a, operation{method: http.MethodPost, path: "/v1/devices/{id}/suspend", summary: "Suspend a device: all its requests and connections are refused until it is resumed"},
		func(ctx context.Context, c *caller, in *reasonIn) (*deviceOut, error) {
			if _, err := a.device(ctx, c, in.ID); err != nil {
				return nil, err
			}
			return deviceAnswer(a.Registry.Suspend(ctx, c.actor, in.ID, in.reason(), a.Now()))
		})
	register(a, operation{method: http.MethodPost, path: "/v1/devices/{id}/resume", summary: "Resume a suspended device"},
		func(ctx context.Context, c *caller, in *reasonIn) (*deviceOut, error) {
			if _, err := a.device(ctx, c, in.ID); err != nil {
				return nil, err
			}
			return deviceAnswer(a.Registry.Resume(ctx, c.actor, in.ID, a.Now()))
		})
	register(a, operation{method: http.MethodPost, path: "/v1/devices/{id}/revoke", summary: "Permanently revoke a device's keys and tokens, and close its sessions"},
		func(ctx context.Context, c *caller, in *reasonIn) (*deviceOut, error) {
			if _, err := a.device(ctx, c, in.ID); err != nil {
				return nil, err
			}
			return deviceAnswer(a.Registry.Revoke(ctx, c.actor, in.ID, in.reason(), a.Now()))
		})
	register(a, operation{method: http.MethodPost, path: "/v1/devices/{id}/forget", summary: "Make the id of a deleted device free: a device added with it has the next incarnation", status: http.StatusNoContent},
		func(ctx context.Context, c *caller, in *DevicePath) (*noBody, error) {
			return nil, a.Registry.ForgetDevice(ctx, c.actor, in.ID, a.Now())
		})
	register(a, operation{method: http.MethodDelete, path: "/v1/devices/{id}", summary: "Revoke and delete a device; its id is free after POST /v1/devices/{id}/forget only", status: http.StatusNoContent},
		func(ctx context.Context, c *caller, in *DevicePath) (*noBody, error) {
			if _, err := a.device(ctx, c, in.ID); err != nil {
				return nil, err
			}
			return nil, a.Registry.Delete(ctx, c.actor, in.ID, a.Now())
		})
}

// device returns a subject of kind device. Operators and services have other paths and are not
// found here. Code: not_found.
func (a *API) device(ctx context.Context, c *caller, id watchword.SubjectID) (watchword.Subject, error) {
	s, err := a.Registry.Subject(ctx, c.Tenant(), id)
	if err == nil && s.Kind != watchword.Device || watchword.CodeOf(err) == watchword.NotFound {
		return s, watchword.Refuse(watchword.NotFound, "device %q not found", truncate.LogText(string(id)))
	}
	return s, err
}

// parseDuration parses a duration member of a body; empty is 0. Code: bad_request, with Field.
func parseDuration(field, s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, watchword.RefuseField(field, "must be a duration such as 90s or 24h")
	}
	return d, nil
}
