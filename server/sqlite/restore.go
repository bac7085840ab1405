package sqlite

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/registry"
)

// Restore is what a restore from a backup does to the store: see [Store.Restore].
type Restore struct {
	keyring.RestoredState
	First  audit.Entry   // log.restore: the first entry after those of the backup
	Replay []audit.Entry // changes of authority after the backup, in their order
	// Journal are changes of authority after the backup whose rows are in the store: they only get their entries.
	Journal []audit.Entry
	Notices []watchword.Notice // of acts after the backup
	Now     time.Time
	// AcceptLoss says that changes that cannot be applied are lost; without it, one of them ends the restore.
	AcceptLoss bool
}

// Restored is what [Store.Restore] did.
type Restored struct {
	Commands int64 // unfinished ones that are unknown now
	Codes    int64 // one-time links that were not used and are void
	Pairings int64
	Sessions int64 // persistent sessions of MQTT, which are deleted with their messages
	Replayed []registry.Replayed
}

// Restore carries a restore from a backup out, in one transaction. The server gets its new state; changes of authority after
// the backup are applied again, each with an entry. Unfinished commands become unknown, since they may have been delivered
// after the backup. One-time links, pairings, tokens, used assertions and persistent sessions are deleted: whether they were
// used, revoked or ended after the backup is not known. Checkpoints of the log before are deleted, since they are of another
// log; the first entry has the last one. The store must be opened again before it serves. Code: conflict for a change that cannot be
// applied.
func (s *Store) Restore(ctx context.Context, r Restore) (out Restored, err error) {
	return write(ctx, s, func(t *tx) (out Restored, err error) {
		f := r.Instance
		if _, err := t.exec(`UPDATE instance SET epoch = ?, log_origin = ?, restored_at = ?, superseded_by = ?`, f.Epoch, f.LogOrigin, toMillis(f.RestoredAt), f.SupersededBy); err != nil {
			return out, err
		}
		if err := t.restoreKeys(r.KeyUpdate); err != nil {
			return out, err
		}
		if err := t.addEntry(r.First); err != nil {
			return out, err
		}
		for _, e := range r.Journal {
			if err := t.addEntry(replayedEntry(e)); err != nil {
				return out, err
			}
		}
		if err := t.addEntry(r.Entries...); err != nil {
			return out, err
		}
		for _, e := range r.Replay {
			err := t.replay(e)
			if err != nil && watchword.CodeOf(err) == watchword.Unavailable {
				return out, err
			}
			out.Replayed = append(out.Replayed, registry.Replayed{Entry: e, Err: err})
		}
		for _, n := range r.Notices {
			if err := t.putNotice(n); err != nil {
				return out, err
			}
		}
		if err := registry.CheckReplayed(out.Replayed); err != nil && !r.AcceptLoss {
			return out, err
		}
		for _, state := range command.Unfinished {
			n, err := t.exec(`UPDATE commands SET settled_at = ?, state = ? WHERE state IN ('queued', 'sent', 'delivered', 'accepted') AND state = ?`, toMillis(r.Now), command.StateAfterRestore(state), state)
			if err != nil {
				return out, err
			}
			out.Commands += n
		}
		for _, d := range []struct {
			query string
			count *int64
		}{
			{`DELETE FROM codes WHERE sign = ''`, &out.Codes},
			{`DELETE FROM pairings WHERE true`, &out.Pairings},
			{`DELETE FROM mqtt_sessions WHERE true`, &out.Sessions},
			{`DELETE FROM mqtt_subscriptions WHERE true`, nil},
			{`DELETE FROM mqtt_messages WHERE true`, nil},
			{`DELETE FROM mqtt_wills WHERE true`, nil},
			{`DELETE FROM tokens WHERE true`, nil},
			{`DELETE FROM consumed_jtis WHERE true`, nil},
			{`DELETE FROM audit_checkpoints WHERE true`, nil},
		} {
			n, err := t.exec(d.query)
			if err != nil {
				return out, err
			}
			if d.count != nil {
				*d.count = n
			}
		}
		return out, nil
	})
}

func (t *tx) restoreKeys(u keyring.KeyUpdate) error {
	before, err := serverKeys(context.Background(), t)
	if err != nil {
		return err
	}
	signed, err := bundles(context.Background(), t)
	if err != nil {
		return err
	}
	after, err := u.Apply(before, signed)
	if err != nil {
		return err
	}
	return t.putKeyUpdate(u, before, after)
}

// replay applies the act of an entry of after the backup, and logs it. If it does not fit, nothing is written.
func (t *tx) replay(e audit.Entry) error {
	if _, err := t.exec(`SAVEPOINT replay`); err != nil {
		return err
	}
	changed, err := t.replayAct(e)
	if err != nil {
		if _, rerr := t.exec(`ROLLBACK TO replay`); rerr != nil {
			return rerr
		}
	}
	if _, rerr := t.exec(`RELEASE replay`); rerr != nil {
		return rerr
	}
	if err != nil || !changed {
		return err
	}
	return t.addEntry(replayedEntry(e))
}

// replayedEntry returns the entry of a change that was applied again.
func replayedEntry(e audit.Entry) audit.Entry {
	again := e.With(registry.ReplayedData(e)...)
	again.Actor, again.Key, again.Trace, again.Versions = "", "", "", watchword.AuthorityVersions{}
	return again
}

func (t *tx) replayAct(e audit.Entry) (changed bool, err error) {
	if e.Kind == audit.PolicyApply || e.Kind == audit.PolicyDelete {
		before, err := t.policy(e.Tenant, e.Object)
		if err != nil {
			return false, err
		}
		after, changed, err := registry.ReplayPolicy(before, e)
		if err != nil || !changed {
			return false, err
		}
		return true, t.putPolicy(after)
	}
	before, err := t.subjectWithKey(e.Tenant, watchword.SubjectID(e.Object), watchword.KeyID(e.Data["sign"]))
	exists := err == nil
	if err != nil && watchword.CodeOf(err) != watchword.NotFound {
		return false, err
	}
	after, effect, err := registry.ReplaySubject(before, exists, e)
	if err != nil {
		return false, err
	}
	switch effect {
	case registry.Added:
		err = t.addSubject(after)
	case registry.Changed:
		_, err = t.putSubject(before, after)
	case registry.AccessEnd, registry.Deleted:
		if err = t.endAccess(before, after, e.At); err == nil && effect == registry.Deleted {
			_, err = t.exec(`UPDATE subjects SET deleted = ? WHERE tenant = ? AND id = ?`, deletedSubject, e.Tenant, e.Object)
		}
	case registry.Forgotten:
		return t.forget(e.Tenant, watchword.SubjectID(e.Object))
	}
	return effect != registry.NoEffect, err
}

// putPolicy writes a policy.
func (t *tx) putPolicy(p policy.Stored) error {
	_, err := t.exec(`INSERT INTO policies (`+policyColumns+`) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT DO UPDATE SET version = excluded.version, source = excluded.source, changed = excluded.changed, deleted = excluded.deleted`,
		p.Tenant, p.Name, p.Version, p.Source, toMillis(p.Changed), p.Deleted)
	return err
}
