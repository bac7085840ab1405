package sqlite

import (
	"context"

	"github.com/watchword-iot/watchword/server/mqttstore"
)

// Sessions calls session with every session and its subscriptions, then message with every message
// without its packet, oldest first.
func (s *Store) Sessions(ctx context.Context, session func(mqttstore.Session) error, message func(mqttstore.Message) error) error {
	subs, err := queryAll(ctx, s, func(r scanner) (f mqttstore.SessionSubscription, err error) {
		err = r.Scan(&f.Session, &f.Filter, &f.Options, &f.Identifier)
		return f, err
	}, `SELECT session, filter, options, identifier FROM mqtt_subscriptions ORDER BY session, filter`)
	if err != nil {
		return err
	}
	if err := queryEach(ctx, s, func(r scanner) error {
		var v mqttstore.Session
		var left int64
		if err := r.Scan(&v.ID, &v.Tenant, &v.Client, &v.Subject, &v.Incarnation, &v.Expiry, &left, &v.Progress); err != nil {
			return err
		}
		v.DisconnectedAt = fromMillis(left)
		for len(subs) > 0 && subs[0].Session <= v.ID {
			if subs[0].Session == v.ID {
				v.Subscriptions = append(v.Subscriptions, subs[0].Subscription)
			}
			subs = subs[1:]
		}
		return session(v)
	}, `SELECT id, tenant, client, subject, incarnation, expiry, disconnected_at, progress FROM mqtt_sessions ORDER BY id`); err != nil {
		return err
	}
	return queryEach(ctx, s, func(r scanner) error {
		var m mqttstore.Message
		var expires int64
		if err := r.Scan(&m.ID, &expires, &m.Receivers, &m.Size); err != nil {
			return err
		}
		m.Expires = fromMillis(expires)
		return message(m)
	}, `SELECT id, expires, receivers, length(packet) FROM mqtt_messages ORDER BY id`)
}

// RetainedMessages calls message with every retained message.
func (s *Store) RetainedMessages(ctx context.Context, message func(mqttstore.Retained) error) error {
	return queryEach(ctx, s, func(r scanner) error {
		var m mqttstore.Retained
		var expires int64
		if err := r.Scan(&m.Tenant, &m.Topic, &expires, &m.Packet, &m.Subject, &m.Incarnation); err != nil {
			return err
		}
		m.Expires = fromMillis(expires)
		return message(m)
	}, `SELECT tenant, topic, expires, packet, subject, incarnation FROM mqtt_retained`)
}

// Wills calls will with every will, by id.
func (s *Store) Wills(ctx context.Context, will func(mqttstore.Will) error) error {
	return queryEach(ctx, s, func(r scanner) error {
		var w mqttstore.Will
		var due int64
		if err := r.Scan(&w.ID, &w.Tenant, &w.Client, &w.Subject, &w.Incarnation, &w.Token, &w.Key, &w.IssuerKey, &w.KeyProved, &due, &w.Bytes); err != nil {
			return err
		}
		w.Due = fromMillis(due)
		return will(w)
	}, `SELECT id, tenant, client, subject, incarnation, token, key, issuer_key, key_proved, due, will FROM mqtt_wills ORDER BY id`)
}

// Messages returns the existing messages among ids.
func (s *Store) Messages(ctx context.Context, ids []int64) (out []mqttstore.Message, err error) {
	for _, id := range ids {
		ms, err := queryAll(ctx, s, func(r scanner) (m mqttstore.Message, err error) {
			var expires int64
			err = r.Scan(&m.ID, &expires, &m.Receivers, &m.Packet)
			m.Expires, m.Size = fromMillis(expires), len(m.Packet)
			return m, err
		}, `SELECT id, expires, receivers, packet FROM mqtt_messages WHERE id = ?`, id)
		if err != nil {
			return nil, err
		}
		out = append(out, ms...)
	}
	return out, nil
}

// WriteMQTT writes changes in one transaction.
func (s *Store) WriteMQTT(ctx context.Context, c mqttstore.Changes) error {
	return s.w.do(ctx, func(t *tx) error { return t.writeMQTT(c) })
}

func (t *tx) writeMQTT(c mqttstore.Changes) error {
	do := func(q string, args ...any) error {
		_, err := t.exec(q, args...)
		return err
	}
	for _, id := range c.DeletedSessions {
		if err := do(`DELETE FROM mqtt_sessions WHERE id = ?`, id); err != nil {
			return err
		}
		if err := do(`DELETE FROM mqtt_subscriptions WHERE session = ?`, id); err != nil {
			return err
		}
	}
	for i := range c.Sessions {
		v := &c.Sessions[i]
		if err := do(`INSERT INTO mqtt_sessions (id, tenant, client, subject, incarnation, expiry, disconnected_at, progress) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (id) DO UPDATE SET subject = excluded.subject, incarnation = excluded.incarnation, expiry = excluded.expiry, disconnected_at = excluded.disconnected_at,
				progress = excluded.progress`,
			v.ID, v.Tenant, v.Client, v.Subject, v.Incarnation, int64(v.Expiry), toMillis(v.DisconnectedAt), v.Progress); err != nil {
			return err
		}
	}
	for _, f := range c.Unsubscribed {
		if err := do(`DELETE FROM mqtt_subscriptions WHERE session = ? AND filter = ?`, f.Session, f.Filter); err != nil {
			return err
		}
	}
	for _, f := range c.Subscribed {
		if err := do(`INSERT OR REPLACE INTO mqtt_subscriptions (session, filter, options, identifier) VALUES (?, ?, ?, ?)`, f.Session, f.Filter, f.Options, f.Identifier); err != nil {
			return err
		}
	}
	for _, v := range c.Progress {
		if err := do(`UPDATE mqtt_sessions SET progress = ? WHERE id = ?`, v.Progress, v.ID); err != nil {
			return err
		}
	}
	for i := range c.Messages {
		m := &c.Messages[i]
		if err := do(`INSERT INTO mqtt_messages (id, expires, receivers, packet) VALUES (?, ?, ?, ?)`, m.ID, toMillis(m.Expires), m.Receivers, m.Packet); err != nil {
			return err
		}
	}
	for _, id := range c.DeletedMessages {
		if err := do(`DELETE FROM mqtt_messages WHERE id = ?`, id); err != nil {
			return err
		}
	}
	for i := range c.Retained {
		m := &c.Retained[i]
		if m.Packet == nil {
			if err := do(`DELETE FROM mqtt_retained WHERE tenant = ? AND topic = ?`, m.Tenant, m.Topic); err != nil {
				return err
			}
			continue
		}
		if err := do(`INSERT OR REPLACE INTO mqtt_retained (tenant, topic, expires, packet, subject, incarnation) VALUES (?, ?, ?, ?, ?, ?)`,
			m.Tenant, m.Topic, toMillis(m.Expires), m.Packet, m.Subject, m.Incarnation); err != nil {
			return err
		}
	}
	for i := range c.Wills {
		w := &c.Wills[i]
		if w.Bytes == nil {
			if err := do(`DELETE FROM mqtt_wills WHERE id = ?`, w.ID); err != nil {
				return err
			}
			continue
		}
		if err := do(`INSERT OR REPLACE INTO mqtt_wills (id, tenant, client, subject, incarnation, token, key, issuer_key, key_proved, due, will) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			w.ID, w.Tenant, w.Client, w.Subject, w.Incarnation, w.Token, w.Key, w.IssuerKey, w.KeyProved, toMillis(w.Due), w.Bytes); err != nil {
			return err
		}
	}
	return nil
}
