package httpapi

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/session"
)

const (
	maxWait  = 60 * time.Second
	maxBatch = 64
)

// parseWait parses the parameter wait. Code: bad_request.
func parseWait(s string) (time.Duration, error) {
	d, err := parseDuration("wait", s)
	if err == nil && d > maxWait {
		err = watchword.RefuseField("wait", "must be at most 60s")
	}
	return d, err
}

func viewSealed(c command.SealedCommand) api.SealedCommand {
	return api.SealedCommand{ID: c.ID, Epoch: c.Epoch, Seq: c.Seq, ExpiresAt: c.Expires.UTC(), JWE: c.JWE}
}

func (a *API) selfCommandRoutes() {
	a.handle(route{pattern: "GET /v1/self/commands", stream: func(r *http.Request) string {
		if wantsStream(r) {
			return streamTransport
		}
		return pollTransport
	}}, func(w http.ResponseWriter, r *http.Request, c *caller) error {
		if wantsStream(r) {
			return a.streamCommands(w, r, c)
		}
		return a.pollCommands(w, r, c)
	})
	a.describe(http.MethodGet, "/v1/self/commands", "Receive encrypted commands: a long poll, or a stream of server-sent events", nil)

	type receiptIn struct{ Body api.ReceiptRequest }
	type receiptOut struct{ Body api.ReceiptResponse }
	register(a, operation{method: http.MethodPost, path: "/v1/self/receipts", summary: "Submit a signed receipt", maxBody: watchword.MaxDocument + 64},
		func(ctx context.Context, c *caller, in *receiptIn) (*receiptOut, error) {
			if err := c.Publish(selfTopic(c, "receipts")).Err(); err != nil {
				return nil, err
			}
			// Rates use the monotonic clock, as in publishEvent.
			if err := a.ControlRates.Take(quota.Key{Tenant: c.Tenant(), Subject: c.Subject()}, command.ReceiptCost, time.Now()); err != nil {
				return nil, err
			}
			row, err := a.Commands.ApplyReceipt(ctx, c.Tenant(), c.Subject(), c.Versions(), in.Body.Receipt, c.actor.Trace)
			if err != nil {
				return nil, err
			}
			out := &receiptOut{}
			out.Body.Command, out.Body.State = row.ID, row.State
			return out, nil
		})
}

// mayReceiveCommands returns the check that a device may receive its commands.
func mayReceiveCommands(c *caller) func(*session.Authority) error {
	topic := selfTopic(c, "commands")
	return func(now *session.Authority) error { return now.Subscribe(topic).Err() }
}

// deliveryRequest holds the parameters of a poll or stream of commands.
type deliveryRequest struct {
	epoch, after int64
	nonce        string
	logSize      int64 // size of the log that the device has seen, if loggedOnly
	loggedOnly   bool  // the device executes only commands that are in the log
	max          int64 // largest JWE that the device accepts, in bytes; 0: any
}

func (t *deliveryRequest) acknowledged(s string) (err error) {
	epoch, seq, ok := strings.Cut(s, ".")
	if t.epoch, err = strconv.ParseInt(epoch, 10, 64); err == nil && ok {
		t.after, err = strconv.ParseInt(seq, 10, 64)
	}
	if err != nil || !ok {
		return watchword.RefuseField("Last-Event-ID", "must be the id of an event of this stream: EPOCH.SEQ")
	}
	return nil
}

func parseDeliveryRequest(r *http.Request) (t deliveryRequest, err error) {
	q := r.URL.Query()
	for name, into := range map[string]*int64{"epoch": &t.epoch, "after": &t.after, "log": &t.logSize, "max": &t.max} {
		if s := q.Get(name); s != "" {
			if *into, err = strconv.ParseInt(s, 10, 64); err != nil || *into < 0 {
				return t, watchword.RefuseField(name, "must be a number, 0 or more")
			}
		}
	}
	t.loggedOnly = q.Has("log")
	if t.nonce = q.Get("nonce"); len(t.nonce) > 64 || t.nonce != "" && len(t.nonce) < 22 {
		return t, watchword.RefuseField("nonce", "must have 22 to 64 characters")
	}
	return t, nil
}

// openDelivery connects the request to the device's command queue and records what the device
// acknowledges.
func (a *API) openDelivery(ctx context.Context, c *caller, t deliveryRequest) (*command.Delivery, int64, error) {
	l := a.Commands.Attach(c.Tenant(), c.Subject())
	if t.loggedOnly {
		l.RequireLogProofs(t.epoch, t.logSize)
	}
	l.SetLimits(command.Limits{MaxJWE: int(t.max)})
	after, err := l.AcknowledgeUpTo(ctx, t.epoch, t.after)
	if err != nil {
		l.Close()
		return nil, 0, err
	}
	return l, after, nil
}

func (a *API) pollCommands(w http.ResponseWriter, r *http.Request, c *caller) error {
	t, err := parseDeliveryRequest(r)
	if err != nil {
		return err
	}
	limit := 16
	if s := r.URL.Query().Get("limit"); s != "" {
		if limit, err = strconv.Atoi(s); err != nil || limit < 1 || limit > maxBatch {
			return watchword.RefuseField("limit", "must be from 1 to 64")
		}
	}
	pause, err := parseWait(r.URL.Query().Get("wait"))
	if err != nil {
		return err
	}
	ctx := c.ctx
	if err := c.session.require(mayReceiveCommands(c)); err != nil {
		return err
	}
	l, after, err := a.openDelivery(ctx, c, t)
	if err != nil {
		return err
	}
	defer l.Close()
	cs, err := l.Next(ctx, after, t.nonce, limit, pause)
	if err != nil {
		return err
	}
	// A session that ended during the wait is answered with its cause, not with an empty list.
	if err := streamEnded(ctx); err != nil {
		return err
	}
	out := api.SealedCommands{Session: c.session.ID(), Commands: []api.SealedCommand{}}
	for _, sc := range cs {
		out.Commands = append(out.Commands, viewSealed(sc))
	}
	writeAnswer(w, http.StatusOK, out)
	return nil
}

func (a *API) streamCommands(w http.ResponseWriter, r *http.Request, c *caller) error {
	t, err := parseDeliveryRequest(r)
	if err != nil {
		return err
	}
	if last := r.Header.Get("Last-Event-ID"); last != "" {
		if err := t.acknowledged(last); err != nil {
			return err
		}
	}
	ctx := c.ctx
	if err := c.session.require(mayReceiveCommands(c)); err != nil {
		return err
	}
	l, after, err := a.openDelivery(ctx, c, t)
	if err != nil {
		return err
	}
	defer l.Close()
	out := newStream(c)
	if err := out.send("session", "", sessionEvent(c.session.Session)); err != nil {
		return nil // the client has closed the connection
	}
	for {
		cs, err := l.Next(ctx, after, t.nonce, maxBatch, sseKeepAlive)
		if err == nil {
			err = streamEnded(ctx)
		}
		if err != nil {
			a.endStream(out, r, err)
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
		for _, sc := range cs {
			after = sc.Seq
			id := strconv.FormatInt(sc.Epoch, 10) + "." + strconv.FormatInt(sc.Seq, 10)
			if err := out.send("command", id, viewSealed(sc)); err != nil {
				return a.endBrokenStream(out, r, c)
			}
		}
		if len(cs) == 0 && out.keepAlive() != nil {
			return nil
		}
	}
}

func sessionEvent(s *session.Session) api.SessionEvent {
	return api.SessionEvent{Session: s.ID(), ExpiresAt: s.Authority().Expires().UTC()}
}
