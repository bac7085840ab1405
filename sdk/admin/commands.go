package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// CommandOrder is a command to be ordered. Args is one JSON object, nil for none; TTL 0 means 120 s. The client signs it
// with its own key, so that device and audit log need not rely on the server's statement of the orderer.
type CommandOrder struct {
	Device      watchword.SubjectID
	Function    string
	Args        json.RawMessage
	TTL         time.Duration
	WaitReceipt time.Duration // how long to wait for the receipt, at most 60 s; 0 does not wait
}

// DefaultTTL is the default time within which a command may be begun.
const DefaultTTL = 120 * time.Second

// Send orders a command and returns it once it is stored, or, with WaitReceipt, once it is final or the wait has ended.
// Codes: bad_request, denied, not_found, function_unknown, args_invalid, subject_revoked, busy.
func (c *Client) Send(ctx context.Context, o CommandOrder) (out api.Command, err error) {
	if len(o.Args) == 0 {
		o.Args = json.RawMessage("{}")
	}
	if o.TTL == 0 {
		o.TTL = DefaultTTL
	}
	var compact bytes.Buffer // the encoder of the body would compact it, and the hash must match
	if err := json.Compact(&compact, o.Args); err != nil {
		return out, watchword.RefuseField("args", "must be valid JSON")
	}
	now := c.opts.Now()
	signed, err := token.SignOrder(c.signer, token.Order{
		By: c.opts.Subject, Server: c.Issuer(), Device: o.Device, Function: o.Function, ArgsHash: jose.Hash(compact.Bytes()), Issued: now, Expires: token.CommandExpiry(now, o.TTL),
	})
	if err != nil {
		return out, err
	}
	body := []byte(`{"device":` + quote(string(o.Device)) + `,"function":` + quote(o.Function) + `,"order":` + quote(signed) + `,"args":`)
	body = append(append(body, compact.Bytes()...), '}') // built by hand: args is sent byte for byte as it was hashed
	r := rest.Request{
		Method: http.MethodPost, Path: "/v1/commands", Type: "application/json", Body: body,
		Header: map[string]string{"Idempotency-Key": watchword.NewNonce()},
	}
	r.Wait = o.WaitReceipt
	_, err = c.rest.JSON(ctx, r, nil, &out)
	return out, err
}

func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		return `""`
	}
	return string(b)
}

// Command returns one command; with wait, once it is final or the wait has ended.
func (c *Client) Command(ctx context.Context, id watchword.CommandID, wait time.Duration) (out api.Command, err error) {
	_, err = c.rest.JSON(ctx, rest.Request{Method: http.MethodGet, Path: "/v1/commands/" + url.PathEscape(string(id)), Wait: wait}, nil, &out)
	return out, err
}

// Await waits until a command is final, for at most wait, and returns its current state. It repeats the request in steps
// that the server allows, at least a second after an early answer: the server answers at once if too many requests wait
// already. While the server cannot be reached it asks again, after pauses that grow to 30 s. After any other error, and if the
// server could not be reached at the end, it returns the last known state and the error.
func (c *Client) Await(ctx context.Context, cmd api.Command, wait time.Duration) (api.Command, error) {
	const most, apart = 50 * time.Second, time.Second
	var lost error // of the last request; nil: it was answered
	pause := retryPause{}
	for end := time.Now().Add(wait); !cmd.State.Final(); {
		asked := time.Now()
		left := end.Sub(asked)
		if left < time.Millisecond {
			return cmd, lost
		}
		next, err := c.Command(ctx, cmd.ID, min(left, most))
		if lost = err; isTemporary(err) && ctx.Err() == nil {
			sleep(ctx, min(pause.next(err), time.Until(end)))
			continue
		}
		if err != nil {
			return cmd, err
		}
		pause = retryPause{}
		if cmd = next; cmd.State.Final() {
			break
		}
		select {
		case <-time.After(min(apart-time.Since(asked), time.Until(end))):
		case <-ctx.Done():
			return cmd, ctx.Err()
		}
	}
	return cmd, nil
}

// Cancel cancels a queued command. Code: conflict.
func (c *Client) Cancel(ctx context.Context, id watchword.CommandID) (out api.Command, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/commands/"+url.PathEscape(string(id))+"/cancel", nil, nil, &out)
	return out, err
}

// Filter selects commands; empty fields select all.
type Filter struct {
	Device watchword.SubjectID
	By     watchword.SubjectID
	State  watchword.CommandState
}

// Commands returns up to limit commands, newest first.
func (c *Client) Commands(ctx context.Context, f Filter, limit int) ([]api.Command, error) {
	q := url.Values{}
	for k, v := range map[string]string{"device": string(f.Device), "by": string(f.By), "state": string(f.State)} {
		if v != "" {
			q.Set(k, v)
		}
	}
	all := []api.Command{}
	for pages := newPages(); len(all) < limit; {
		q.Set("page_size", strconv.Itoa(min(limit-len(all), 500)))
		var page api.CommandList
		if err := c.call(ctx, http.MethodGet, "/v1/commands", q, nil, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Commands...)
		if page.NextPageToken == "" {
			break
		}
		if err := pages.next(ctx, page.NextPageToken, len(page.Commands)); err != nil {
			return nil, err
		}
		q.Set("page_token", page.NextPageToken)
	}
	return all, nil
}
