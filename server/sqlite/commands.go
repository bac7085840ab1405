package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
)

const commandColumns = `tenant, id, device, incarnation, epoch, seq, function, args, args_hash, signed_order, orderer, orderer_key,
	state, created, expires, sent_at, delivered_at, settled_at, status, receipt, receipt_key, entry, reason`

func scanCommand(s scanner) (r command.Row, err error) {
	var created, expires, sent, delivered, settled int64
	var reason string
	err = s.Scan(&r.Tenant, &r.ID, &r.Device, &r.Incarnation, &r.Epoch, &r.Seq, &r.Function, &r.Args, &r.ArgsHash, &r.Order, &r.By, &r.ByKey,
		&r.State, &created, &expires, &sent, &delivered, &settled, &r.Status, &r.Receipt, &r.ReceiptKey, &r.Entry, &reason)
	r.Created, r.Expires = fromMillis(created), fromMillis(expires)
	r.SentAt, r.DeliveredAt, r.SettledAt = fromMillis(sent), fromMillis(delivered), fromMillis(settled)
	if err == nil && reason != "" {
		err = json.Unmarshal([]byte(reason), &r.Reason)
	}
	return r, err
}

func readCommand(ctx context.Context, from querier, t watchword.TenantID, id watchword.CommandID) (command.Row, error) {
	return queryOne(ctx, from, scanCommand, notFound("command", id), `SELECT `+commandColumns+` FROM commands WHERE tenant = ? AND id = ?`, t, id)
}

func (t *tx) command(tenant watchword.TenantID, id watchword.CommandID) (command.Row, error) {
	return readCommand(context.Background(), t, tenant, id)
}

// AddCommand stores a command under its device's next sequence number.
func (s *Store) AddCommand(ctx context.Context, by audit.Actor, r command.Row, idem command.Idempotency, b command.Bounds, entry audit.EntryOf[command.Row]) (command.Row, bool, error) {
	type result struct {
		row    command.Row
		replay bool
	}
	r.Created, r.Expires = truncateToMillis(r.Created), truncateToMillis(r.Expires)
	out, err := writeAs(ctx, s, by, func(t *tx) (result, error) {
		if old, known, err := t.findIdempotent(r.Tenant, idem); err != nil || known {
			return result{old, known}, err
		}
		row, err := t.queue(r, b)
		if err != nil {
			return result{}, err
		}
		if idem.Key != "" {
			if _, err := t.exec(`INSERT INTO idempotency (tenant, caller, key, hash, command, expires) VALUES (?, ?, ?, ?, ?, ?)`,
				r.Tenant, idem.Caller, idem.Key, idem.Hash[:], r.ID, toMillis(idem.Until(r.Created))); err != nil {
				return result{}, err
			}
		}
		return result{row, false}, t.addEntry(entry(command.Row{}, row))
	})
	return out.row, out.replay, err
}

// findIdempotent returns the command that an earlier request with the same key created.
func (t *tx) findIdempotent(tenant watchword.TenantID, idem command.Idempotency) (r command.Row, known bool, err error) {
	if idem.Key == "" {
		return r, false, nil
	}
	type request struct {
		hash []byte
		id   watchword.CommandID
	}
	rs, err := queryAll(context.Background(), t, func(s scanner) (r request, err error) {
		err = s.Scan(&r.hash, &r.id)
		return r, err
	}, `SELECT hash, command FROM idempotency WHERE tenant = ? AND caller = ? AND key = ?`, tenant, idem.Caller, idem.Key)
	if err != nil || len(rs) == 0 {
		return r, false, err
	}
	if err := idem.Repeats(rs[0].hash); err != nil {
		return r, false, err
	}
	r, err = t.command(tenant, rs[0].id)
	return r, err == nil, err
}

// queue gives the command the device's next number and writes it. A refusal takes the number back, with the step.
func (t *tx) queue(r command.Row, b command.Bounds) (command.Row, error) {
	q, err := queryOne(context.Background(), t, func(s scanner) (q command.Queue, err error) {
		q.Device.Kind, q.Device.ID = watchword.Device, r.Device
		err = s.Scan(&q.Seq, &q.Device.Incarnation, &q.Device.State, &q.OfDevice, &q.OfOrderer, &q.Total)
		return q, err
	}, notFound("device", r.Device), `UPDATE subjects SET last_seq = last_seq + 1 WHERE tenant = ? AND id = ? AND deleted = 0 AND kind = 'device'
		RETURNING last_seq, incarnation, state, (SELECT count(*) FROM commands c WHERE c.tenant = subjects.tenant AND c.device = subjects.id
			AND c.state IN ('queued', 'sent', 'delivered', 'accepted')),
			coalesce((SELECT n FROM unfinished_commands u WHERE u.tenant = subjects.tenant AND u.orderer = ?), 0),
			coalesce((SELECT n FROM unfinished_commands u WHERE u.tenant = '' AND u.orderer = ''), 0)`, r.Tenant, r.Device, r.By)
	if err == nil {
		r, err = q.Add(r, b)
	}
	if err != nil {
		return r, err
	}
	_, err = t.exec(`INSERT INTO commands (tenant, id, device, incarnation, epoch, seq, function, args, args_hash, signed_order, orderer, orderer_key, state, created, expires)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		r.Tenant, r.ID, r.Device, r.Incarnation, r.Epoch, r.Seq, r.Function, r.Args, r.ArgsHash, r.Order, r.By, r.ByKey, r.State, toMillis(r.Created), toMillis(r.Expires))
	return r, err
}

// putCommand writes all of a command that changes after it was added.
func (t *tx) putCommand(r command.Row) error {
	reason := ""
	if r.Reason != nil {
		b, err := json.Marshal(r.Reason)
		if err != nil {
			return err
		}
		reason = string(b)
	}
	_, err := t.exec(`UPDATE commands SET state = ?, sent_at = ?, delivered_at = ?, settled_at = ?, status = ?, receipt = ?, receipt_key = ?, entry = ?, reason = ?
		WHERE tenant = ? AND id = ?`, r.State, toMillis(r.SentAt), toMillis(r.DeliveredAt), toMillis(r.SettledAt), r.Status, r.Receipt, r.ReceiptKey, r.Entry, reason, r.Tenant, r.ID)
	return err
}

// Command returns one command.
func (s *Store) Command(ctx context.Context, t watchword.TenantID, id watchword.CommandID) (command.Row, error) {
	return readCommand(ctx, s, t, id)
}

// unpreparedQueries runs queries that are built at run time, without caching the statements.
type unpreparedQueries struct{ *Store }

func (u unpreparedQueries) query(ctx context.Context, q string, args ...any) (*sql.Rows, error) {
	return u.db.QueryContext(ctx, q, args...)
}

// Commands lists commands, newest first.
func (s *Store) Commands(ctx context.Context, t watchword.TenantID, f command.Filter, before watchword.CommandID, limit int) ([]command.Row, error) {
	q, args := commandsQuery(t, f, before, limit)
	return queryAll(ctx, unpreparedQueries{s}, scanCommand, q, args...)
}

// commandsQuery selects by the index of the device, else of the orderer, else of the state.
func commandsQuery(t watchword.TenantID, f command.Filter, before watchword.CommandID, limit int) (query string, args []any) {
	var q strings.Builder
	by := ""
	switch {
	case f.Device != "":
		by = " INDEXED BY commands_device"
	case f.By != "":
		by = " INDEXED BY commands_by"
	case f.State != "":
		by = " INDEXED BY commands_state"
	}
	q.WriteString(`SELECT ` + commandColumns + ` FROM commands` + by + ` WHERE tenant = ?`)
	args = []any{t}
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
	return q.String(), append(args, limit)
}

// Pending returns the commands to be delivered to a device, in order.
func (s *Store) Pending(ctx context.Context, t watchword.TenantID, device watchword.SubjectID, after int64, now time.Time, limit int) ([]command.Row, error) {
	return queryAll(ctx, s, scanCommand, `SELECT `+commandColumns+` FROM commands
		WHERE tenant = ? AND device = ? AND state IN ('queued', 'sent') AND seq > ? AND expires > ? ORDER BY seq LIMIT ?`, t, device, after, toMillis(now), limit)
}

func handovers(ctx context.Context, from querier, t watchword.TenantID, id watchword.CommandID) ([]command.Handover, error) {
	return queryAll(ctx, from, func(r scanner) (h command.Handover, err error) {
		var at int64
		err = r.Scan(&h.Hash, &h.Nonce, &h.JWS, &at, &h.Entry)
		h.At = fromMillis(at)
		return h, err
	}, `SELECT hash, nonce, jws, at, entry FROM handovers WHERE tenant = ? AND command = ? ORDER BY n`, t, id)
}

// Handovers returns the versions of a command that were handed over to its device.
func (s *Store) Handovers(ctx context.Context, t watchword.TenantID, id watchword.CommandID) ([]command.Handover, error) {
	return handovers(ctx, s, t, id)
}

// snapshot reads a command beside its device, and beside its version of that hash.
func (t *tx) snapshot(tenant watchword.TenantID, id watchword.CommandID, hash string) (command.Snapshot, error) {
	return queryOne(context.Background(), t, func(r scanner) (s command.Snapshot, err error) {
		s.Target.Kind = watchword.Device
		s.Row, err = scanCommand(extraColumns{r, []any{&s.Target.State, &s.Target.Incarnation, &s.Versions, &s.VersionKnown, &s.LoggedSeq}})
		s.Target.ID = s.Device
		return s, err
	}, notFound("command", id), selectSnapshot, hash, tenant, id)
}

var selectSnapshot = `SELECT ` + prefixed("c.", commandColumns) + `, s.state, s.incarnation,
		(SELECT count(*) FROM handovers h WHERE h.tenant = c.tenant AND h.command = c.id),
		EXISTS (SELECT 1 FROM handovers h WHERE h.tenant = c.tenant AND h.command = c.id AND h.hash = ?1),
		coalesce((SELECT entry FROM handovers h WHERE h.tenant = c.tenant AND h.command = c.id AND h.hash = ?1), 0)
	FROM commands c JOIN subjects s ON s.tenant = c.tenant AND s.id = c.device AND s.deleted = 0 AND s.kind = 'device'
	WHERE c.tenant = ?2 AND c.id = ?3`

// extraColumns scans further columns after those of the wrapped scanner's caller.
type extraColumns struct {
	scanner
	more []any
}

func (a extraColumns) Scan(dest ...any) error { return a.scanner.Scan(append(dest, a.more...)...) }

// prefixed adds a table's name to each column of a list.
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

// AddHandover stores a version's hash before the version is sent.
func (s *Store) AddHandover(ctx context.Context, tenant watchword.TenantID, id watchword.CommandID, h command.Handover, entry audit.EntryOf[command.Row]) (command.Row, int64, error) {
	type result struct {
		row    command.Row
		number int64
	}
	h.At = truncateToMillis(h.At)
	out, err := write(ctx, s, func(t *tx) (out result, err error) {
		c, err := t.snapshot(tenant, id, h.Hash)
		if err != nil {
			return out, err
		}
		row, isNew, err := c.HandOver(h)
		if err != nil {
			return out, err
		}
		out = result{row, c.LoggedSeq}
		if isNew {
			out.number = t.merkle.next()
			if _, err := t.exec(`INSERT INTO handovers (tenant, command, hash, nonce, jws, at, entry) VALUES (?, ?, ?, ?, ?, ?, ?)`,
				tenant, id, h.Hash, h.Nonce, h.JWS, toMillis(h.At), out.number); err != nil {
				return out, err
			}
			if err := t.addEntry(entry(c.Row, row)); err != nil {
				return out, err
			}
		}
		if row.State != c.State {
			err = t.putCommand(row)
		}
		return out, err
	})
	return out.row, out.number, err
}

// acknowledged reads the sent commands that a device acknowledges, beside the device.
func acknowledged(ctx context.Context, from querier, tenant watchword.TenantID, device watchword.SubjectID, a command.Acknowledgement) ([]command.Snapshot, error) {
	each, err := json.Marshal(a.Each)
	if err != nil {
		return nil, err
	}
	return queryAll(ctx, from, func(r scanner) (s command.Snapshot, err error) {
		s.Target.Kind, s.Target.ID = watchword.Device, device
		s.Row, err = scanCommand(extraColumns{r, []any{&s.Target.State, &s.Target.Incarnation}})
		return s, err
	}, selectAcknowledged, tenant, device, a.Epoch, a.UpTo, string(each))
}

var selectAcknowledged = `SELECT ` + prefixed("c.", commandColumns) + `, s.state, s.incarnation
	FROM commands c JOIN subjects s ON s.tenant = c.tenant AND s.id = c.device AND s.deleted = 0
	WHERE c.tenant = ? AND c.device = ? AND c.state IN ('queued', 'sent') AND c.state = 'sent' AND c.epoch = ?
		AND (c.seq <= ? OR c.seq IN (SELECT value FROM json_each(?)))
	ORDER BY c.seq`

// MarkDelivered notes which of its commands a device holds.
func (s *Store) MarkDelivered(ctx context.Context, tenant watchword.TenantID, device watchword.SubjectID, a command.Acknowledgement, now time.Time) ([]command.Row, error) {
	now = truncateToMillis(now)
	// Most polls acknowledge nothing new, so they read before they take the writer.
	waiting, err := acknowledged(ctx, s, tenant, device, a)
	if err != nil || !slices.ContainsFunc(waiting, func(c command.Snapshot) bool { _, changes := c.Acknowledge(a, now); return changes }) {
		return nil, err
	}
	return write(ctx, s, func(t *tx) (out []command.Row, err error) {
		cs, err := acknowledged(context.Background(), t, tenant, device, a)
		for _, c := range cs {
			if row, changes := c.Acknowledge(a, now); changes && err == nil {
				out = append(out, row)
				err = t.putCommand(row)
			}
		}
		return out, err
	})
}

// outcome is a command after a step, and whether the step changed it.
type outcome struct {
	row     command.Row
	changed bool
}

// MarkUndeliverable ends a command that its device cannot take.
func (s *Store) MarkUndeliverable(ctx context.Context, u command.UndeliverableUpdate, entry audit.EntryOf[command.Row]) (command.Row, bool, error) {
	u.SentAt, u.At = truncateToMillis(u.SentAt), truncateToMillis(u.At)
	out, err := write(ctx, s, func(t *tx) (out outcome, err error) {
		before, err := t.command(u.Tenant, u.ID)
		if err != nil {
			return out, err
		}
		if out.row, out.changed = before.MarkUndeliverable(u); !out.changed {
			return out, nil
		}
		if err := t.putCommand(out.row); err != nil {
			return out, err
		}
		return out, t.addEntry(entry(before, out.row))
	})
	return out.row, out.changed, err
}

// ApplyReceipt applies a receipt to its command.
func (s *Store) ApplyReceipt(ctx context.Context, by audit.Actor, r command.ReceiptUpdate, entry audit.EntryOf[command.Row]) (command.Row, bool, error) {
	r.At = truncateToMillis(r.At)
	out, err := writeAs(ctx, s, by, func(t *tx) (out outcome, err error) {
		before, err := t.snapshot(r.Tenant, r.ID, r.Hash)
		if watchword.CodeOf(err) == watchword.NotFound {
			err = command.ErrReceiptMismatch
		}
		if err != nil {
			return out, err
		}
		if out.row, out.changed, err = before.ApplyReceipt(r); err != nil || !out.changed {
			return out, err
		}
		out.row.Entry = t.merkle.next()
		if err := t.putCommand(out.row); err != nil {
			return out, err
		}
		return out, t.addEntry(entry(before.Row, out.row))
	})
	return out.row, out.changed, err
}

// CancelCommand cancels a queued command.
func (s *Store) CancelCommand(ctx context.Context, by audit.Actor, id watchword.CommandID, now time.Time, entry audit.EntryOf[command.Row]) (command.Row, error) {
	now = truncateToMillis(now)
	return writeAs(ctx, s, by, func(t *tx) (command.Row, error) {
		before, err := t.command(by.Tenant, id)
		if err != nil {
			return before, err
		}
		after, err := before.Cancel(now)
		if err != nil {
			return after, err
		}
		if err := t.putCommand(after); err != nil {
			return after, err
		}
		return after, t.addEntry(entry(before, after))
	})
}

// unfinishedStates is [command.Unfinished] as the indexes and triggers of the tables have it, word for word.
const unfinishedStates = `state IN ('queued', 'sent', 'delivered', 'accepted')`

// ExpireCommands ends the commands that [command.Row.Expire] ends.
func (s *Store) ExpireCommands(ctx context.Context, now time.Time, limit int, entry audit.EntryOf[command.Row]) ([]command.Row, error) {
	now = truncateToMillis(now)
	return write(ctx, s, func(t *tx) (out []command.Row, err error) {
		due, err := queryAll(context.Background(), t, scanCommand, `SELECT `+commandColumns+` FROM commands WHERE `+unfinishedStates+` AND expires <= ? ORDER BY expires LIMIT ?`, toMillis(now), limit)
		if err != nil {
			return nil, err
		}
		late, err := queryAll(context.Background(), t, scanCommand, `SELECT `+commandColumns+` FROM commands WHERE `+unfinishedStates+` AND expires > ? ORDER BY expires LIMIT ?`, toMillis(command.LatestEnd(now)), limit-len(due))
		if err != nil {
			return nil, err
		}
		due = append(due, late...)
		for _, before := range due {
			after, changes := before.Expire(now)
			if !changes {
				continue
			}
			if err := t.putCommand(after); err != nil {
				return nil, err
			}
			if err := t.addEntry(entry(before, after)); err != nil {
				return nil, err
			}
			out = append(out, after)
		}
		return out, nil
	})
}

// DeleteSettledCommands deletes commands that ended before a time, oldest first, at most limit of them, with what was handed over.
func (s *Store) DeleteSettledCommands(ctx context.Context, before time.Time, limit int) (int, error) {
	return write(ctx, s, func(t *tx) (int, error) {
		type key struct {
			tenant watchword.TenantID
			id     watchword.CommandID
		}
		due, err := queryAll(context.Background(), t, func(r scanner) (k key, err error) { return k, r.Scan(&k.tenant, &k.id) },
			`SELECT tenant, id FROM commands INDEXED BY commands_settled WHERE settled_at > 0 AND settled_at < ? AND state NOT IN ('queued', 'sent', 'delivered', 'accepted')
				ORDER BY settled_at LIMIT ?`, toMillis(before), limit)
		if err != nil {
			return 0, err
		}
		for _, k := range due {
			for _, q := range []string{
				`DELETE FROM handovers WHERE tenant = ? AND command = ?`,
				`DELETE FROM commands WHERE tenant = ? AND id = ?`,
			} {
				if _, err := t.exec(q, k.tenant, k.id); err != nil {
					return 0, err
				}
			}
		}
		return len(due), nil
	})
}

// abandonCommands ends the commands of a device that is revoked or deleted.
func (t *tx) abandonCommands(tenant watchword.TenantID, device watchword.SubjectID, now time.Time) error {
	for _, state := range command.Unfinished {
		if _, err := t.exec(`UPDATE commands SET settled_at = ?, state = ? WHERE tenant = ? AND device = ? AND state IN ('queued', 'sent', 'delivered', 'accepted') AND state = ?`,
			toMillis(now), command.StateWithoutDevice(state), tenant, device, state); err != nil {
			return err
		}
	}
	return nil
}

// NextExpiry returns the earliest end of a command that is not final.
func (s *Store) NextExpiry(ctx context.Context) (time.Time, error) {
	return queryOne(ctx, s, func(r scanner) (time.Time, error) {
		var end int64
		err := r.Scan(&end)
		return fromMillis(end), err
	}, nil, `SELECT coalesce(min(expires), 0) FROM commands WHERE `+unfinishedStates)
}
