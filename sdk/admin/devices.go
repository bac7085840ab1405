package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/rest"
)

func devicePath(id watchword.SubjectID, rest string) string {
	return "/v1/devices/" + url.PathEscape(string(id)) + rest
}

// call sends a JSON body (nil for none) and decodes a JSON response into out (nil: none).
func (c *Client) call(ctx context.Context, method, path string, q url.Values, in, out any) error {
	_, err := c.rest.JSON(ctx, rest.Request{Method: method, Path: path, Query: q}, in, out)
	return err
}

// CreateDevice adds a device and returns its one-time link. ttl is the lifetime of the link; 0 means 24 h. Codes:
// bad_request, conflict, token_too_large, denied.
func (c *Client) CreateDevice(ctx context.Context, id watchword.SubjectID, l watchword.Labels, ttl time.Duration) (api.Device, error) {
	return c.CreateDeviceWithProof(ctx, id, l, "", ttl)
}

// CreateDeviceWithProof is CreateDevice for a device that must prove its key with every request, if proof is
// [watchword.RequireProof].
func (c *Client) CreateDeviceWithProof(ctx context.Context, id watchword.SubjectID, l watchword.Labels, proof string, ttl time.Duration) (d api.Device, err error) {
	in := api.CreateDeviceRequest{ID: string(id), Labels: l, Proof: proof}
	if ttl > 0 {
		in.TTL = ttl.String()
	}
	return c.AddDevice(ctx, in)
}

// AddDevice adds a device with all that the API takes, and returns its one-time link. Codes: as CreateDevice.
func (c *Client) AddDevice(ctx context.Context, in api.CreateDeviceRequest) (d api.Device, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/devices", nil, in, &d)
	return d, err
}

// SetName sets what people call a device, in at most 128 bytes of UTF-8 without control characters; empty for nothing. Codes:
// bad_request, not_found.
func (c *Client) SetName(ctx context.Context, id watchword.SubjectID, name string) (d api.Device, err error) {
	err = c.call(ctx, http.MethodPut, devicePath(id, "/name"), nil, api.NameRequest{Name: name}, &d)
	return d, err
}

// ForgetDevice makes the id of a deleted device free: a device that is added with it has the next incarnation. Codes: not_found
// where no deleted device has it, conflict.
func (c *Client) ForgetDevice(ctx context.Context, id watchword.SubjectID) error {
	return c.call(ctx, http.MethodPost, devicePath(id, "/forget"), nil, nil, nil)
}

// SetProof sets whether a device must prove its key with every request: proof is [watchword.RequireProof] or empty. The
// change is effective for its live sessions when SetProof returns.
func (c *Client) SetProof(ctx context.Context, id watchword.SubjectID, proof string) (d api.Device, err error) {
	err = c.call(ctx, http.MethodPut, devicePath(id, "/proof"), nil, api.ProofRequest{Proof: proof}, &d)
	return d, err
}

// RevokeToken revokes one access token, and ends its sessions. Code: not_found.
func (c *Client) RevokeToken(ctx context.Context, jti string) error {
	return c.call(ctx, http.MethodDelete, "/v1/tokens/"+url.PathEscape(jti), nil, nil, nil)
}

// Devices calls f for each device that has every label of sel, sorted by ID.
func (c *Client) Devices(ctx context.Context, sel watchword.Labels, state watchword.State, f func(api.Device) error) error {
	return c.ListDevices(ctx, DeviceQuery{Selector: watchword.SelectorOf(sel), State: state}, f)
}

// DeviceQuery chooses devices, and their order. The zero value chooses all, in order of ID.
type DeviceQuery struct {
	Selector   watchword.Selector
	State      watchword.State
	Search     string // part of the id, of the name, or of a label as key=value
	Sort       string // id, created, changed, state or last_seen
	Descending bool
}

// ListDevices calls f for each device that q chooses. It keeps one page in memory. Code: bad_request.
func (c *Client) ListDevices(ctx context.Context, d DeviceQuery, f func(api.Device) error) error {
	q := url.Values{}
	for _, l := range d.Selector {
		q.Add("label", l.String())
	}
	for name, value := range map[string]string{"state": string(d.State), "search": d.Search, "sort": d.Sort} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if d.Descending {
		q.Set("order", "desc")
	}
	return list(ctx, c, "/v1/devices", q, func(p api.DeviceList) ([]api.Device, string) { return p.Devices, p.NextPageToken }, f)
}

// Totals returns how many devices and services there are in each state.
func (c *Client) Totals(ctx context.Context) (t api.Totals, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/totals", nil, nil, &t)
	return t, err
}

// DeviceLabels calls f for each label of devices, in order of key and value; of one key alone if it is not empty.
func (c *Client) DeviceLabels(ctx context.Context, key string, f func(api.LabelTotal) error) error {
	q := url.Values{}
	if key != "" {
		q.Set("key", key)
	}
	return list(ctx, c, "/v1/labels", q, func(p api.LabelTotalList) ([]api.LabelTotal, string) { return p.Labels, p.NextPageToken }, f)
}

// Device returns all data of one device. Code: not_found.
func (c *Client) Device(ctx context.Context, id watchword.SubjectID) (d api.Device, err error) {
	err = c.call(ctx, http.MethodGet, devicePath(id, ""), nil, nil, &d)
	return d, err
}

// SetLabels replaces a device's labels. ifVersion 0 means any. Code: precondition_failed.
func (c *Client) SetLabels(ctx context.Context, id watchword.SubjectID, l watchword.Labels, ifVersion int64) (d api.Device, err error) {
	if l == nil {
		l = watchword.Labels{}
	}
	r := rest.Request{Method: http.MethodPut, Path: devicePath(id, "/labels")}
	if ifVersion > 0 {
		r.Header = map[string]string{"If-Match": etag(ifVersion)}
	}
	_, err = c.rest.JSON(ctx, r, api.LabelsRequest{Labels: l}, &d)
	return d, err
}

func etag(v int64) string { return strconv.Quote(strconv.FormatInt(v, 10)) }

// Link creates a new one-time link; the previous one becomes invalid. Code: conflict for an active device.
func (c *Client) Link(ctx context.Context, id watchword.SubjectID, ttl time.Duration) (e api.Enrollment, err error) {
	var in api.LinkRequest
	if ttl > 0 {
		in.TTL = ttl.String()
	}
	err = c.call(ctx, http.MethodPost, devicePath(id, "/link"), nil, in, &e)
	return e, err
}

// Suspend, Resume and Revoke change a device's state. The change is effective for its live sessions when they return.
// Codes: not_found, conflict.
func (c *Client) Suspend(ctx context.Context, id watchword.SubjectID, reason string) (d api.Device, err error) {
	err = c.call(ctx, http.MethodPost, devicePath(id, "/suspend"), nil, api.ReasonRequest{Reason: reason}, &d)
	return d, err
}

// Resume makes a suspended device active again, with its earlier keys and permissions.
func (c *Client) Resume(ctx context.Context, id watchword.SubjectID) (d api.Device, err error) {
	err = c.call(ctx, http.MethodPost, devicePath(id, "/resume"), nil, api.ReasonRequest{}, &d)
	return d, err
}

// Revoke permanently invalidates a device's keys.
func (c *Client) Revoke(ctx context.Context, id watchword.SubjectID, reason string) (d api.Device, err error) {
	err = c.call(ctx, http.MethodPost, devicePath(id, "/revoke"), nil, api.ReasonRequest{Reason: reason}, &d)
	return d, err
}

// DeleteDevice revokes a device and deletes it; its ID is free after ForgetDevice only.
func (c *Client) DeleteDevice(ctx context.Context, id watchword.SubjectID) error {
	return c.call(ctx, http.MethodDelete, devicePath(id, ""), nil, nil, nil)
}

// Twin returns a device's twin.
func (c *Client) Twin(ctx context.Context, id watchword.SubjectID) (t api.Twin, err error) {
	err = c.call(ctx, http.MethodGet, devicePath(id, "/twin"), nil, nil, &t)
	return t, err
}

// SetConfig replaces the desired configuration, one JSON object. ifVersion below 0 means any, 0 that none was set yet.
// Code: precondition_failed.
func (c *Client) SetConfig(ctx context.Context, id watchword.SubjectID, config json.RawMessage, ifVersion int64) (t api.Twin, err error) {
	r := rest.Request{Method: http.MethodPut, Path: devicePath(id, "/config")}
	if ifVersion >= 0 {
		r.Header = map[string]string{"If-Match": etag(ifVersion)}
	}
	_, err = c.rest.JSON(ctx, r, config, &t)
	return t, err
}
