package storetest

import (
	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
)

func policies(t *T) {
	e := t.entry(audit.PolicyApply, "lamps")
	p, _, err := t.PutPolicy(t.ctx, tenant, "lamps", []byte("one"), 0, t.now, e)
	t.must(err)
	equal(t, "version", p.Version, 1)
	_, _, err = t.PutPolicy(t.ctx, tenant, "lamps", []byte("two"), 0, t.now, e)
	t.wantCode(watchword.PreconditionFailed, err)
	p, _, err = t.PutPolicy(t.ctx, tenant, "lamps", []byte("one"), -1, t.now, e)
	t.must(err)
	equal(t, "version of the same text", p.Version, 1)
	equal(t, "entries", t.log(), 1)
	p, _, err = t.PutPolicy(t.ctx, tenant, "lamps", []byte("two"), 1, t.now, e)
	t.must(err)
	equal(t, "version", p.Version, 2)
	_, _, err = t.PutPolicy(t.ctx, tenant, "lamps", []byte("three"), 1, t.now, e)
	t.wantCode(watchword.PreconditionFailed, err)
	_, _, err = t.PutPolicy(t.ctx, tenant, "none", []byte("x"), 3, t.now, e)
	t.wantCode(watchword.PreconditionFailed, err)
	_, _, err = t.PutPolicy(t.ctx, tenant, "attic", []byte("x"), -1, t.now, e)
	t.must(err)
	ps, err := t.Policies(t.ctx, tenant)
	t.must(err)
	if len(ps) != 2 || ps[0].Name != "attic" || ps[1].Name != "lamps" || string(ps[1].Source) != "two" {
		t.Fatalf("policies: %+v", ps)
	}
	_, err = t.DeletePolicy(t.ctx, tenant, "none", -1, t.now, e)
	t.wantCode(watchword.NotFound, err)
	_, err = t.DeletePolicy(t.ctx, tenant, "lamps", 1, t.now, e)
	t.wantCode(watchword.PreconditionFailed, err)
	_, err = t.DeletePolicy(t.ctx, tenant, "lamps", 2, t.now, e)
	t.must(err)
	_, err = t.DeletePolicy(t.ctx, tenant, "lamps", -1, t.now, e)
	t.wantCode(watchword.NotFound, err)
	p, _, err = t.PutPolicy(t.ctx, tenant, "lamps", []byte("two"), 0, t.now, e)
	t.must(err)
	equal(t, "version after deletion", p.Version, 3)
}
