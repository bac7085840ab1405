package device

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/rest"
)

// Publish reports an event in a stream, whose segments are names joined by "/".
// v becomes JSON; bytes go as they are. Codes: bad_request, denied, too_large,
// rate_limited, unavailable.
func (d *Device) Publish(ctx context.Context, stream string, v any) error {
	if d.id == nil {
		return errNotEnrolled()
	}
	for s := range strings.SplitSeq(stream, "/") {
		if err := watchword.CheckName("stream", s); err != nil {
			return err
		}
	}
	body, ok := v.([]byte)
	kind := "application/octet-stream"
	if !ok {
		var err error
		if body, err = json.Marshal(v); err != nil {
			return watchword.Because(err, watchword.BadRequest, "the event is no JSON")
		}
		kind = "application/json"
	}
	if sent, err := d.overWire(ctx, "events/"+stream, kind, body); sent {
		return err
	}
	_, err := d.client.Do(ctx, rest.Request{Method: http.MethodPost, Path: "/v1/self/events/" + stream, Type: kind, Body: body})
	return err
}

// ReportState replaces the device's reported state. v becomes one JSON object.
func (d *Device) ReportState(ctx context.Context, v any) error {
	if d.id == nil {
		return errNotEnrolled()
	}
	body, err := json.Marshal(v)
	if err != nil {
		return watchword.Because(err, watchword.BadRequest, "the state is no JSON")
	}
	if sent, err := d.overWire(ctx, "state", "application/json", body); sent {
		return err
	}
	_, err = d.client.Do(ctx, rest.Request{Method: http.MethodPut, Path: "/v1/self/state", Type: "application/json", Body: body})
	return err
}

// Announce tells the server what this device can be asked to do. Codes: bad_request and too_large,
// where the field is "functions.NAME" if the server says which function is at fault; denied,
// rate_limited, unavailable. It takes effect as a whole or not at all.
func (d *Device) Announce(ctx context.Context, fs ...Function) error {
	type function struct {
		Name   string          `json:"name"`
		Schema json.RawMessage `json:"schema,omitempty"`
	}
	out := struct {
		Functions []function `json:"functions"`
	}{[]function{}}
	for _, f := range fs {
		if len(f.Schema) > 0 && !json.Valid(f.Schema) {
			return watchword.RefuseField("functions."+f.Name, "the schema is no JSON")
		}
		out.Functions = append(out.Functions, function{f.Name, f.Schema})
	}
	body, err := json.Marshal(out)
	if err != nil {
		return watchword.Because(err, watchword.BadRequest, "a schema is no JSON")
	}
	_, err = d.client.Do(ctx, rest.Request{Method: http.MethodPut, Path: "/v1/self/functions", Type: "application/json", Body: body})
	return err
}

// Called is a command that this device ordered from another.
type Called struct {
	ID      watchword.CommandID    `json:"id"`
	State   watchword.CommandState `json:"state"`
	Receipt *struct {
		Status watchword.ReceiptStatus `json:"status"`
		Result json.RawMessage         `json:"result"`
	} `json:"receipt"`
}

// Call orders another device to run a function, and waits for its receipt for at
// most wait (60 s; 0 does not wait). Codes: denied, not_found, args_invalid and
// the others of POST /v1/commands.
func (d *Device) Call(ctx context.Context, to watchword.SubjectID, function string, args any, wait time.Duration) (Called, error) {
	if d.id == nil {
		return Called{}, errNotEnrolled()
	}
	in := map[string]any{"device": to, "function": function}
	if args != nil {
		in["args"] = args
	}
	body, err := json.Marshal(in)
	if err != nil {
		return Called{}, watchword.Because(err, watchword.BadRequest, "the arguments are no JSON")
	}
	a, err := d.client.Do(ctx, rest.Request{
		Method: http.MethodPost, Path: "/v1/commands", Wait: wait, Type: "application/json", Body: body,
		Header: map[string]string{"Idempotency-Key": watchword.NewNonce()},
	})
	if err != nil {
		return Called{}, err
	}
	var c Called
	return c, json.Unmarshal(a.Body, &c)
}

// overWire publishes on a topic of this device over the MQTT connection, if there
// is one. sent is false where the message must go another way.
func (d *Device) overWire(ctx context.Context, topic, kind string, payload []byte) (sent bool, err error) {
	w := d.wire.Load()
	if w == nil {
		return false, nil
	}
	err = w.publish(ctx, "devices/"+string(d.id.ID)+"/"+topic, kind, payload)
	if _, lost := errors.AsType[*noWire](err); lost {
		return false, nil
	}
	return true, err
}
