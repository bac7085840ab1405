package httpapi

import (
	"context"
	"net/http"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/truncate"
	"github.com/watchword-iot/watchword/server/enroll"
)

func viewSubject(s watchword.Subject) api.Subject {
	d := viewDevice(s)
	return api.Subject{
		ID: d.ID, Kind: d.Kind, Role: s.Role, State: d.State, Labels: d.Labels, Version: d.Version, Incarnation: d.Incarnation, Proof: d.Proof,
		CreatedAt: d.CreatedAt, ChangedAt: d.ChangedAt, Keys: d.Keys,
	}
}

type subjectOut struct {
	ETag string `header:"ETag"`
	Body api.Subject
}

func subjectAnswer(s watchword.Subject, err error) (*subjectOut, error) {
	if err != nil {
		return nil, err
	}
	return &subjectOut{ETag: etag(s.Version), Body: viewSubject(s)}, nil
}

// subjectOf returns a subject of that kind; one of another kind is not found. Code: not_found.
func (a *API) subjectOf(ctx context.Context, c *caller, kind watchword.Kind, id watchword.SubjectID) (watchword.Subject, error) {
	s, err := a.Registry.Subject(ctx, c.Tenant(), id)
	if err == nil && s.Kind != kind || watchword.CodeOf(err) == watchword.NotFound {
		return s, watchword.Refuse(watchword.NotFound, "%s %q not found", kind, truncate.LogText(string(id)))
	}
	return s, err
}

// pendingLink returns what is known of the unused link of a subject; nil for none. Code: unavailable.
func (a *API) pendingLink(ctx context.Context, c *caller, id watchword.SubjectID) (*api.PendingLink, error) {
	code, err := a.Enrollment.PendingCode(ctx, c.Tenant(), id, a.Now())
	switch watchword.CodeOf(err) {
	case "":
		return &api.PendingLink{CreatedBy: code.CreatedBy, ExpiresAt: code.Expires.UTC(), KeyEndsAt: optionalTime(code.KeyEnds)}, nil
	case watchword.CodeInvalid:
		return nil, nil
	}
	return nil, err
}

// create adds a subject; a repeated request with the same idempotency key returns it without its link.
func (a *API) create(ctx context.Context, c *caller, n enroll.NewSubject, lifetimes api.KeyLinkRequest, once string) (*subjectOut, error) {
	l, err := parseLifetimes(&lifetimes)
	if err != nil {
		return nil, err
	}
	n.TTL, n.KeyTTL = l.Link, l.Key
	s, link, err := a.Enrollment.Create(ctx, c.actor, n, a.Now())
	if watchword.CodeOf(err) == watchword.Conflict && once != "" {
		old, oerr := a.Registry.Subject(ctx, c.Tenant(), n.ID)
		if oerr == nil && old.Kind == n.Kind && old.Version == 1 && old.Role == n.Role && old.Labels.String() == n.Labels.String() && old.Proof == n.Proof {
			return subjectAnswer(old, nil)
		}
	}
	out, err := subjectAnswer(s, err)
	if err == nil {
		out.Body.Enrollment = viewLink(link)
	}
	return out, err
}

func (a *API) operatorRoutes() {
	type operatorCreateIn struct {
		Once string `header:"Idempotency-Key" maxLength:"128"`
		Body api.CreateOperatorRequest
	}
	register(a, operation{method: http.MethodPost, path: "/v1/operators", summary: "Add an operator, and return a one-time enrollment link", status: http.StatusCreated},
		func(ctx context.Context, c *caller, in *operatorCreateIn) (*subjectOut, error) {
			if err := checkWholeToken(c); err != nil {
				return nil, err
			}
			if err := a.Registry.CheckRole(ctx, c.Tenant(), in.Body.Role); err != nil {
				return nil, err
			}
			return a.create(ctx, c, enroll.NewSubject{ID: watchword.SubjectID(in.Body.ID), Kind: watchword.Operator, Role: in.Body.Role, Labels: in.Body.Labels}, api.KeyLinkRequest{TTL: in.Body.TTL, KeyTTL: in.Body.KeyTTL}, in.Once)
		})
	type operatorListOut struct{ Body api.OperatorList }
	register(a, operation{method: http.MethodGet, path: "/v1/operators", summary: "List operators by label and state, in order of id"},
		func(ctx context.Context, c *caller, in *subjectListIn) (*operatorListOut, error) {
			out := &operatorListOut{}
			rows, next, err := a.listSubjects(ctx, c, watchword.Operator, in, func(s watchword.Subject) any { return viewSubject(s) })
			out.Body.Operators, out.Body.NextPageToken = viewSubjects(rows), next
			return out, err
		})
	type roleIn struct {
		DevicePath
		Body api.RoleRequest
	}
	register(a, operation{method: http.MethodPut, path: "/v1/operators/{id}/role", summary: "Give an operator another role; live sessions follow before the answer"},
		func(ctx context.Context, c *caller, in *roleIn) (*subjectOut, error) {
			if err := checkWholeToken(c); err != nil {
				return nil, err
			}
			if _, err := a.subjectOf(ctx, c, watchword.Operator, in.ID); err != nil {
				return nil, err
			}
			return subjectAnswer(a.Registry.SetRole(ctx, c.actor, in.ID, in.Body.Role, a.Now()))
		})
	a.subjectRoutes("/v1/operators", watchword.Operator)
}

func (a *API) serviceRoutes() {
	type serviceCreateIn struct {
		Once string `header:"Idempotency-Key" maxLength:"128"`
		Body api.CreateServiceRequest
	}
	register(a, operation{method: http.MethodPost, path: "/v1/services", summary: "Add a service, and return a one-time enrollment link", status: http.StatusCreated},
		func(ctx context.Context, c *caller, in *serviceCreateIn) (*subjectOut, error) {
			return a.create(ctx, c, enroll.NewSubject{ID: watchword.SubjectID(in.Body.ID), Kind: watchword.Service, Labels: in.Body.Labels, Proof: in.Body.Proof}, api.KeyLinkRequest{TTL: in.Body.TTL, KeyTTL: in.Body.KeyTTL}, in.Once)
		})
	type serviceListOut struct{ Body api.ServiceList }
	register(a, operation{method: http.MethodGet, path: "/v1/services", summary: "List services by label and state, in order of id"},
		func(ctx context.Context, c *caller, in *subjectListIn) (*serviceListOut, error) {
			out := &serviceListOut{}
			rows, next, err := a.listSubjects(ctx, c, watchword.Service, in, func(s watchword.Subject) any { return viewSubject(s) })
			out.Body.Services, out.Body.NextPageToken = viewSubjects(rows), next
			return out, err
		})
	a.subjectRoutes("/v1/services", watchword.Service)
}

// subjectRoutes registers what can be done with one operator or one service.
func (a *API) subjectRoutes(base string, kind watchword.Kind) {
	what := "an operator"
	if kind == watchword.Service {
		what = "a service"
	}
	one := base + "/{id}"
	register(a, operation{method: http.MethodGet, path: one, summary: "Return " + what + " with its keys and live sessions"},
		func(ctx context.Context, c *caller, in *DevicePath) (*subjectOut, error) {
			out, err := subjectAnswer(a.subjectOf(ctx, c, kind, in.ID))
			if err == nil {
				out.Body.Sessions = viewSessions(a.Guard.SubjectSessions(c.Tenant(), in.ID), a.Now())
				out.Body.PendingLink, err = a.pendingLink(ctx, c, in.ID)
			}
			return out, err
		})
	type labelsIn struct {
		DevicePath
		Match string `header:"If-Match"`
		Body  api.LabelsRequest
	}
	register(a, operation{method: http.MethodPut, path: one + "/labels", summary: "Replace the labels of " + what + "; live sessions follow before the answer"},
		func(ctx context.Context, c *caller, in *labelsIn) (*subjectOut, error) {
			v, err := ifMatch(in.Match, 0)
			if err == nil {
				_, err = a.subjectOf(ctx, c, kind, in.ID)
			}
			if err != nil {
				return nil, err
			}
			return subjectAnswer(a.Registry.SetLabels(ctx, c.actor, in.ID, in.Body.Labels, v, a.Now()))
		})
	a.keyRoutesOf(one, kind, what)
	for action, act := range map[string]struct {
		summary string
		do      func(context.Context, *caller, *reasonIn) (watchword.Subject, error)
	}{
		"suspend": {"Suspend " + what + ": all its requests and connections are refused until it is resumed", func(ctx context.Context, c *caller, in *reasonIn) (watchword.Subject, error) {
			return a.Registry.Suspend(ctx, c.actor, in.ID, in.reason(), a.Now())
		}},
		"resume": {"Resume " + what + " that is suspended", func(ctx context.Context, c *caller, in *reasonIn) (watchword.Subject, error) {
			return a.Registry.Resume(ctx, c.actor, in.ID, a.Now())
		}},
		"revoke": {"Permanently revoke the keys and tokens of " + what + ", and close its sessions", func(ctx context.Context, c *caller, in *reasonIn) (watchword.Subject, error) {
			return a.Registry.Revoke(ctx, c.actor, in.ID, in.reason(), a.Now())
		}},
	} {
		register(a, operation{method: http.MethodPost, path: one + "/" + action, summary: act.summary},
			func(ctx context.Context, c *caller, in *reasonIn) (*subjectOut, error) {
				if _, err := a.subjectOf(ctx, c, kind, in.ID); err != nil {
					return nil, err
				}
				return subjectAnswer(act.do(ctx, c, in))
			})
	}
	register(a, operation{method: http.MethodDelete, path: one, summary: "Revoke " + what + " and retire its id", status: http.StatusNoContent},
		func(ctx context.Context, c *caller, in *DevicePath) (*noBody, error) {
			if _, err := a.subjectOf(ctx, c, kind, in.ID); err != nil {
				return nil, err
			}
			return nil, a.Registry.Delete(ctx, c.actor, in.ID, a.Now())
		})
}
