package sqlite

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/policy"
)

func scanPolicy(r scanner) (p policy.Stored, err error) {
	var changed int64
	err = r.Scan(&p.Tenant, &p.Name, &p.Version, &p.Source, &changed, &p.Deleted)
	p.Changed = fromMillis(changed)
	return p, err
}

const policyColumns = `tenant, name, version, source, changed, deleted`

// Policies returns all policies, by name.
func (s *Store) Policies(ctx context.Context, t watchword.TenantID) ([]policy.Stored, error) {
	return queryAll(ctx, s, scanPolicy, `SELECT `+policyColumns+` FROM policies WHERE tenant = ? AND deleted = 0 ORDER BY name`, t)
}

// policy returns the row of a name, also of a deleted one.
func (t *tx) policy(tenant watchword.TenantID, name string) (policy.Stored, error) {
	ps, err := queryAll(context.Background(), t, scanPolicy, `SELECT `+policyColumns+` FROM policies WHERE tenant = ? AND name = ?`, tenant, name)
	if err != nil || len(ps) == 0 {
		return policy.Stored{Tenant: tenant, Name: name}, err
	}
	return ps[0], nil
}

// policies is a policy after a step, and the version of all policies of its tenant.
type policies struct {
	policy.Stored
	version int64
}

// changePolicy writes a policy as rule says, and its entry. Where rule changes nothing, nothing is written.
func (s *Store) changePolicy(ctx context.Context, by audit.Actor, name string, rule func(policy.Stored) (policy.Stored, bool, error), entry audit.EntryOf[policy.Stored]) (policy.Stored, int64, error) {
	out, err := writeAs(ctx, s, by, func(t *tx) (out policies, err error) {
		before, err := t.policy(by.Tenant, name)
		if err != nil {
			return out, err
		}
		after, changes, err := rule(before)
		if err != nil {
			return out, err
		}
		if changes {
			if err := t.putPolicy(after); err != nil {
				return out, err
			}
			if err := t.addEntry(entry(before, after)); err != nil {
				return out, err
			}
		}
		out.Stored = after
		out.version, err = readPolicyVersion(context.Background(), t, by.Tenant)
		return out, err
	})
	return out.Stored, out.version, err
}

// PutPolicy adds or replaces a policy. It returns the tenant's [Store.PolicyVersion] after that.
func (s *Store) PutPolicy(ctx context.Context, by audit.Actor, name string, source []byte, ifVersion int64, now time.Time, entry audit.EntryOf[policy.Stored]) (policy.Stored, int64, error) {
	return s.changePolicy(ctx, by, name, func(before policy.Stored) (policy.Stored, bool, error) {
		return before.Replace(source, ifVersion, truncateToMillis(now))
	}, entry)
}

// DeletePolicy removes a policy. It returns the tenant's [Store.PolicyVersion] after that.
func (s *Store) DeletePolicy(ctx context.Context, by audit.Actor, name string, ifVersion int64, now time.Time, entry audit.EntryOf[policy.Stored]) (int64, error) {
	_, version, err := s.changePolicy(ctx, by, name, func(before policy.Stored) (policy.Stored, bool, error) {
		after, err := before.Delete(ifVersion, truncateToMillis(now))
		return after, true, err
	}, entry)
	return version, err
}
