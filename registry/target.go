package registry

import (
	"context"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/policy"
)

// target returns the device that a fn: resource names, with today's labels; the
// zero target for other resources. Code: not_found.
func (r *Registry) target(ctx context.Context, t watchword.TenantID, resource string) (policy.Target, error) {
	rest, ok := strings.CutPrefix(resource, watchword.FnPrefix)
	if !ok {
		return policy.Target{}, nil
	}
	id, _, _ := strings.Cut(rest, "/")
	return r.roll.Target(ctx, t, watchword.SubjectID(id))
}

// Target returns a device as rules about calls see it. Code: not_found, also
// for a subject that is no device.
func (r *Roll) Target(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (policy.Target, error) {
	s, _, err := r.Today(ctx, t, id)
	if err != nil && watchword.CodeOf(err) != watchword.NotFound {
		return policy.Target{}, err
	}
	if err != nil || s.Kind != watchword.Device {
		return policy.Target{}, watchword.Refuse(watchword.NotFound, "device %q not found", id)
	}
	return policy.Target{ID: s.ID, Labels: s.Labels, Basis: s.Basis}, nil
}
