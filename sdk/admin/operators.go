package admin

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/rest"
)

const (
	operatorsPath = "/v1/operators"
	servicesPath  = "/v1/services"
	selfPath      = "/v1/self"
)

// Subjects manages the operators or the services of a tenant; see [Client.Operators] and [Client.Services]. It is safe for
// concurrent use.
type Subjects struct {
	c    *Client
	base string
}

// Operators manages operators.
func (c *Client) Operators() Subjects { return Subjects{c, operatorsPath} }

// Services manages services: back ends, which have no sealing key and announce no functions.
func (c *Client) Services() Subjects { return Subjects{c, servicesPath} }

// CreateOperator adds an operator and returns its one-time link. role is a built-in role or one that a policy defines
// (docs/policies.md). ttl is the lifetime of the link; 0 means 24 h. Codes: bad_request, conflict, denied, exceeds_own.
func (c *Client) CreateOperator(ctx context.Context, id watchword.SubjectID, role string, ttl time.Duration) (s api.Subject, err error) {
	in := api.CreateOperatorRequest{ID: string(id), Role: role}
	if ttl > 0 {
		in.TTL = ttl.String()
	}
	return c.CreateOperatorWith(ctx, in)
}

// CreateOperatorWith is [Client.CreateOperator] with everything that the request may state, such as the lifetime of the key.
func (c *Client) CreateOperatorWith(ctx context.Context, in api.CreateOperatorRequest) (s api.Subject, err error) {
	err = c.call(ctx, http.MethodPost, operatorsPath, nil, in, &s)
	return s, err
}

// CreateService adds a service and returns its one-time link. ttl is the lifetime of the link; 0 means 24 h. Codes:
// bad_request, conflict, token_too_large, denied, exceeds_own.
func (c *Client) CreateService(ctx context.Context, id watchword.SubjectID, l watchword.Labels, ttl time.Duration) (s api.Subject, err error) {
	in := api.CreateServiceRequest{ID: string(id), Labels: l}
	if ttl > 0 {
		in.TTL = ttl.String()
	}
	return c.CreateServiceWith(ctx, in)
}

// CreateServiceWith is [Client.CreateService] with everything that the request may state, such as the lifetime of the key.
func (c *Client) CreateServiceWith(ctx context.Context, in api.CreateServiceRequest) (s api.Subject, err error) {
	err = c.call(ctx, http.MethodPost, servicesPath, nil, in, &s)
	return s, err
}

// SetRole gives an operator another role. The change is effective for its live sessions when SetRole returns. Codes:
// bad_request for an unknown role, not_found, conflict for the last owner, exceeds_own.
func (c *Client) SetRole(ctx context.Context, id watchword.SubjectID, role string) (s api.Subject, err error) {
	err = c.call(ctx, http.MethodPut, c.Operators().path(id, "/role"), nil, api.RoleRequest{Role: role}, &s)
	return s, err
}

func (m Subjects) path(id watchword.SubjectID, rest string) string {
	return m.base + "/" + url.PathEscape(string(id)) + rest
}

// List calls f for each subject that has every label of sel and the state (empty: any), sorted by ID.
func (m Subjects) List(ctx context.Context, sel watchword.Labels, state watchword.State, f func(api.Subject) error) error {
	q := url.Values{}
	for k, v := range sel {
		q.Add("label", k+"="+v)
	}
	if state != "" {
		q.Set("state", string(state))
	}
	if m.base == operatorsPath {
		return list(ctx, m.c, m.base, q, func(p api.OperatorList) ([]api.Subject, string) { return p.Operators, p.NextPageToken }, f)
	}
	return list(ctx, m.c, m.base, q, func(p api.ServiceList) ([]api.Subject, string) { return p.Services, p.NextPageToken }, f)
}

// Get returns all data of one. Code: not_found.
func (m Subjects) Get(ctx context.Context, id watchword.SubjectID) (s api.Subject, err error) {
	err = m.c.call(ctx, http.MethodGet, m.path(id, ""), nil, nil, &s)
	return s, err
}

// SetLabels replaces the labels. ifVersion 0 means any. Codes: precondition_failed, exceeds_own.
func (m Subjects) SetLabels(ctx context.Context, id watchword.SubjectID, l watchword.Labels, ifVersion int64) (s api.Subject, err error) {
	if l == nil {
		l = watchword.Labels{}
	}
	r := rest.Request{Method: http.MethodPut, Path: m.path(id, "/labels")}
	if ifVersion > 0 {
		r.Header = map[string]string{"If-Match": etag(ifVersion)}
	}
	_, err = m.c.rest.JSON(ctx, r, api.LabelsRequest{Labels: l}, &s)
	return s, err
}

// Link creates a new one-time link, with which a new or revoked subject enrolls and an active one gets a further key; the previous
// link becomes invalid. ttl is the lifetime of the link, 0 means 24 h; keyTTL that of the key from now on, 0 means that it has no
// end. Codes: conflict for a suspended subject or one with 8 keys, exceeds_own; proof_required for the caller itself with a token
// that is not bound to its key.
func (m Subjects) Link(ctx context.Context, id watchword.SubjectID, ttl, keyTTL time.Duration) (e api.Enrollment, err error) {
	err = m.c.call(ctx, http.MethodPost, m.path(id, "/link"), nil, keyLink(ttl, keyTTL), &e)
	return e, err
}

func keyLink(ttl, keyTTL time.Duration) (in api.KeyLinkRequest) {
	if ttl > 0 {
		in.TTL = ttl.String()
	}
	if keyTTL > 0 {
		in.KeyTTL = keyTTL.String()
	}
	return in
}

// Keys returns the keys of one, oldest first: at most 32. Code: not_found.
func (m Subjects) Keys(ctx context.Context, id watchword.SubjectID) ([]api.DeviceKey, error) {
	var out api.KeyList
	err := m.c.call(ctx, http.MethodGet, m.path(id, "/keys"), nil, nil, &out)
	return out.Keys, err
}

// RevokeKey revokes one key. Its tokens and sessions have ended when RevokeKey returns; those of the other keys stay. Codes:
// not_found; conflict for the last key without an end of the last owner; exceeds_own; proof_required as in Link.
func (m Subjects) RevokeKey(ctx context.Context, id watchword.SubjectID, key watchword.KeyID) error {
	return m.c.call(ctx, http.MethodDelete, m.path(id, "/keys/"+url.PathEscape(string(key))), nil, nil, nil)
}

// SetKeyEnd sets the end of one key, in whole seconds, or makes it earlier; the key's tokens and sessions end with it at the latest. It
// returns the keys. Codes: not_found; bad_request for an end that has passed; conflict for a later end, a key that is not valid, and
// the last key without an end of the last owner; exceeds_own; proof_required as in Link.
func (m Subjects) SetKeyEnd(ctx context.Context, id watchword.SubjectID, key watchword.KeyID, end time.Time) ([]api.DeviceKey, error) {
	var out api.KeyList
	err := m.c.call(ctx, http.MethodPut, m.path(id, "/keys/"+url.PathEscape(string(key))+"/end"), nil, api.KeyEndRequest{EndsAt: end}, &out)
	return out.Keys, err
}

// SetOwnKeyEnd is [Subjects.SetKeyEnd] for a key of the caller. It needs a token that is bound to the caller's key.
func (c *Client) SetOwnKeyEnd(ctx context.Context, key watchword.KeyID, end time.Time) ([]api.DeviceKey, error) {
	var out api.KeyList
	err := c.call(ctx, http.MethodPut, selfPath+"/keys/"+url.PathEscape(string(key))+"/end", nil, api.KeyEndRequest{EndsAt: end}, &out)
	return out.Keys, err
}

// OwnKeys returns the keys of the caller, oldest first: at most 32.
func (c *Client) OwnKeys(ctx context.Context) ([]api.DeviceKey, error) {
	var out api.KeyList
	err := c.call(ctx, http.MethodGet, selfPath+"/keys", nil, nil, &out)
	return out.Keys, err
}

// RevokeOwnKey revokes one key of the caller, an operator or a service. It needs a token that is bound to the caller's key. Codes:
// as [Subjects.RevokeKey].
func (c *Client) RevokeOwnKey(ctx context.Context, key watchword.KeyID) error {
	return c.call(ctx, http.MethodDelete, selfPath+"/keys/"+url.PathEscape(string(key)), nil, nil, nil)
}

// OwnLink creates a one-time link for a further key of the caller, an operator or a service. It needs a token that is bound to the
// caller's key; the new key ends at the latest with that one. Arguments and codes: as [Subjects.Link].
func (c *Client) OwnLink(ctx context.Context, ttl, keyTTL time.Duration) (e api.Enrollment, err error) {
	err = c.call(ctx, http.MethodPost, selfPath+"/link", nil, keyLink(ttl, keyTTL), &e)
	return e, err
}

// Suspend, Resume and Revoke change the state. The change is effective for live sessions when they return. Codes: not_found,
// conflict (also for the last owner), exceeds_own.
func (m Subjects) Suspend(ctx context.Context, id watchword.SubjectID, reason string) (s api.Subject, err error) {
	err = m.c.call(ctx, http.MethodPost, m.path(id, "/suspend"), nil, api.ReasonRequest{Reason: reason}, &s)
	return s, err
}

// Resume makes a suspended subject active again, with its earlier keys and permissions.
func (m Subjects) Resume(ctx context.Context, id watchword.SubjectID) (s api.Subject, err error) {
	err = m.c.call(ctx, http.MethodPost, m.path(id, "/resume"), nil, api.ReasonRequest{}, &s)
	return s, err
}

// Revoke permanently invalidates the keys.
func (m Subjects) Revoke(ctx context.Context, id watchword.SubjectID, reason string) (s api.Subject, err error) {
	err = m.c.call(ctx, http.MethodPost, m.path(id, "/revoke"), nil, api.ReasonRequest{Reason: reason}, &s)
	return s, err
}

// Delete revokes a subject; its ID can never be used again.
func (m Subjects) Delete(ctx context.Context, id watchword.SubjectID) error {
	return m.c.call(ctx, http.MethodDelete, m.path(id, ""), nil, nil, nil)
}
