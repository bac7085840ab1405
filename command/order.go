package command

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/policy"
	"github.com/watchword-iot/watchword/session"
	"github.com/watchword-iot/watchword/token"
)

// Call is what somebody wants a device to do.
type Call struct {
	ID       watchword.CommandID // the command's, made by [NewCommandID]; empty for a new one
	Device   watchword.SubjectID
	Function string
	Args     []byte        // one JSON object, at most 8 KiB; empty means {}
	TTL      time.Duration // 0 means the default; at most 24 h; whole seconds
	Signed   string        // the caller's signed order, or empty: then its exp is the command's
	Once     string        // Idempotency-Key, or empty
}

// NewCommandID returns an id that no command has.
func NewCommandID(now time.Time) watchword.CommandID {
	return watchword.CommandID(watchword.NewID("cmd_", now))
}

// Order stores a call that a's holder may make, and returns once it is durable,
// with its number; run it in [session.Session.Act]. What policy refuses is refused before anything is said about
// the device.
//
// Codes: bad_request, too_large, denied, not_found, subject_revoked,
// function_unknown, args_invalid, order_invalid (and the codes of
// [token.VerifyOrder] behind it), conflict, busy, unavailable.
func (d *Desk) Order(ctx context.Context, a *session.Authority, c Call, trace string) (Row, error) {
	now := d.o.Now()
	if err := c.normalize(d.o.MaxArgs); err != nil {
		return Row{}, err
	}
	basis, err := d.allow(ctx, a, c)
	if err != nil {
		return Row{}, err
	}
	ttl := c.TTL
	if ttl == 0 {
		ttl = d.o.TTL
	}
	expires := token.CommandEnd(now, ttl)
	if c.Signed != "" {
		o, err := d.signedOrder(ctx, a, c, now)
		if err != nil {
			return Row{}, watchword.Because(err, watchword.OrderInvalid, "the signed order does not hold: %s", watchword.CodeOf(err))
		}
		expires = o.Expires
	}
	id := c.ID
	if id == "" {
		id = NewCommandID(now)
	}
	args, err := d.safe.Seal(argsAtRest(id), c.Args)
	if err != nil {
		return Row{}, err
	}
	row := Row{
		Tenant: a.Tenant(), ID: id, Device: c.Device, Epoch: d.o.Epoch, Function: c.Function, Args: args, ArgsHash: jose.Hash(c.Args),
		Order: c.Signed, By: a.Subject(), ByKey: a.Key(), State: watchword.Queued, Created: now, Expires: expires,
	}
	by := audit.Actor{Tenant: a.Tenant(), Subject: a.Subject(), Key: a.Key(), Trace: trace, Basis: basis}
	argsHash := jose.Hash(append(d.argsSalt(id), c.Args...))
	row, replay, err := d.store.AddCommand(ctx, by, row, c.idempotency(a.Subject()), d.o.Bounds, func(_, added Row) audit.Entry {
		return by.Did(audit.CommandOrder, string(id), now, map[string]string{
			"device": string(c.Device), "function": c.Function, "expires": strconv.FormatInt(expires.Unix(), 10), "args_hash": argsHash,
			"epoch": strconv.FormatInt(added.Epoch, 10), "seq": strconv.FormatInt(added.Seq, 10),
		})
	})
	if err != nil {
		if errors.Is(err, watchword.ErrBasisMoved) {
			d.directory.Forget(a.Tenant(), c.Device) // the caller's authority is read anew by session.Act; its target's is not
		}
		return Row{}, err
	}
	if !replay {
		d.wake(row.Tenant, row.Device)
		d.hurry(row.Expires)
	}
	return row, nil
}

// normalize checks what needs neither store nor policy.
func (c *Call) normalize(most int) error {
	if err := watchword.CheckName("device", string(c.Device)); err != nil {
		return err
	}
	if err := watchword.CheckName("function", c.Function); err != nil {
		return err
	}
	if c.TTL < 0 || c.TTL > token.CommandLife || c.TTL%time.Second != 0 {
		return watchword.RefuseField("ttl", "must be whole seconds, at most 24 h")
	}
	if len(c.Once) > 128 {
		return watchword.RefuseField("Idempotency-Key", "may have 128 bytes")
	}
	if len(c.Args) == 0 {
		c.Args = []byte("{}")
	}
	if len(c.Args) > most {
		return &watchword.Error{Code: watchword.TooLarge, Field: "args", Detail: "arguments may have " + strconv.Itoa(most) + " bytes"}
	}
	// Inside the command args stand one level deeper, and within bytes that are signed as they are.
	if err := jose.Walk(append(append([]byte(`{"args":`), c.Args...), '}'), func(string, jsontext.Value) error { return nil }); err != nil {
		return &watchword.Error{Code: watchword.BadRequest, Field: "args", Detail: "must be one JSON object, no member twice, at most 7 deep", Err: err}
	}
	if c.Args[0] != '{' {
		return watchword.RefuseField("args", "must be a JSON object")
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, c.Args); err != nil {
		return watchword.RefuseField("args", "must be a JSON object")
	}
	if c.Signed == "" {
		c.Args = compact.Bytes() // with a signed order they travel byte for byte
	}
	return nil
}

// allow decides by policy, then by the function's schema, and returns what that was decided on.
func (d *Desk) allow(ctx context.Context, a *session.Authority, c Call) (watchword.Basis, error) {
	basis := a.Basis()
	target, err := d.directory.Target(ctx, a.Tenant(), c.Device)
	missing := watchword.CodeOf(err) == watchword.NotFound
	if err != nil && !missing {
		return basis, err
	}
	if missing {
		target = policy.Target{ID: c.Device}
	}
	if denied := a.Call(target, c.Function, c.Args).Err(); denied != nil {
		return basis, denied
	}
	if missing {
		return basis, err
	}
	basis.Target, basis.TargetVersion = target.ID, target.Basis
	fs, err := d.store.Functions(ctx, a.Tenant(), c.Device)
	if err != nil {
		return basis, err
	}
	return basis, d.schemas.check(fs, c.Function, c.Args)
}

// MayHave says whether a's holder may have a command because it ordered it: its token and
// today's policy must allow the very call still. Codes: denied,
// unavailable.
func (d *Desk) MayHave(ctx context.Context, a *session.Authority, r Row) error {
	if r.By != a.Subject() {
		return watchword.Refuse(watchword.Denied, "another ordered this command")
	}
	target, err := d.directory.Target(ctx, a.Tenant(), r.Device)
	if watchword.CodeOf(err) == watchword.NotFound {
		target, err = policy.Target{ID: r.Device}, nil
	}
	if err != nil {
		return err
	}
	args, err := d.Args(r)
	if err != nil {
		return err
	}
	return a.Call(target, r.Function, args).Err()
}

func (d *Desk) signedOrder(ctx context.Context, a *session.Authority, c Call, now time.Time) (token.Order, error) {
	who, err := d.directory.Principal(ctx, a.Tenant(), a.Subject())
	if err != nil {
		return token.Order{}, err
	}
	k, ok := who.Subject.SignKey(a.Key())
	if !ok {
		return token.Order{}, watchword.Refuse(watchword.KeyUnknown, "the order must be signed by the key that got the token")
	}
	pub, err := who.Keys.Key(k.ID)
	if err != nil {
		return token.Order{}, err
	}
	o, err := token.VerifyOrder(c.Signed, token.NewKeySet(pub), c.Device, now)
	if err != nil {
		return token.Order{}, err
	}
	return o, o.Covers(c.Function, c.Args, a.Subject(), o.Expires)
}

func (c *Call) idempotency(by watchword.SubjectID) Idempotency {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(c.Device), []byte(c.Function), c.Args, []byte(c.TTL.String())} {
		h.Write([]byte(strconv.Itoa(len(part)) + ":"))
		h.Write(part)
	}
	return Idempotency{Caller: by, Key: c.Once, Hash: [32]byte(h.Sum(nil))}
}

// Cancel takes back a command that is still queued. Codes: not_found, conflict.
func (d *Desk) Cancel(ctx context.Context, by audit.Actor, id watchword.CommandID) (Row, error) {
	now := d.o.Now()
	row, err := d.store.CancelCommand(ctx, by, id, now, audit.Always[Row](by.Did(audit.CommandCancel, string(id), now, nil)))
	if err == nil {
		d.tell(row)
	}
	return row, err
}
