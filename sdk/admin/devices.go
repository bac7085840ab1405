package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/rest"
)

// Device is a device as the API shows it. Keys, functions and sessions stand in
// the answer for one device alone.
type Device struct {
	ID          watchword.SubjectID `json:"id"`
	Kind        watchword.Kind      `json:"kind"`
	State       watchword.State     `json:"state"`
	Labels      watchword.Labels    `json:"labels"`
	Version     int64               `json:"version"`
	Incarnation int64               `json:"incarnation"`
	Proof       string              `json:"proof,omitempty"` // watchword.RequireProof, or empty
	CreatedAt   time.Time           `json:"created_at"`
	ChangedAt   time.Time           `json:"changed_at"`
	Enrollment  *Enrollment         `json:"enrollment,omitempty"`
	Keys        []Key               `json:"keys,omitempty"`
	Functions   []Function          `json:"functions,omitempty"`
	Sessions    []Session           `json:"sessions,omitempty"`
}

// Enrollment is a one-time link; it is shown once.
type Enrollment struct {
	Link      string    `json:"link"`
	Code      string    `json:"code"`
	Pin       string    `json:"pin"`
	ExpiresAt time.Time `json:"expires_at"`
}

// Key is one of a subject's public keys.
type Key struct {
	ID      watchword.KeyID    `json:"id"`
	Purpose watchword.Purpose  `json:"purpose"`
	State   watchword.KeyState `json:"state"`
	AddedAt time.Time          `json:"added_at"`
	Retired *time.Time         `json:"retired_at,omitempty"`
	JWK     json.RawMessage    `json:"jwk"`
}

// Function is what a device announced.
type Function struct {
	Name   string          `json:"name"`
	Schema json.RawMessage `json:"schema,omitempty"`
}

// Session is one live connection.
type Session struct {
	ID        watchword.SessionID `json:"id"`
	Subject   watchword.SubjectID `json:"subject"`
	Transport string              `json:"transport"`
	Remote    string              `json:"remote"`
	OpenedAt  time.Time           `json:"opened_at"`
	ExpiresAt time.Time           `json:"expires_at"`
	MQTT      *ClientState        `json:"mqtt,omitempty"`
}

// ClientState is what an MQTT client has on the server: its Session State (MQTT 5.0 §4.1).
type ClientState struct {
	Client        string   `json:"client_id"`
	Subscriptions []string `json:"subscriptions"`
	Messages      int      `json:"messages"` // that wait for it, or that it has not acknowledged
	Bytes         int      `json:"bytes"`    // of these
	Memory        int      `json:"memory"`   // of the server, about
	Dropped       int64    `json:"dropped"`  // messages that found no room since it last heard
}

// Away is a session without a connection: what an MQTT client left behind.
type Away struct {
	ID      watchword.SessionID `json:"id"`
	Subject watchword.SubjectID `json:"subject"`
	LeftAt  time.Time           `json:"left_at"`
	EndsAt  time.Time           `json:"ends_at"`
	WillAt  *time.Time          `json:"will_at,omitempty"` // when its will is due
	MQTT    ClientState         `json:"mqtt"`
}

func devicePath(id watchword.SubjectID, rest string) string {
	return "/v1/devices/" + url.PathEscape(string(id)) + rest
}

// call asks with a JSON body (nil for none) and reads a JSON answer into out (nil: none).
func (c *Client) call(ctx context.Context, method, path string, q url.Values, in, out any) error {
	_, err := c.rest.JSON(ctx, rest.Request{Method: method, Path: path, Query: q}, in, out)
	return err
}

// CreateDevice adds a device and returns its one-time link. ttl is the link's
// life; 0 means 24 h. Codes: bad_request, conflict, token_too_large, denied.
func (c *Client) CreateDevice(ctx context.Context, id watchword.SubjectID, l watchword.Labels, ttl time.Duration) (Device, error) {
	return c.CreateProvingDevice(ctx, id, l, "", ttl)
}

// CreateProvingDevice is CreateDevice for a device that gets nothing without a proof
// of its key, where proof is [watchword.RequireProof].
func (c *Client) CreateProvingDevice(ctx context.Context, id watchword.SubjectID, l watchword.Labels, proof string, ttl time.Duration) (d Device, err error) {
	in := map[string]any{"id": id}
	if len(l) > 0 {
		in["labels"] = l
	}
	if proof != "" {
		in["proof"] = proof
	}
	if ttl > 0 {
		in["ttl"] = ttl.String()
	}
	err = c.call(ctx, http.MethodPost, "/v1/devices", nil, in, &d)
	return d, err
}

// SetProof says whether a device gets anything without a proof of its key: proof is
// [watchword.RequireProof] or empty. Its live sessions have followed when it returns.
func (c *Client) SetProof(ctx context.Context, id watchword.SubjectID, proof string) (d Device, err error) {
	err = c.call(ctx, http.MethodPut, devicePath(id, "/proof"), nil, map[string]any{"proof": proof}, &d)
	return d, err
}

// RevokeToken ends one access token, and the sessions on it. Code: not_found.
func (c *Client) RevokeToken(ctx context.Context, jti string) error {
	return c.call(ctx, http.MethodDelete, "/v1/tokens/"+url.PathEscape(jti), nil, nil, nil)
}

// Devices calls f for each device that carries every label of sel, in order of id.
func (c *Client) Devices(ctx context.Context, sel watchword.Labels, state watchword.State, f func(Device) error) error {
	q := url.Values{}
	for k, v := range sel {
		q.Add("label", k+"="+v)
	}
	if state != "" {
		q.Set("state", string(state))
	}
	return list(ctx, c, "/v1/devices", "devices", q, f)
}

// Device returns one device whole. Code: not_found.
func (c *Client) Device(ctx context.Context, id watchword.SubjectID) (d Device, err error) {
	err = c.call(ctx, http.MethodGet, devicePath(id, ""), nil, nil, &d)
	return d, err
}

// SetLabels replaces a device's labels. ifVersion 0 means any. Code: precondition_failed.
func (c *Client) SetLabels(ctx context.Context, id watchword.SubjectID, l watchword.Labels, ifVersion int64) (d Device, err error) {
	if l == nil {
		l = watchword.Labels{}
	}
	r := rest.Request{Method: http.MethodPut, Path: devicePath(id, "/labels")}
	if ifVersion > 0 {
		r.Header = map[string]string{"If-Match": etag(ifVersion)}
	}
	_, err = c.rest.JSON(ctx, r, map[string]any{"labels": l}, &d)
	return d, err
}

func etag(v int64) string { return strconv.Quote(strconv.FormatInt(v, 10)) }

// Link makes a new one-time link; the old one dies. Code: conflict for an active device.
func (c *Client) Link(ctx context.Context, id watchword.SubjectID, ttl time.Duration) (e Enrollment, err error) {
	in := map[string]any{}
	if ttl > 0 {
		in["ttl"] = ttl.String()
	}
	err = c.call(ctx, http.MethodPost, devicePath(id, "/link"), nil, in, &e)
	return e, err
}

// Suspend, Resume and Revoke change a device's state; its live sessions have
// followed when they return. Codes: not_found, conflict.
func (c *Client) Suspend(ctx context.Context, id watchword.SubjectID, reason string) (d Device, err error) {
	err = c.call(ctx, http.MethodPost, devicePath(id, "/suspend"), nil, map[string]any{"reason": reason}, &d)
	return d, err
}

// Resume gives a suspended device back all it had.
func (c *Client) Resume(ctx context.Context, id watchword.SubjectID) (d Device, err error) {
	err = c.call(ctx, http.MethodPost, devicePath(id, "/resume"), nil, map[string]any{}, &d)
	return d, err
}

// Revoke ends a device's keys for good.
func (c *Client) Revoke(ctx context.Context, id watchword.SubjectID, reason string) (d Device, err error) {
	err = c.call(ctx, http.MethodPost, devicePath(id, "/revoke"), nil, map[string]any{"reason": reason}, &d)
	return d, err
}

// DeleteDevice revokes a device and never frees its id again.
func (c *Client) DeleteDevice(ctx context.Context, id watchword.SubjectID) error {
	return c.call(ctx, http.MethodDelete, devicePath(id, ""), nil, nil, nil)
}

// Twin is what is wanted of a device and what it reported.
type Twin struct {
	Config        json.RawMessage `json:"config"`
	ConfigVersion int64           `json:"config_version"`
	ConfigAt      *time.Time      `json:"config_at,omitempty"`
	State         json.RawMessage `json:"state"`
	StateAt       *time.Time      `json:"state_at,omitempty"`
}

// Twin returns a device's twin.
func (c *Client) Twin(ctx context.Context, id watchword.SubjectID) (t Twin, err error) {
	err = c.call(ctx, http.MethodGet, devicePath(id, "/twin"), nil, nil, &t)
	return t, err
}

// SetConfig replaces the wanted configuration, one JSON object. ifVersion below
// 0 means any, 0 that none was set yet. Code: precondition_failed.
func (c *Client) SetConfig(ctx context.Context, id watchword.SubjectID, config json.RawMessage, ifVersion int64) (t Twin, err error) {
	r := rest.Request{Method: http.MethodPut, Path: devicePath(id, "/config")}
	if ifVersion >= 0 {
		r.Header = map[string]string{"If-Match": etag(ifVersion)}
	}
	_, err = c.rest.JSON(ctx, r, config, &t)
	return t, err
}

// Sessions returns the live sessions, of one device or (empty) of all.
func (c *Client) Sessions(ctx context.Context, device watchword.SubjectID) ([]Session, error) {
	live, _, err := c.AllSessions(ctx, device)
	return live, err
}

// AllSessions returns the live sessions on the node that answers, and those that MQTT
// clients left behind, of one device or of all with an empty name.
func (c *Client) AllSessions(ctx context.Context, device watchword.SubjectID) ([]Session, []Away, error) {
	live, away := []Session{}, []Away{}
	q := url.Values{"page_size": {"500"}}
	if device != "" {
		q.Set("device", string(device))
	}
	for pages := newPages(); ; {
		var page struct {
			Sessions []Session `json:"sessions"`
			Away     []Away    `json:"away"`
			Next     string    `json:"next_page_token"`
		}
		if err := c.call(ctx, http.MethodGet, "/v1/sessions", q, nil, &page); err != nil {
			return nil, nil, err
		}
		for _, s := range page.Sessions { // one with many subscriptions comes in parts
			if n := len(live); n > 0 && live[n-1].ID == s.ID && live[n-1].MQTT != nil && s.MQTT != nil {
				live[n-1].MQTT.Subscriptions = append(live[n-1].MQTT.Subscriptions, s.MQTT.Subscriptions...)
				continue
			}
			live = append(live, s)
		}
		for _, s := range page.Away {
			if n := len(away); n > 0 && away[n-1].MQTT.Client == s.MQTT.Client {
				away[n-1].MQTT.Subscriptions = append(away[n-1].MQTT.Subscriptions, s.MQTT.Subscriptions...)
				continue
			}
			away = append(away, s)
		}
		if page.Next == "" {
			return live, away, nil
		}
		if err := pages.next(ctx, page.Next, len(page.Sessions)+len(page.Away)); err != nil {
			return nil, nil, err
		}
		q.Set("page_token", page.Next)
	}
}

// CloseSession ends one live session, or one that a client left behind. Code: not_found.
func (c *Client) CloseSession(ctx context.Context, id watchword.SessionID) error {
	return c.call(ctx, http.MethodDelete, "/v1/sessions/"+url.PathEscape(string(id)), nil, nil, nil)
}
