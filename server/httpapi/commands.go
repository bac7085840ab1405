package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/token"
)

// viewCommand converts a row; whole adds arguments and receipt.
func (a *API) viewCommand(r command.Row, whole bool) (api.Command, error) {
	c := api.Command{
		ID: r.ID, Device: r.Device, Function: r.Function, State: r.State, Epoch: r.Epoch, Seq: r.Seq, By: r.By, ByKey: r.ByKey,
		CreatedAt: r.Created.UTC(), ExpiresAt: r.Expires.UTC(), SentAt: optionalTime(r.SentAt), DeliveredAt: optionalTime(r.DeliveredAt),
		SettledAt: optionalTime(r.SettledAt), ArgsHash: r.ArgsHash, LogEntry: r.Entry, Reason: (*api.Reason)(r.Reason),
	}
	if !whole {
		return c, nil
	}
	args, err := a.Commands.Args(r)
	if err != nil {
		return c, err
	}
	c.Args = args
	jws, err := a.Commands.Receipt(r)
	if err != nil || jws == "" {
		return c, err
	}
	result, err := token.ReceiptResult(jws)
	c.Receipt = &api.Receipt{Status: r.Status, Key: r.ReceiptKey, Result: result, JWS: jws}
	return c, err
}

type commandOut struct {
	Status int
	Body   api.Command
}

func (a *API) commandAnswer(r command.Row, err error) (*commandOut, error) {
	if err != nil {
		return nil, err
	}
	c, err := a.viewCommand(r, true)
	return &commandOut{http.StatusOK, c}, err
}

func (a *API) commandRoutes() {
	type commandSendIn struct {
		Wait string `query:"wait"`
		Once string `header:"Idempotency-Key" maxLength:"128"`
		Body api.SendCommandRequest
	}
	register(a, operation{method: http.MethodPost, path: "/v1/commands", summary: "Order a device to run a function", status: http.StatusCreated, maxBody: 32 << 10, anyToken: true},
		func(ctx context.Context, c *caller, in *commandSendIn) (*commandOut, error) {
			pause, err := parseWait(in.Wait)
			if err != nil {
				return nil, err
			}
			ttl, err := parseDuration("ttl", in.Body.TTL)
			if err != nil {
				return nil, err
			}
			id := command.NewCommandID(a.Now())
			watch := a.Commands.Watch(c.Tenant(), id) // watching starts before the command exists, so that no change is missed
			defer watch.Close()
			row, err := a.Commands.Order(ctx, c.Authority, command.Call{
				ID: id, Device: in.Body.Device, Function: in.Body.Function, Args: in.Body.Args, TTL: ttl, SignedOrder: in.Body.Order, IdempotencyKey: in.Once,
			}, c.actor.Trace)
			if err == nil && pause > 0 {
				wait := func(ctx context.Context) (command.Row, error) { return watch.Wait(ctx, row), nil }
				if row.ID != id { // an earlier request with the same Idempotency-Key created it
					wait = a.waitForCommand(c, row.ID)
				}
				row, err = a.longPoll(c, row, pause, wait)
			}
			out, err := a.commandAnswer(row, err)
			if err == nil && !row.State.Final() {
				out.Status = http.StatusCreated
			}
			return out, err
		})

	type commandListIn struct {
		Page
		Device watchword.SubjectID    `query:"device" maxLength:"64"`
		By     watchword.SubjectID    `query:"by" maxLength:"64"`
		State  watchword.CommandState `query:"state" maxLength:"16"`
	}
	type commandListOut struct{ Body api.CommandList }
	register(a, operation{method: http.MethodGet, path: "/v1/commands", summary: "List commands, newest first"},
		func(ctx context.Context, c *caller, in *commandListIn) (*commandListOut, error) {
			f := command.Filter{Device: in.Device, By: in.By, State: in.State}
			rows, err := a.Commands.List(ctx, c.Tenant(), f, watchword.CommandID(in.Token), in.Size+1)
			if err != nil {
				return nil, err
			}
			out := &commandListOut{}
			out.Body.Commands = []api.Command{}
			for _, r := range rows {
				v, err := a.viewCommand(r, false)
				if err != nil {
					return nil, err
				}
				out.Body.Commands = append(out.Body.Commands, v)
			}
			var more bool
			if out.Body.Commands, more, err = cutPage(out.Body.Commands, in.Size); more {
				out.Body.NextPageToken = string(out.Body.Commands[len(out.Body.Commands)-1].ID)
			}
			return out, err
		})

	type commandOneIn struct {
		ID   watchword.CommandID `path:"id" maxLength:"64"`
		Wait string              `query:"wait"`
	}
	register(a, operation{method: http.MethodGet, path: "/v1/commands/{id}", summary: "Get a command with its receipt; with wait, once it is final", anyToken: true},
		func(ctx context.Context, c *caller, in *commandOneIn) (*commandOut, error) {
			pause, err := parseWait(in.Wait)
			if err != nil {
				return nil, err
			}
			row, err := a.visibleCommand(ctx, c, in.ID, http.MethodGet, "")
			if err == nil && pause > 0 {
				row, err = a.longPoll(c, row, pause, a.waitForCommand(c, row.ID))
			}
			return a.commandAnswer(row, err)
		})

	a.handle(route{pattern: "GET /v1/commands/{id}/evidence", anyToken: true}, a.evidence)
	a.describe(http.MethodGet, "/v1/commands/{id}/evidence", "Get the evidence that a command was ordered, handed over and answered, which can be verified with the root's public key alone", nil)

	type commandCancelIn struct {
		ID watchword.CommandID `path:"id" maxLength:"64"`
	}
	register(a, operation{method: http.MethodPost, path: "/v1/commands/{id}/cancel", summary: "Cancel a command that is still queued", anyToken: true},
		func(ctx context.Context, c *caller, in *commandCancelIn) (*commandOut, error) {
			if _, err := a.visibleCommand(ctx, c, in.ID, http.MethodPost, "/cancel"); err != nil {
				return nil, err
			}
			return a.commandAnswer(a.Commands.Cancel(ctx, c.actor.Actor, in.ID))
		})
}

// evidence returns all signed documents of a finished command.
func (a *API) evidence(w http.ResponseWriter, r *http.Request, c *caller) error {
	id := watchword.CommandID(r.PathValue("id"))
	row, err := a.visibleCommand(r.Context(), c, id, http.MethodGet, "/evidence")
	if err != nil {
		return err
	}
	if err := a.auditRead(r.Context(), c, "evidence", string(id)); err != nil {
		return err
	}
	bundles, err := a.Keys.BundleChain(row.Tenant, row.Created, row.Expires, a.Now())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), writeTimeout/2)
	defer cancel()
	e, err := a.Commands.Evidence(ctx, row, a.Entries, a.Audit, bundles)
	if err != nil {
		return err
	}
	b, err := e.Marshal()
	if err == nil {
		writePlain(w, "application/json", "no-store", b)
	}
	return err
}

// visibleCommand returns a command that the caller may read: its permissions cover the path, or it
// ordered the command and could order it now. Being the orderer is not enough: the token must allow
// the call too. A command that does not exist and one that the caller may not read give the same
// answer. Codes: denied, not_found, unavailable.
func (a *API) visibleCommand(ctx context.Context, c *caller, id watchword.CommandID, method, rest string) (command.Row, error) {
	row, err := a.Commands.Command(ctx, c.Tenant(), id)
	if err != nil {
		row.ID = id
	}
	if denied := c.session.require(a.mayRead(c, row, method, rest)); denied != nil {
		return command.Row{}, denied
	}
	return row, err
}

// mayRead returns the check that the reader of a command must pass. A row with only an id stands
// for a command that does not exist.
func (a *API) mayRead(c *caller, row command.Row, method, rest string) func(*session.Authority) error {
	return func(now *session.Authority) error {
		denied := now.Request(method, "/v1/commands/"+string(row.ID)+rest).Err()
		if denied == nil || row.By == "" {
			return denied
		}
		err := a.Commands.CheckMayRead(c.ctx, now, row)
		if watchword.CodeOf(err) == watchword.Denied {
			return denied
		}
		return err
	}
}

// waitForCommand waits until a command is in a final state.
func (a *API) waitForCommand(c *caller, id watchword.CommandID) func(context.Context) (command.Row, error) {
	return func(ctx context.Context) (command.Row, error) { return a.Commands.Wait(ctx, c.Tenant(), id) }
}

// longPoll waits until a command is final or pause has passed. Where the subject has too many
// waiting requests already, it returns row at once. The result is later data, so it is sent only if
// the caller may still read it then. Codes: the reason why authority ended.
func (a *API) longPoll(c *caller, row command.Row, pause time.Duration, wait func(context.Context) (command.Row, error)) (command.Row, error) {
	c.session.waited = true
	if err := c.session.require(a.mayRead(c, row, http.MethodGet, "")); err != nil {
		return command.Row{}, err
	}
	s, err := a.Guard.Open(c.ctx, c.credentials, session.Options{Transport: "wait", Remote: c.remote, Class: session.ClassWait})
	if watchword.CodeOf(err) == watchword.Busy {
		return row, nil
	}
	if err != nil {
		return command.Row{}, err
	}
	defer s.End(nil)
	ctx, cancel := context.WithTimeout(c.ctx, pause)
	defer cancel()
	row, err = wait(ctx)
	if cause := streamEnded(c.ctx); err == nil && cause != nil {
		return command.Row{}, cause
	}
	return row, err
}
