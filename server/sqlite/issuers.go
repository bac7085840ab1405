package sqlite

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/token"
)

// IssuerHistory returns every issuer that the server has had; none before the first move.
func (s *Store) IssuerHistory(ctx context.Context) ([]token.IssuerPeriod, error) {
	return queryAll(ctx, s, func(r scanner) (p token.IssuerPeriod, err error) {
		var until int64
		err = r.Scan(&p.Issuer, &until)
		p.Until = fromMillis(until)
		return p, err
	}, `SELECT issuer, until FROM issuers ORDER BY n`)
}

// putIssuers replaces the history; nil leaves it.
func (t *tx) putIssuers(history []token.IssuerPeriod) error {
	if history == nil {
		return nil
	}
	if _, err := t.exec(`DELETE FROM issuers`); err != nil {
		return err
	}
	for i, p := range history {
		if _, err := t.exec(`INSERT INTO issuers (n, issuer, until) VALUES (?, ?, ?)`, i+1, p.Issuer, toMillis(p.Until)); err != nil {
			return err
		}
	}
	return nil
}

// issuerUseEvery is how often the time of a subject's last assertion is written while it names the same issuer.
const issuerUseEvery = time.Hour

// noteIssuer writes which issuer a subject's assertion named.
func (t *tx) noteIssuer(tenant watchword.TenantID, subject watchword.SubjectID, issuer string, at time.Time) error {
	_, err := t.exec(`INSERT INTO issuer_use (tenant, subject, issuer, at) VALUES (?1, ?2, ?3, ?4)
		ON CONFLICT (tenant, subject) DO UPDATE SET issuer = ?3, at = ?4 WHERE issuer <> ?3 OR at <= ?5`,
		tenant, subject, issuer, toMillis(at), toMillis(at.Add(-issuerUseEvery)))
	return err
}

// IssuerUse counts the active devices of a tenant by the issuer that their last assertion named, since the first move. seen is their
// number by issuer; unseen is the number of those that have not been here since.
func (s *Store) IssuerUse(ctx context.Context, tenant watchword.TenantID) (seen map[string]int, unseen int, err error) {
	type count struct {
		issuer string
		n      int
	}
	counts, err := queryAll(ctx, s, func(r scanner) (c count, err error) { return c, r.Scan(&c.issuer, &c.n) },
		`SELECT coalesce(u.issuer, ''), count(*) FROM subjects s LEFT JOIN issuer_use u ON u.tenant = s.tenant AND u.subject = s.id
			WHERE s.tenant = ? AND s.deleted = 0 AND s.state = 'active' AND s.kind = 'device' GROUP BY 1`, tenant)
	seen = map[string]int{}
	for _, c := range counts {
		if c.issuer == "" {
			unseen = c.n
		} else {
			seen[c.issuer] = c.n
		}
	}
	return seen, unseen, err
}
