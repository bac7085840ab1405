package command

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/token"
)

// Call is a request that a device run a function.
type Call struct {
	ID             watchword.CommandID // the command's, made by [NewCommandID]; empty for a new one
	Device         watchword.SubjectID
	Function       string
	Args           []byte        // one JSON object, at most 8 KiB; empty means {}
	TTL            time.Duration // 0 means the default; at most 24 h; whole seconds
	SignedOrder    string        // the caller's signed order, or empty: then its exp is the command's
	IdempotencyKey string        // Idempotency-Key, or empty
}

// NewCommandID returns an id that no command has.
func NewCommandID(now time.Time) watchword.CommandID {
	return watchword.CommandID(watchword.NewID("cmd_", now))
}

// Order stores a call that a's holder may make, and returns once it is durable,
// with its number; run it in [session.Session.RunAuthorized]. What policy refuses is refused before anything is said about
// the device.
//
// Codes: bad_request, too_large, denied, not_found, subject_revoked,
// function_unknown, args_invalid, order_invalid (and the codes of
// [token.VerifyOrder] behind it), conflict, busy, superseded, unavailable.
func (svc *Service) Order(ctx context.Context, a *session.Authority, c Call, trace string) (Row, error) {
	now := svc.opts.Now()
	if err := svc.keys.CheckNotSuperseded(); err != nil {
		return Row{}, err
	}
	if err := c.normalize(svc.opts.MaxArgs); err != nil {
		return Row{}, err
	}
	versions, err := svc.authorize(ctx, a, c)
	if err != nil {
		return Row{}, err
	}
	ttl := c.TTL
	if ttl == 0 {
		ttl = svc.opts.TTL
	}
	expires := token.CommandExpiry(now, ttl)
	if c.SignedOrder != "" {
		o, err := svc.verifySignedOrder(ctx, a, c, now)
		if err != nil {
			return Row{}, watchword.WrapRefusal(err, watchword.OrderInvalid, "the signed order is not valid")
		}
		expires = o.Expires
	}
	id := c.ID
	if id == "" {
		id = NewCommandID(now)
	}
	args, err := svc.sealer.Seal(argsContext(id), c.Args)
	if err != nil {
		return Row{}, err
	}
	row := Row{
		Tenant: a.Tenant(), ID: id, Device: c.Device, Epoch: svc.opts.Epoch, Function: c.Function, Args: args, ArgsHash: jose.Hash(c.Args),
		Order: c.SignedOrder, By: a.Subject(), ByKey: a.Key(), State: watchword.Queued, Created: now, Expires: expires,
	}
	by := audit.Actor{Tenant: a.Tenant(), Subject: a.Subject(), Key: a.Key(), Trace: trace, Versions: versions}
	argsHash := jose.Hash(append(svc.argsSalt(id), c.Args...))
	row, replay, err := svc.store.AddCommand(ctx, by, row, c.idempotency(a.Subject()), svc.opts.Bounds, func(_, added Row) audit.Entry {
		return by.DoneEntry(audit.CommandOrder, string(id), now, map[string]string{
			"device": string(c.Device), "function": c.Function, "expires": strconv.FormatInt(expires.Unix(), 10), "args_hash": argsHash,
			"epoch": strconv.FormatInt(added.Epoch, 10), "seq": strconv.FormatInt(added.Seq, 10),
		})
	})
	if err != nil {
		if errors.Is(err, watchword.ErrAuthorityChanged) {
			// The caller's authority is read anew by session.Act; its target's is not.
			if err := svc.directory.Refresh(ctx, a.Tenant(), c.Device, "", ""); err != nil {
				return Row{}, err
			}
		}
		return Row{}, err
	}
	if !replay {
		svc.observe(row)
		svc.wakeDelivery(row.Tenant, row.Device)
		svc.scheduleExpiry(row.Expires)
	}
	return row, nil
}

// normalize checks what needs neither store nor policy.
func (c *Call) normalize(limit int) error {
	if err := watchword.CheckName("device", string(c.Device)); err != nil {
		return err
	}
	if err := watchword.CheckName("function", c.Function); err != nil {
		return err
	}
	if c.TTL < 0 || c.TTL > token.CommandLifetime || c.TTL%time.Second != 0 {
		return watchword.RefuseField("ttl", "must be whole seconds, at most 24 h")
	}
	if len(c.IdempotencyKey) > 128 {
		return watchword.RefuseField("Idempotency-Key", "must have at most 128 bytes")
	}
	if len(c.Args) == 0 {
		c.Args = []byte("{}")
	}
	if len(c.Args) > limit {
		return &watchword.Error{Code: watchword.TooLarge, Field: "args", Detail: "must have at most " + strconv.Itoa(limit) + " bytes"}
	}
	// In the command args is one level deeper, and within bytes that are signed unchanged.
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
	if c.SignedOrder == "" {
		c.Args = compact.Bytes() // with a signed order they travel byte for byte
	}
	return nil
}

// authorize decides by policy, then by the function's schema, and returns what that was decided on.
func (svc *Service) authorize(ctx context.Context, a *session.Authority, c Call) (watchword.AuthorityVersions, error) {
	versions := a.Versions()
	target, err := svc.directory.Target(ctx, a.Tenant(), c.Device)
	missing := watchword.CodeOf(err) == watchword.NotFound
	if err != nil && !missing {
		return versions, err
	}
	if missing {
		target = policy.Target{ID: c.Device}
	}
	if denied := a.Call(target, c.Function, c.Args).Err(); denied != nil {
		return versions, denied
	}
	if missing {
		return versions, err
	}
	versions.Target, versions.TargetVersion = target.ID, target.Version
	fs, err := svc.store.Functions(ctx, a.Tenant(), c.Device)
	if err != nil {
		return versions, err
	}
	return versions, svc.schemas.check(fs, c.Function, c.Args)
}

// CheckMayRead says whether a's holder may have a command because it ordered it: its token and
// the current policy must allow the very call still. Codes: denied,
// unavailable.
func (svc *Service) CheckMayRead(ctx context.Context, a *session.Authority, r Row) error {
	if r.By != a.Subject() {
		return watchword.Refuse(watchword.Denied, "the command was ordered by another subject")
	}
	target, err := svc.directory.Target(ctx, a.Tenant(), r.Device)
	if watchword.CodeOf(err) == watchword.NotFound {
		target, err = policy.Target{ID: r.Device}, nil
	}
	if err != nil {
		return err
	}
	args, err := svc.Args(r)
	if err != nil {
		return err
	}
	return a.Call(target, r.Function, args).Err()
}

func (svc *Service) verifySignedOrder(ctx context.Context, a *session.Authority, c Call, now time.Time) (token.Order, error) {
	who, err := svc.directory.Principal(ctx, a.Tenant(), a.Subject())
	if err != nil {
		return token.Order{}, err
	}
	k, ok := who.Subject.SignKey(a.Key(), now)
	if !ok {
		return token.Order{}, watchword.Refuse(watchword.KeyUnknown, "kid of the order must be the key of the access token")
	}
	pub, err := who.Keys.Key(k.ID)
	if err != nil {
		return token.Order{}, err
	}
	o, err := token.VerifyOrder(c.SignedOrder, token.NewKeySet(pub), func(server string) bool { return slices.Contains(svc.opts.Issuers().Accepted(a.Tenant(), now), server) }, c.Device, now)
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
	return Idempotency{Caller: by, Key: c.IdempotencyKey, Hash: [32]byte(h.Sum(nil))}
}

// Cancel takes back a command that is still queued. Codes: not_found, conflict.
func (svc *Service) Cancel(ctx context.Context, by audit.Actor, id watchword.CommandID) (Row, error) {
	now := svc.opts.Now()
	row, err := svc.store.CancelCommand(ctx, by, id, now, audit.FixedEntry[Row](by.DoneEntry(audit.CommandCancel, string(id), now, nil)))
	if err == nil {
		svc.notify(row)
	}
	return row, err
}
