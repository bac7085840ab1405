package sqlite

import (
	"bytes"
	"context"
	"strconv"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/policy"
)

type policyRow struct {
	policy.Stored
	deleted bool
}

func scanPolicy(r scanner) (p policyRow, err error) {
	var changed int64
	err = r.Scan(&p.Tenant, &p.Name, &p.Version, &p.Source, &changed, &p.deleted)
	p.Changed = moment(changed)
	return p, err
}

const policyColumns = `tenant, name, version, source, changed, deleted`

// Policies returns all policies, by name.
func (s *Store) Policies(ctx context.Context, t watchword.TenantID) ([]policy.Stored, error) {
	return all(ctx, s, func(r scanner) (policy.Stored, error) {
		p, err := scanPolicy(r)
		return p.Stored, err
	}, `SELECT `+policyColumns+` FROM policies WHERE tenant = ? AND deleted = 0 ORDER BY name`, t)
}

// policy returns the row of a name, also of a deleted one; a zero row where there never was one.
func (t *tx) policy(tenant watchword.TenantID, name string) (policyRow, error) {
	ps, err := all(context.Background(), t, scanPolicy, `SELECT `+policyColumns+` FROM policies WHERE tenant = ? AND name = ?`, tenant, name)
	if err != nil || len(ps) == 0 {
		return policyRow{deleted: true}, err
	}
	return ps[0], nil
}

// before is what the log says of the policy that was there, beside more.
func (p policyRow) before(more ...string) []string {
	if p.deleted {
		return more
	}
	return append(more, "before", jose.Hash(p.Source), "before_version", strconv.FormatInt(p.Version, 10))
}

// PutPolicy adds or replaces a policy. It returns the tenant's [Store.PolicyVersion] after that.
func (s *Store) PutPolicy(ctx context.Context, tenant watchword.TenantID, name string, source []byte, ifVersion int64, now time.Time, e audit.Entry) (out policy.Stored, version int64, err error) {
	err = s.w.act(ctx, func(t *tx) error {
		p, err := t.policy(tenant, name)
		if err != nil {
			return err
		}
		switch {
		case ifVersion == 0 && !p.deleted:
			return watchword.Refuse(watchword.PreconditionFailed, "policy %q exists, version %d", name, p.Version)
		case ifVersion > 0 && p.deleted:
			return watchword.Refuse(watchword.PreconditionFailed, "policy %q does not exist", name)
		case ifVersion > 0 && ifVersion != p.Version:
			return watchword.Refuse(watchword.PreconditionFailed, "policy %q is at version %d now", name, p.Version)
		}
		if !p.deleted && bytes.Equal(p.Source, source) {
			out = p.Stored
			version, err = readPolicyVersion(context.Background(), t, tenant)
			return err
		}
		out = policy.Stored{Tenant: tenant, Name: name, Version: p.Version + 1, Source: source, Changed: moment(stamp(now))}
		if _, err := t.exec(`INSERT INTO policies (tenant, name, version, source, changed) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT DO UPDATE SET version = excluded.version, source = excluded.source, changed = excluded.changed, deleted = 0`,
			tenant, name, out.Version, source, stamp(now)); err != nil {
			return err
		}
		if version, err = readPolicyVersion(context.Background(), t, tenant); err != nil {
			return err
		}
		return t.enter(e.With(p.before("version", strconv.FormatInt(out.Version, 10))...))
	}, e)
	if err != nil {
		return policy.Stored{}, 0, err
	}
	return out, version, nil
}

// DeletePolicy removes a policy. It returns the tenant's [Store.PolicyVersion] after that.
func (s *Store) DeletePolicy(ctx context.Context, tenant watchword.TenantID, name string, ifVersion int64, now time.Time, e audit.Entry) (version int64, err error) {
	err = s.w.act(ctx, func(t *tx) error {
		p, err := t.policy(tenant, name)
		if err != nil {
			return err
		}
		if p.deleted {
			return notFound("policy", name)
		}
		if ifVersion >= 0 && ifVersion != p.Version {
			return watchword.Refuse(watchword.PreconditionFailed, "policy %q is at version %d now", name, p.Version)
		}
		if _, err := t.exec(`UPDATE policies SET deleted = 1, source = x'', changed = ? WHERE tenant = ? AND name = ?`, stamp(now), tenant, name); err != nil {
			return err
		}
		if version, err = readPolicyVersion(context.Background(), t, tenant); err != nil {
			return err
		}
		return t.enter(e.With(p.before()...))
	}, e)
	return version, err
}
