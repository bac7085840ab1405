package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
)

// EachSubject calls f with each subject that one of some selectors chooses, in order of ids. It is one query, which reads no other
// subjects but those that have the rarest label of a selector.
func (s *Store) EachSubject(ctx context.Context, t watchword.TenantID, some []policy.Selector, f func(*watchword.Subject) error) error {
	q, args, err := s.selected(ctx, t, some)
	if err != nil || q == "" {
		return err
	}
	return queryEach(ctx, unpreparedQueries{s}, scanSelected(t, f), q, args...)
}

const selectedColumns = `SELECT id, kind, role, state, proof, labels FROM subjects WHERE tenant = ? AND deleted = 0`

// selected returns the query of EachSubject, empty where it has no rows.
func (s *Store) selected(ctx context.Context, t watchword.TenantID, some []policy.Selector) (q string, args []any, err error) {
	var parts []string
	args = []any{t}
	seen := map[string]bool{}
	add := func(part string, values ...any) {
		if one := fmt.Sprint(part, values); !seen[one] {
			seen[one] = true
			parts, args = append(parts, part), append(args, values...)
		}
	}
	for _, sel := range some {
		switch {
		case sel.IDs != nil:
			ids, err := json.Marshal(sel.IDs)
			if err != nil {
				return "", nil, err
			}
			add(`SELECT value FROM json_each(?)`, string(ids))
		case len(sel.Labels) > 0:
			key, err := s.rarestLabel(ctx, t, sel.Labels)
			if err != nil {
				return "", nil, err
			}
			add(`SELECT subject FROM labels WHERE tenant = ? AND key = ? AND value = ?`, t, key, sel.Labels[key])
		case sel.Kinds != nil && !slices.Contains(sel.Kinds, watchword.Device):
			kinds, err := json.Marshal(sel.Kinds)
			if err != nil {
				return "", nil, err
			}
			add(`SELECT id FROM subjects INDEXED BY subjects_kind WHERE tenant = ? AND deleted = 0 AND kind IN (SELECT value FROM json_each(?))`, t, string(kinds))
		default:
			return selectedColumns + ` ORDER BY id`, []any{t}, nil
		}
	}
	if len(parts) == 0 {
		return "", nil, nil
	}
	return selectedColumns + ` AND id IN (` + strings.Join(parts, ` UNION `) + `) ORDER BY id`, args, nil
}

// rarestLabel returns the key of the label, among some, that the fewest subjects have. It counts no further than to ten times that
// number, and 100.
func (s *Store) rarestLabel(ctx context.Context, t watchword.TenantID, labels watchword.Labels) (string, error) {
	keys := slices.Sorted(maps.Keys(labels))
	for limit := 100; len(keys) > 1; limit *= 10 {
		fewest, rarest := limit, ""
		for _, k := range keys {
			n, err := queryOne(ctx, s, func(r scanner) (n int, err error) { return n, r.Scan(&n) }, error(nil),
				`SELECT count(*) FROM (SELECT 1 FROM labels WHERE tenant = ? AND key = ? AND value = ? LIMIT ?)`, t, k, labels[k], limit)
			if err != nil {
				return "", err
			}
			if n < fewest {
				fewest, rarest = n, k
			}
		}
		if rarest != "" {
			return rarest, nil
		}
	}
	return keys[0], nil
}

// scanSelected scans the rows of EachSubject. A set of labels is parsed once.
func scanSelected(t watchword.TenantID, f func(*watchword.Subject) error) func(scanner) error {
	var labels sql.RawBytes
	var last struct {
		text   string
		labels watchword.Labels
	}
	parsed := map[string]watchword.Labels{"{}": nil}
	return func(r scanner) error {
		sub := watchword.Subject{Tenant: t}
		if err := r.Scan(&sub.ID, &sub.Kind, &sub.Role, &sub.State, &sub.Proof, &labels); err != nil {
			return err
		}
		if string(labels) != last.text {
			l, known := parsed[string(labels)]
			if !known {
				if err := json.Unmarshal(labels, &l); err != nil {
					return err
				}
				if len(parsed) > maxParsedLabels {
					clear(parsed)
				}
				parsed[string(labels)] = l
			}
			last.text, last.labels = string(labels), l
		}
		sub.Labels = last.labels
		return f(&sub)
	}
}

// maxParsedLabels is how many different sets of labels one query remembers.
const maxParsedLabels = 10_000
