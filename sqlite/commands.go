package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/command"
)

const commandColumns = `tenant, id, device, incarnation, epoch, seq, function, args, args_hash, signed_order, orderer, orderer_key,
	state, created, expires, sent_at, delivered_at, settled_at, status, receipt, receipt_key, entry, reason`

func scanCommand(s scanner) (r command.Row, err error) {
	var created, expires, sent, delivered, settled int64
	var reason string
	err = s.Scan(&r.Tenant, &r.ID, &r.Device, &r.Incarnation, &r.Epoch, &r.Seq, &r.Function, &r.Args, &r.ArgsHash, &r.Order, &r.By, &r.ByKey,
		&r.State, &created, &expires, &sent, &delivered, &settled, &r.Status, &r.Receipt, &r.ReceiptKey, &r.Entry, &reason)
	r.Created, r.Expires = moment(created), moment(expires)
	r.SentAt, r.DeliveredAt, r.SettledAt = moment(sent), moment(delivered), moment(settled)
	if err == nil && reason != "" {
		err = json.Unmarshal([]byte(reason), &r.Reason)
	}
	return r, err
}

func readCommand(ctx context.Context, from rows, t watchword.TenantID, id watchword.CommandID) (command.Row, error) {
	return one(ctx, from, scanCommand, notFound("command", id), `SELECT `+commandColumns+` FROM commands WHERE tenant = ? AND id = ?`, t, id)
}

func (t *tx) command(tenant watchword.TenantID, id watchword.CommandID) (command.Row, error) {
	return readCommand(context.Background(), t, tenant, id)
}

// AddCommand stores a command under its device's next number.
func (s *Store) AddCommand(ctx context.Context, r command.Row, idem command.Idempotency, b command.Bounds, e audit.Entry) (out command.Row, replay bool, err error) {
	err = s.w.act(ctx, func(t *tx) error {
		if out, replay, err = t.repeated(r.Tenant, idem); err != nil || replay {
			return err
		}
		if out, err = t.number(r, b); err != nil {
			return err
		}
		if idem.Key != "" {
			if _, err := t.exec(`INSERT INTO idempotency (tenant, caller, key, hash, command, expires) VALUES (?, ?, ?, ?, ?, ?)`,
				r.Tenant, idem.Caller, idem.Key, idem.Hash[:], r.ID, stamp(r.Created.Add(idempotencyLife))); err != nil {
				return err
			}
		}
		return t.enter(e.With("epoch", strconv.FormatInt(out.Epoch, 10), "seq", strconv.FormatInt(out.Seq, 10)))
	}, e)
	if err != nil {
		return command.Row{}, false, err
	}
	return out, replay, nil
}

// idempotencyLife is how long a repeated request is known: longer than a command lives.
const idempotencyLife = 48 * time.Hour

// repeated finds the command that the same request made before.
func (t *tx) repeated(tenant watchword.TenantID, idem command.Idempotency) (r command.Row, replay bool, err error) {
	if idem.Key == "" {
		return r, false, nil
	}
	type known struct {
		hash []byte
		id   watchword.CommandID
	}
	ks, err := all(context.Background(), t, func(s scanner) (k known, err error) {
		err = s.Scan(&k.hash, &k.id)
		return k, err
	}, `SELECT hash, command FROM idempotency WHERE tenant = ? AND caller = ? AND key = ?`, tenant, idem.Caller, idem.Key)
	if err != nil || len(ks) == 0 {
		return r, false, err
	}
	if !bytes.Equal(ks[0].hash, idem.Hash[:]) {
		return r, false, watchword.Refuse(watchword.Conflict, "this Idempotency-Key came with another request before")
	}
	r, err = t.command(tenant, ks[0].id)
	return r, err == nil, err
}

// number gives the command the device's next number and writes it. A refusal takes
// the number back, with the step.
func (t *tx) number(r command.Row, b command.Bounds) (command.Row, error) {
	type taken struct {
		device  watchword.Subject
		waiting int64
		by, all int64 // commands of the orderer, and of all, that are not final
	}
	c, err := one(context.Background(), t, func(s scanner) (c taken, err error) {
		c.device.Kind, c.device.ID = watchword.Device, r.Device
		err = s.Scan(&r.Seq, &r.Incarnation, &c.device.State, &c.waiting, &c.by, &c.all)
		return c, err
	}, notFound("device", r.Device), `UPDATE subjects SET last_seq = last_seq + 1 WHERE tenant = ? AND id = ? AND deleted = 0 AND kind = 'device'
		RETURNING last_seq, incarnation, state, (SELECT count(*) FROM commands c WHERE c.tenant = subjects.tenant AND c.device = subjects.id
			AND c.state IN ('queued', 'sent', 'delivered', 'accepted')),
			coalesce((SELECT n FROM unfinished_commands u WHERE u.tenant = subjects.tenant AND u.orderer = ?), 0),
			coalesce((SELECT n FROM unfinished_commands u WHERE u.tenant = '' AND u.orderer = ''), 0)`, r.Tenant, r.Device, r.By)
	if err != nil {
		return r, err
	}
	if c.device.State == watchword.Revoked {
		return r, c.device.Usable()
	}
	if c.waiting >= command.MaxQueued {
		return r, watchword.Refuse(watchword.Busy, "%d commands wait for %q already", c.waiting, r.Device)
	}
	if err := b.Refusal(c.by, c.all); err != nil {
		return r, err
	}
	if _, err := t.exec(`INSERT INTO commands (tenant, id, device, incarnation, epoch, seq, function, args, args_hash, signed_order, orderer, orderer_key, state, created, expires)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		r.Tenant, r.ID, r.Device, r.Incarnation, r.Epoch, r.Seq, r.Function, r.Args, r.ArgsHash, r.Order, r.By, r.ByKey,
		watchword.Queued, stamp(r.Created), stamp(r.Expires)); err != nil {
		return r, err
	}
	r.State, r.Created, r.Expires = watchword.Queued, moment(stamp(r.Created)), moment(stamp(r.Expires))
	return r, nil
}

// Command returns one command.
func (s *Store) Command(ctx context.Context, t watchword.TenantID, id watchword.CommandID) (command.Row, error) {
	return readCommand(ctx, s, t, id)
}

// unprepared runs queries whose text is put together, without keeping them.
type unprepared struct{ *Store }

func (u unprepared) query(ctx context.Context, q string, args ...any) (*sql.Rows, error) {
	return u.db.QueryContext(ctx, q, args...)
}

// Commands lists commands, newest first.
func (s *Store) Commands(ctx context.Context, t watchword.TenantID, f command.Filter, before watchword.CommandID, limit int) ([]command.Row, error) {
	var q strings.Builder
	q.WriteString(`SELECT ` + commandColumns + ` FROM commands WHERE tenant = ?`)
	args := []any{t}
	for _, c := range []struct {
		column string
		value  string
	}{{"device = ?", string(f.Device)}, {"orderer = ?", string(f.By)}, {"state = ?", string(f.State)}, {"id < ?", string(before)}} {
		if c.value != "" {
			q.WriteString(" AND " + c.column)
			args = append(args, c.value)
		}
	}
	q.WriteString(` ORDER BY id DESC LIMIT ?`)
	return all(ctx, unprepared{s}, scanCommand, q.String(), append(args, limit)...)
}

// Pending returns what waits for a device, in order.
func (s *Store) Pending(ctx context.Context, t watchword.TenantID, device watchword.SubjectID, after int64, now time.Time, limit int) ([]command.Row, error) {
	return all(ctx, s, scanCommand, `SELECT `+commandColumns+` FROM commands
		WHERE tenant = ? AND device = ? AND state IN ('queued', 'sent') AND seq > ? AND expires > ? ORDER BY seq LIMIT ?`, t, device, after, stamp(now), limit)
}

func handovers(ctx context.Context, from rows, t watchword.TenantID, id watchword.CommandID) ([]command.Handover, error) {
	return all(ctx, from, func(r scanner) (h command.Handover, err error) {
		var at int64
		err = r.Scan(&h.Hash, &h.Nonce, &h.JWS, &at, &h.Entry)
		h.At = moment(at)
		return h, err
	}, `SELECT hash, nonce, jws, at, entry FROM handovers WHERE tenant = ? AND command = ? ORDER BY n`, t, id)
}

// Handovers returns the versions of a command that left the house.
func (s *Store) Handovers(ctx context.Context, t watchword.TenantID, id watchword.CommandID) ([]command.Handover, error) {
	return handovers(ctx, s, t, id)
}

// delivery is a command beside its device as it stands, and what was handed over.
type delivery struct {
	command.Row
	device   watchword.Subject
	versions int64
	known    bool // the one that is asked for is among them
	entry    int64
}

func (t *tx) delivery(tenant watchword.TenantID, id watchword.CommandID, hash string) (delivery, error) {
	return one(context.Background(), t, func(s scanner) (d delivery, err error) {
		d.device.Kind = watchword.Device
		d.Row, err = scanCommand(and{s, []any{&d.device.State, &d.device.Incarnation, &d.versions, &d.known, &d.entry}})
		d.device.ID = d.Device
		return d, err
	}, notFound("command", id), selectDelivery, hash, tenant, id)
}

var selectDelivery = `SELECT ` + prefixed("c.", commandColumns) + `, s.state, s.incarnation,
		(SELECT count(*) FROM handovers h WHERE h.tenant = c.tenant AND h.command = c.id),
		EXISTS (SELECT 1 FROM handovers h WHERE h.tenant = c.tenant AND h.command = c.id AND h.hash = ?1),
		coalesce((SELECT entry FROM handovers h WHERE h.tenant = c.tenant AND h.command = c.id AND h.hash = ?1), 0)
	FROM commands c JOIN subjects s ON s.tenant = c.tenant AND s.id = c.device AND s.deleted = 0 AND s.kind = 'device'
	WHERE c.tenant = ?2 AND c.id = ?3`

// and scans further columns behind those that it is asked for.
type and struct {
	scanner
	more []any
}

func (a and) Scan(dest ...any) error { return a.scanner.Scan(append(dest, a.more...)...) }

// prefixed puts a table's name before each of some columns.
func prefixed(table, columns string) string {
	var out strings.Builder
	for i, c := range strings.Split(columns, ",") {
		if i > 0 {
			out.WriteString(", ")
		}
		out.WriteString(table + strings.TrimSpace(c))
	}
	return out.String()
}

// HandOver keeps a version's hash before it leaves the house.
func (s *Store) HandOver(ctx context.Context, tenant watchword.TenantID, id watchword.CommandID, h command.Handover, e audit.Entry) (out command.Row, entry int64, err error) {
	err = s.w.do(ctx, func(t *tx) error {
		c, err := t.delivery(tenant, id, h.Hash)
		if err != nil {
			return err
		}
		out = c.Row
		if out.State != watchword.Queued && out.State != watchword.Sent || !out.Expires.After(h.At) {
			return watchword.Refuse(watchword.Conflict, "command %q is %s", id, out.State)
		}
		if err := c.device.Usable(); err != nil {
			return err
		}
		if c.device.Incarnation != out.Incarnation {
			return watchword.Refuse(watchword.Conflict, "command %q was for an earlier life of the device", id)
		}
		if !c.known && c.versions >= command.MaxHandovers {
			return watchword.Refuse(watchword.Busy, "command %q was handed over %d times", id, c.versions)
		}
		if entry = c.entry; !c.known {
			entry = t.log.next()
			if _, err := t.exec(`INSERT INTO handovers (tenant, command, hash, nonce, jws, at, entry) VALUES (?, ?, ?, ?, ?, ?, ?)`,
				tenant, id, h.Hash, h.Nonce, h.JWS, stamp(h.At), entry); err != nil {
				return err
			}
			if err := t.enter(e); err != nil {
				return err
			}
		}
		if out.State == watchword.Queued {
			out.State, out.SentAt = watchword.Sent, moment(stamp(h.At))
			_, err = t.exec(`UPDATE commands SET state = 'sent', sent_at = ? WHERE tenant = ? AND id = ?`, stamp(h.At), tenant, id)
		}
		return err
	})
	return out, entry, err
}

// Deliver notes which of its commands a device holds: nothing of one that is not active.
func (s *Store) Deliver(ctx context.Context, tenant watchword.TenantID, device watchword.SubjectID, a command.Acknowledged, now time.Time) ([]command.Row, error) {
	const sent = ` FROM commands WHERE tenant = ? AND device = ? AND state IN ('queued', 'sent') AND state = 'sent' AND epoch = ?
		AND (seq <= ? OR seq IN (SELECT value FROM json_each(?)))
		AND EXISTS (SELECT 1 FROM subjects s WHERE s.tenant = commands.tenant AND s.id = commands.device AND s.deleted = 0 AND s.state = 'active')
		ORDER BY seq`
	each, err := json.Marshal(a.Each)
	if err != nil {
		return nil, err
	}
	args := []any{tenant, device, a.Epoch, a.UpTo, string(each)}
	// Most polls acknowledge nothing new: look before taking the one writer.
	waiting, err := all(ctx, s, scanCommand, `SELECT `+commandColumns+sent, args...)
	if err != nil || len(waiting) == 0 {
		return nil, err
	}
	var out []command.Row
	err = s.w.do(ctx, func(t *tx) error {
		if out, err = all(context.Background(), t, scanCommand, `SELECT `+commandColumns+sent, args...); err != nil {
			return err
		}
		for i := range out {
			out[i].State, out[i].DeliveredAt = watchword.Delivered, moment(stamp(now))
			if _, err := t.exec(`UPDATE commands SET state = 'delivered', delivered_at = ? WHERE tenant = ? AND id = ?`, stamp(now), tenant, out[i].ID); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Undeliver ends a command that its device cannot take, unless it has ended or was
// acknowledged meanwhile.
func (s *Store) Undeliver(ctx context.Context, u command.Undelivered, e audit.Entry) (out command.Row, changed bool, err error) {
	err = s.w.do(ctx, func(t *tx) error {
		if out, err = t.command(u.Tenant, u.ID); err != nil {
			return err
		}
		if out.State != watchword.Queued && out.State != watchword.Sent {
			return nil
		}
		reason, err := json.Marshal(u.Reason)
		if err != nil {
			return err
		}
		changed, e = true, e.With("before", string(out.State))
		out.State, out.Reason, out.SentAt, out.SettledAt = watchword.Undeliverable, &u.Reason, moment(stamp(u.SentAt)), moment(stamp(u.At))
		if _, err := t.exec(`UPDATE commands SET state = ?, reason = ?, sent_at = ?, settled_at = ? WHERE tenant = ? AND id = ?`,
			out.State, string(reason), stamp(u.SentAt), stamp(u.At), u.Tenant, u.ID); err != nil {
			return err
		}
		return t.enter(e)
	})
	if err != nil {
		return command.Row{}, false, err
	}
	return out, changed, nil
}

// Settle applies a receipt to its command.
func (s *Store) Settle(ctx context.Context, c command.Settlement, e audit.Entry) (out command.Row, changed bool, err error) {
	err = s.w.act(ctx, func(t *tx) error {
		if out, err = t.fitting(c); err != nil {
			return err
		}
		to, changes, err := settled(out, c)
		if err != nil || !changes {
			return err
		}
		changed = true
		out.State, out.Status, out.Receipt, out.ReceiptKey, out.Entry, out.Reason = to, c.Status, c.JWS, c.Key, t.log.next(), nil
		if out.DeliveredAt.IsZero() {
			out.DeliveredAt = moment(stamp(c.At)) // who answers has it
		}
		if to.Final() {
			out.SettledAt = moment(stamp(c.At))
		} else {
			out.SettledAt = time.Time{}
		}
		if _, err := t.exec(`UPDATE commands SET state = ?, status = ?, receipt = ?, receipt_key = ?, delivered_at = ?, settled_at = ?, entry = ?, reason = '' WHERE tenant = ? AND id = ?`,
			out.State, out.Status, out.Receipt, out.ReceiptKey, stamp(out.DeliveredAt), stamp(out.SettledAt), out.Entry, c.Tenant, c.ID); err != nil {
			return err
		}
		return t.enter(e)
	}, e)
	if err != nil {
		return command.Row{}, false, err
	}
	return out, changed, nil
}

// fitting returns the command that a receipt speaks of, if every part of it fits.
func (t *tx) fitting(c command.Settlement) (command.Row, error) {
	refused := watchword.Refuse(watchword.ReceiptInvalid, "the receipt fits no command that was handed to this device")
	r, err := t.delivery(c.Tenant, c.ID, c.Hash)
	if watchword.CodeOf(err) == watchword.NotFound {
		return r.Row, refused
	} else if err != nil {
		return r.Row, err
	}
	if r.Device != c.Device || r.Incarnation != r.device.Incarnation || r.Epoch != c.Epoch || r.Seq != c.Seq || !r.known {
		return r.Row, refused
	}
	return r.Row, nil
}

// settled is where a receipt leads a command: the state, and whether it changes.
func settled(r command.Row, c command.Settlement) (to watchword.CommandState, changes bool, err error) {
	to, ok := c.Status.State()
	if !ok {
		return to, false, watchword.Refuse(watchword.ReceiptInvalid, "a receipt without a status")
	}
	if r.Status == c.Status {
		return r.State, false, nil
	}
	over := watchword.Refuse(watchword.Conflict, "command %q is %s", r.ID, r.State)
	if to == watchword.Accepted {
		switch r.State {
		case watchword.Sent, watchword.Delivered:
			return to, true, nil
		case watchword.Unknown, watchword.Undeliverable:
			if r.Expires.After(c.At) {
				return to, true, nil
			}
		}
		return to, false, over
	}
	switch r.State {
	case watchword.Sent, watchword.Delivered, watchword.Accepted, watchword.Unknown, watchword.Expired, watchword.Undeliverable:
		return to, true, nil
	}
	return to, false, over
}

// CancelCommand takes back a queued command.
func (s *Store) CancelCommand(ctx context.Context, tenant watchword.TenantID, id watchword.CommandID, now time.Time, e audit.Entry) (out command.Row, err error) {
	err = s.w.act(ctx, func(t *tx) error {
		if out, err = t.command(tenant, id); err != nil {
			return err
		}
		if out.State != watchword.Queued {
			return watchword.Refuse(watchword.Conflict, "command %q is %s: only a queued one can be cancelled", id, out.State)
		}
		out.State, out.SettledAt = watchword.Cancelled, moment(stamp(now))
		if _, err := t.exec(`UPDATE commands SET state = 'cancelled', settled_at = ? WHERE tenant = ? AND id = ?`, stamp(now), tenant, id); err != nil {
			return err
		}
		return t.enter(e)
	}, e)
	return out, err
}

const live = `state IN ('queued', 'sent', 'delivered', 'accepted')`

// ExpireCommands ends what is over.
func (s *Store) ExpireCommands(ctx context.Context, now time.Time, limit int, entry func(command.Row) audit.Entry) (out []command.Row, err error) {
	err = s.w.do(ctx, func(t *tx) error {
		if out, err = all(context.Background(), t, scanCommand, `SELECT `+commandColumns+` FROM commands WHERE `+live+` AND expires <= ? ORDER BY expires LIMIT ?`, stamp(now), limit); err != nil {
			return err
		}
		for i, r := range out {
			e := entry(r)
			to := watchword.Expired
			if r.State == watchword.Delivered || r.State == watchword.Accepted {
				to = watchword.Unknown
			}
			out[i].State, out[i].SettledAt = to, moment(stamp(now))
			if _, err := t.exec(`UPDATE commands SET state = ?, settled_at = ? WHERE tenant = ? AND id = ?`, to, stamp(now), r.Tenant, r.ID); err != nil {
				return err
			}
			if err := t.enter(e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// NextExpiry returns the earliest end of a command that is not final.
func (s *Store) NextExpiry(ctx context.Context) (time.Time, error) {
	return one(ctx, s, func(r scanner) (time.Time, error) {
		var end int64
		err := r.Scan(&end)
		return moment(end), err
	}, nil, `SELECT coalesce(min(expires), 0) FROM commands WHERE `+live)
}
