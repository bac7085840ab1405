package sqlite

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
)

// A step loads rows, has them judged by the package whose rule it is, and writes what that returned. It assigns to no
// variable of the method around it: it may run more than once, and what it returns the last time is what counts.

// write runs a step that asks for no authority, and returns what it returned. After an error that is the zero value.
func write[T any](ctx context.Context, s *Store, step func(*tx) (T, error)) (T, error) {
	var out T
	err := s.w.do(ctx, func(t *tx) (err error) {
		out, err = step(t)
		return err
	})
	if err != nil {
		var zero T
		return zero, err
	}
	return out, nil
}

// writeAuthorized is write for an authorized step ([tx.withVersions]).
func writeAuthorized[T any](ctx context.Context, s *Store, tenant watchword.TenantID, b watchword.AuthorityVersions, step func(*tx) (T, error)) (T, error) {
	return write(ctx, s, func(t *tx) (out T, err error) {
		err = t.withVersions(tenant, b, func() error {
			out, err = step(t)
			return err
		})
		return out, err
	})
}

// writeAs is writeAuthorized for a step whose entries are made in the step.
func writeAs[T any](ctx context.Context, s *Store, by audit.Actor, step func(*tx) (T, error)) (T, error) {
	return writeAuthorized(ctx, s, by.Tenant, by.Versions, step)
}

// truncateToMillis cuts a time to what is stored of it.
func truncateToMillis(at time.Time) time.Time { return fromMillis(toMillis(at)) }
