package sqlite

import (
	"context"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
)

// doAuthorized is do for a step that somebody's authority allows: it compares what the act was decided
// on with what stands, in the step's own transaction and before the step writes, so that an act
// may take its own actor's right away and still commits. A basis that has moved writes nothing
// ([watchword.ErrBasisMoved]). es are the entries that the step will enter.
func (w *writer) doAuthorized(ctx context.Context, step func(*tx) error, es ...audit.Entry) error {
	b, tenant := versionsOfEntries(es)
	return w.doUnder(ctx, tenant, b, step)
}

// doUnder is act for a step that enters nothing.
func (w *writer) doUnder(ctx context.Context, tenant watchword.TenantID, b watchword.AuthorityVersions, step func(*tx) error) error {
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

// withVersions runs a step under a basis.
func (t *tx) withVersions(tenant watchword.TenantID, b watchword.AuthorityVersions, step func() error) error {
	if err := t.checkVersions(tenant, b); err != nil {
		return err
	}
	t.versions = b
	defer func() { t.versions = watchword.AuthorityVersions{} }()
	return step()
}

// checkVersions returns ErrBasisMoved where b is not what stands.
func (t *tx) checkVersions(tenant watchword.TenantID, b watchword.AuthorityVersions) error {
	if !b.Compared() {
		return nil
	}
	v, err := queryOne(context.Background(), t, func(r scanner) (v watchword.Versions, err error) {
		return v, r.Scan(&v.Subject, &v.Policies, &v.Target)
	}, watchword.ErrAuthorityChanged, `SELECT s.basis, `+policyVersion+`,
			CASE WHEN ?3 = '' THEN 0 ELSE coalesce((SELECT o.basis FROM subjects o WHERE o.tenant = ?1 AND o.id = ?3), 0) END
		FROM subjects s WHERE s.tenant = ?1 AND s.id = ?2`, tenant, b.Subject, b.Target)
	if err != nil {
		return err
	}
	return b.Check(v)
}

// policyVersion is the version of the policies of tenant ?1.
const policyVersion = `(SELECT coalesce(sum(p.version), 0) FROM policy_versions p WHERE p.tenant IN ('', ?1))`

// PolicyVersion returns the version of what policies and issuer keys decide.
func (s *Store) PolicyVersion(ctx context.Context, t watchword.TenantID) (int64, error) {
	return readPolicyVersion(ctx, s, t)
}

func readPolicyVersion(ctx context.Context, from querier, t watchword.TenantID) (int64, error) {
	return queryOne(ctx, from, func(r scanner) (n int64, err error) { return n, r.Scan(&n) }, error(nil), `SELECT `+policyVersion, t)
}
