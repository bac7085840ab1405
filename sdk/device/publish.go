package device

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/jose"
)

// Publish sends an event of a stream, whose segments are names joined by "/". v becomes JSON; a byte slice is sent
// unchanged. Codes: bad_request, denied, too_large, rate_limited, unavailable. It is also unavailable if the server has not
// answered within a minute: then it is unknown whether the server has the event.
func (d *Device) Publish(ctx context.Context, stream string, v any) error {
	if d.identity == nil {
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
			return watchword.Wrap(err, watchword.BadRequest, "the event must be valid JSON")
		}
		kind = "application/json"
	}
	if err := checkSize("the event", body); err != nil {
		return err
	}
	if sent, err := d.publishMQTT(ctx, "events/"+stream, kind, body); sent {
		return err
	}
	_, err := d.client.Do(ctx, rest.Request{Method: http.MethodPost, Path: "/v1/self/events/" + stream, Type: kind, Body: body})
	return err
}

// checkState makes the server's checks of a reported state: one strict JSON object of at most 32 KiB, in UTF-8, without
// duplicate members, at most 8 deep. Codes: bad_request, too_large.
func checkState(state []byte) error {
	if err := checkSize("the state", state); err != nil {
		return err
	}
	if err := jose.Walk(state, func(string, jsontext.Value) error { return nil }); err != nil {
		return watchword.Wrap(err, watchword.BadRequest, "the state must be one JSON object, no member twice, at most 8 deep")
	}
	return nil
}

// checkSize refuses a body that the server would refuse as too large. Code: too_large.
func checkSize(what string, body []byte) error {
	if len(body) > watchword.MaxDocument {
		return watchword.Refuse(watchword.TooLarge, "%s has %d bytes, and may have %d", what, len(body), watchword.MaxDocument)
	}
	return nil
}

// ReportState replaces the device's reported state. v must encode to one JSON object that the server accepts; otherwise
// nothing is sent. Codes: bad_request, too_large, denied, rate_limited, unavailable, also if the server has not answered
// within a minute.
func (d *Device) ReportState(ctx context.Context, v any) error {
	if d.identity == nil {
		return errNotEnrolled()
	}
	body, err := json.Marshal(v)
	if err != nil {
		return watchword.Wrap(err, watchword.BadRequest, "the state must be valid JSON")
	}
	if err := checkState(body); err != nil {
		return err
	}
	if sent, err := d.publishMQTT(ctx, "state", "application/json", body); sent {
		return err
	}
	_, err = d.client.Do(ctx, rest.Request{Method: http.MethodPut, Path: "/v1/self/state", Type: "application/json", Body: body})
	return err
}

// Announce sends the list of this device's functions to the server, which accepts all or none. Codes: bad_request and
// too_large, with field "functions.NAME" if the server names the function; denied, rate_limited, unavailable, also if the
// server has not answered within a minute.
func (d *Device) Announce(ctx context.Context, fs ...Function) error {
	out := api.FunctionList{Functions: []api.Function{}}
	for _, f := range fs {
		if len(f.Schema) > 0 && !json.Valid(f.Schema) {
			return watchword.RefuseField("functions."+f.Name, "must have a schema of valid JSON")
		}
		out.Functions = append(out.Functions, api.Function{Name: f.Name, Schema: f.Schema})
	}
	body, err := json.Marshal(out)
	if err != nil {
		return watchword.Wrap(err, watchword.BadRequest, "each schema must be valid JSON")
	}
	_, err = d.client.Do(ctx, rest.Request{Method: http.MethodPut, Path: "/v1/self/functions", Type: "application/json", Body: body})
	return err
}

// Call orders another device to run a function, and waits for its receipt for at most wait (60 s; 0 does not wait). Codes:
// denied, not_found, args_invalid and the others of POST /v1/commands; unavailable, also if the server has not answered a
// minute after wait.
func (d *Device) Call(ctx context.Context, to watchword.SubjectID, function string, args any, wait time.Duration) (api.Command, error) {
	if d.identity == nil {
		return api.Command{}, errNotEnrolled()
	}
	in := api.SendCommandRequest{Device: to, Function: function}
	var body []byte
	var err error
	if args != nil {
		in.Args, err = json.Marshal(args)
	}
	if err == nil {
		body, err = json.Marshal(in)
	}
	if err != nil {
		return api.Command{}, watchword.Wrap(err, watchword.BadRequest, "the arguments must be valid JSON")
	}
	a, err := d.client.Do(ctx, rest.Request{
		Method: http.MethodPost, Path: "/v1/commands", Wait: wait, Type: "application/json", Body: body,
		Header: map[string]string{"Idempotency-Key": watchword.NewNonce()},
	})
	if err != nil {
		return api.Command{}, err
	}
	var c api.Command
	return c, json.Unmarshal(a.Body, &c)
}

// publishMQTT publishes on a topic of this device over the MQTT connection, if there is one. sent is false if the message
// must be sent by another transport.
func (d *Device) publishMQTT(ctx context.Context, topic, kind string, payload []byte) (sent bool, err error) {
	w := d.mqtt.Load()
	if w == nil {
		return false, nil
	}
	err = w.publish(ctx, "devices/"+string(d.identity.ID)+"/"+topic, kind, payload)
	if _, lost := errors.AsType[*mqttUnavailable](err); lost {
		return false, nil
	}
	return true, err
}
