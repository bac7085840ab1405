package registry

import (
	"context"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
)

// target returns the device that a fn: resource names, with the current labels; the
// zero target for other resources. Code: not_found.
func (r *Registry) target(ctx context.Context, t watchword.TenantID, resource string) (policy.Target, error) {
	rest, ok := strings.CutPrefix(resource, watchword.FunctionPrefix)
	if !ok {
		return policy.Target{}, nil
	}
	id, _, _ := strings.Cut(rest, "/")
	return r.directory.Target(ctx, t, watchword.SubjectID(id))
}

// Target returns a device as rules about calls see it. Code: not_found, also
// for a subject that is not a device.
func (d *Directory) Target(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (policy.Target, error) {
	p, err := d.Principal(ctx, t, id)
	if err != nil && watchword.CodeOf(err) != watchword.NotFound {
		return policy.Target{}, err
	}
	if err != nil || p.Subject.Kind != watchword.Device {
		return policy.Target{}, watchword.Refuse(watchword.NotFound, "device %q not found", id)
	}
	s := p.Subject
	return policy.Target{ID: s.ID, Labels: s.Labels, Version: s.AuthorityVersion}, nil
}
