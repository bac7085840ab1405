package sqlite

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/twin"
)

// device refuses a subject that is no device of the tenant.
func (t *tx) device(tenant watchword.TenantID, id watchword.SubjectID) (watchword.Subject, error) {
	s, err := queryOne(context.Background(), t, scanSubject, notFound("device", id),
		`SELECT `+subjectColumns+` FROM subjects WHERE tenant = ? AND id = ? AND deleted = 0 AND kind = 'device'`, tenant, id)
	return s, err
}

// SetFunctions replaces the functions that the device announced.
func (s *Store) SetFunctions(ctx context.Context, tenant watchword.TenantID, b watchword.AuthorityVersions, device watchword.SubjectID, fs []twin.Function, now time.Time) error {
	return s.w.doWithVersions(ctx, tenant, b, func(t *tx) error {
		if _, err := t.device(tenant, device); err != nil {
			return err
		}
		if _, err := t.exec(`DELETE FROM functions WHERE tenant = ? AND device = ?`, tenant, device); err != nil {
			return err
		}
		for _, f := range fs {
			if _, err := t.exec(`INSERT INTO functions (tenant, device, name, schema) VALUES (?, ?, ?, ?)`, tenant, device, f.Name, f.Schema); err != nil {
				return err
			}
		}
		return nil
	})
}

// Functions returns the functions that the device announced, by name.
func (s *Store) Functions(ctx context.Context, t watchword.TenantID, device watchword.SubjectID) ([]twin.Function, error) {
	return queryAll(ctx, s, func(r scanner) (f twin.Function, err error) {
		err = r.Scan(&f.Name, &f.Schema)
		return f, err
	}, `SELECT name, schema FROM functions WHERE tenant = ? AND device = ? ORDER BY name`, t, device)
}

func readTwin(ctx context.Context, from querier, t watchword.TenantID, device watchword.SubjectID) (twin.Twin, error) {
	return queryOne(ctx, from, func(r scanner) (w twin.Twin, err error) {
		var configAt, stateAt int64
		w.Tenant, w.Device = t, device
		err = r.Scan(&w.Config, &w.ConfigVersion, &configAt, &w.State, &stateAt, &w.StateVersion, &w.ReportedBy, &w.ReportedByIncarnation)
		w.ConfigAt, w.StateAt = fromMillis(configAt), fromMillis(stateAt)
		return w, err
	}, notFound("device", device), `SELECT w.config, coalesce(w.config_version, 0), coalesce(w.config_at, 0), w.state, coalesce(w.state_at, 0), coalesce(w.state_version, 0),
			coalesce(w.state_by, ''), coalesce(w.state_by_incarnation, 0)
		FROM subjects s LEFT JOIN twins w ON w.tenant = s.tenant AND w.device = s.id
		WHERE s.tenant = ? AND s.id = ? AND s.deleted = 0 AND s.kind = 'device'`, t, device)
}

// Twin returns the device's twin.
func (s *Store) Twin(ctx context.Context, t watchword.TenantID, device watchword.SubjectID) (twin.Twin, error) {
	return readTwin(ctx, s, t, device)
}

// ReportedStates lists reported states by device.
func (s *Store) ReportedStates(ctx context.Context, t watchword.TenantID, after watchword.SubjectID, limit int) ([]twin.Twin, error) {
	return queryAll(ctx, s, func(r scanner) (w twin.Twin, err error) {
		var at int64
		w.Tenant = t
		err = r.Scan(&w.Device, &w.State, &at, &w.ReportedBy, &w.ReportedByIncarnation)
		w.StateAt = fromMillis(at)
		return w, err
	}, `SELECT device, state, state_at, state_by, state_by_incarnation FROM twins WHERE tenant = ? AND device > ? AND state IS NOT NULL ORDER BY device LIMIT ?`, t, after, limit)
}

// ReportState replaces the reported state.
func (s *Store) ReportState(ctx context.Context, tenant watchword.TenantID, b watchword.AuthorityVersions, device watchword.SubjectID, state []byte, now time.Time) error {
	_, err := writeAuthorized(ctx, s, tenant, b, func(t *tx) (none struct{}, err error) {
		before, err := readTwin(context.Background(), t, tenant, device)
		if err != nil {
			return none, err
		}
		life, err := queryOne(context.Background(), t, func(r scanner) (n int64, err error) { return n, r.Scan(&n) }, nil,
			`SELECT incarnation FROM subjects WHERE tenant = ? AND id = ?`, tenant, b.Subject)
		if err != nil {
			return none, err
		}
		w := before.Report(state, b.Subject, life, now)
		_, err = t.exec(`INSERT INTO twins (tenant, device, state, state_at, state_version, state_by, state_by_incarnation) VALUES (?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT DO UPDATE SET state = excluded.state, state_at = excluded.state_at, state_version = excluded.state_version,
				state_by = excluded.state_by, state_by_incarnation = excluded.state_by_incarnation`,
			tenant, device, w.State, toMillis(w.StateAt), w.StateVersion, w.ReportedBy, w.ReportedByIncarnation)
		return none, err
	})
	return err
}

// SetConfig replaces the device's configuration.
func (s *Store) SetConfig(ctx context.Context, tenant watchword.TenantID, device watchword.SubjectID, config []byte, ifVersion int64, now time.Time, e audit.Entry) (twin.Twin, error) {
	now = truncateToMillis(now)
	return writeAuthorized(ctx, s, tenant, e.Versions, func(t *tx) (twin.Twin, error) {
		before, err := readTwin(context.Background(), t, tenant, device)
		if err != nil {
			return before, err
		}
		w, err := before.Configure(config, ifVersion, now)
		if err != nil {
			return w, err
		}
		if _, err := t.exec(`INSERT INTO twins (tenant, device, config, config_version, config_at) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT DO UPDATE SET config = excluded.config, config_at = excluded.config_at, config_version = excluded.config_version`,
			tenant, device, w.Config, w.ConfigVersion, toMillis(w.ConfigAt)); err != nil {
			return w, err
		}
		return w, t.addEntry(e)
	})
}
