package sqlite

import (
	"context"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
)

// doAuthorized is do for an authorized step. Before the step writes, in the same transaction, it compares the versions that
// the act was decided on with the current ones; so an act may remove its own actor's permission and still commit. If they
// differ nothing is written ([watchword.ErrAuthorityChanged]). es are the audit entries of the step.
func (w *writer) doAuthorized(ctx context.Context, step func(*tx) error, es ...audit.Entry) error {
	b, tenant := versionsOfEntries(es)
	return w.doWithVersions(ctx, tenant, b, step)
}

// doWithVersions is doAuthorized for a step without an audit entry.
func (w *writer) doWithVersions(ctx context.Context, tenant watchword.TenantID, b watchword.AuthorityVersions, step func(*tx) error) error {
	return w.do(ctx, func(t *tx) error {
		return t.withVersions(tenant, b, func() error { return step(t) })
	})
}

func versionsOfEntries(es []audit.Entry) (watchword.AuthorityVersions, watchword.TenantID) {
	for _, e := range es {
		if !e.Versions.IsZero() {
			return e.Versions, e.Tenant
		}
	}
	return watchword.AuthorityVersions{}, ""
}

// withVersions runs a step if the versions in b are current.
func (t *tx) withVersions(tenant watchword.TenantID, b watchword.AuthorityVersions, step func() error) error {
	if err := t.checkVersions(tenant, b); err != nil {
		return err
	}
	t.versions = b
	defer func() { t.versions = watchword.AuthorityVersions{} }()
	return step()
}

// checkVersions returns ErrAuthorityChanged where b is not current.
func (t *tx) checkVersions(tenant watchword.TenantID, b watchword.AuthorityVersions) error {
	if !b.Compared() {
		return nil
	}
	v, err := queryOne(context.Background(), t, func(r scanner) (v watchword.Versions, err error) {
		return v, r.Scan(&v.Subject, &v.Policies, &v.Target)
	}, watchword.ErrAuthorityChanged, `SELECT s.authority_version, `+policyVersion+`,
			CASE WHEN ?3 = '' THEN 0 ELSE coalesce((SELECT o.authority_version FROM subjects o WHERE o.tenant = ?1 AND o.id = ?3), 0) END
		FROM subjects s WHERE s.tenant = ?1 AND s.id = ?2`, tenant, b.Subject, b.Target)
	if err != nil {
		return err
	}
	return b.Check(v)
}

// policyVersion is an SQL expression: the version of the policies of tenant ?1.
const policyVersion = `(SELECT coalesce(sum(p.version), 0) FROM policy_versions p WHERE p.tenant IN ('', ?1))`

// PolicyVersion returns the version of a tenant's policies and issuer keys; it grows with each
// change.
func (s *Store) PolicyVersion(ctx context.Context, t watchword.TenantID) (int64, error) {
	return readPolicyVersion(ctx, s, t)
}

func readPolicyVersion(ctx context.Context, from querier, t watchword.TenantID) (int64, error) {
	return queryOne(ctx, from, func(r scanner) (n int64, err error) { return n, r.Scan(&n) }, error(nil), `SELECT `+policyVersion, t)
}
