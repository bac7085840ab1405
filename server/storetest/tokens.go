package storetest

import (
	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
)

func proofRequired(t *T) {
	s := watchword.Subject{Tenant: tenant, ID: "lamp-0", Kind: watchword.Device, State: watchword.New, Proof: watchword.RequireProof, Created: t.now, Changed: t.now}
	t.must(t.CreateSubject(t.ctx, s, nil, t.entry(audit.DeviceCreate, "lamp-0")))
	t.enrolled("lamp-1")
	n := t.log()
	e := t.entry(audit.DeviceProof, "lamp-1")
	for _, to := range []string{watchword.RequireProof, watchword.RequireProof, "", ""} {
		before, err := t.Subject(t.ctx, tenant, "lamp-1")
		t.must(err)
		s, err := t.SetProof(t.ctx, tenant, "lamp-1", to, t.now, e)
		t.must(err)
		equal(t, "proof", s.Proof, to)
		equal(t, "a new version", s.Version != before.Version, to != before.Proof)
		equal(t, "keys", len(s.Keys), 2)
	}
	equal(t, "entries", t.log(), n+2)
	list, err := t.Subjects(t.ctx, tenant, "", "", nil, "", 10)
	t.must(err)
	equal(t, "listed", list[0].Proof+"/"+list[1].Proof, "required/")
	_, err = t.SetProof(t.ctx, tenant, "nobody", "", t.now, e)
	t.wantCode(watchword.NotFound, err)
	_, err = t.SetProof(t.ctx, otherTenant, "lamp-1", watchword.RequireProof, t.now, e)
	t.wantCode(watchword.NotFound, err)
}

func tokenRevoked(t *T) {
	t.enrolled("lamp-1")
	e := t.entry(audit.TokenIssue, "tok")
	t.must(t.IssueToken(t.ctx, t.record("tok_1", "lamp-1"), t.spend("a"), e))
	t.must(t.IssueToken(t.ctx, t.record("tok_2", "lamp-1"), t.spend("b"), e))
	n := t.log()
	gone := t.entry(audit.TokenRevoke, "tok_1")
	t.wantCode(watchword.NotFound, t.RevokeToken(t.ctx, tenant, "tok_0", gone))
	t.wantCode(watchword.NotFound, t.RevokeToken(t.ctx, otherTenant, "tok_1", gone))
	t.must(t.RevokeToken(t.ctx, tenant, "tok_1", gone))
	t.must(t.RevokeToken(t.ctx, tenant, "tok_1", gone))
	equal(t, "entries after revoking twice", t.log(), n+1)
	for jti, want := range map[string]bool{"tok_1": true, "tok_2": false} {
		r, err := t.TokenRecord(t.ctx, tenant, jti)
		t.must(err)
		equal(t, jti+" revoked", r.Revoked, want)
	}
	t.wantCode(watchword.TokenReplayed, t.ConsumeAssertion(t.ctx, tenant, "lamp-1", t.spend("a")))
	t.must(t.ConsumeAssertion(t.ctx, tenant, "lamp-1", t.spend("c")))
	t.wantCode(watchword.TokenReplayed, t.ConsumeAssertion(t.ctx, tenant, "lamp-1", t.spend("c")))
	t.wantCode(watchword.TokenReplayed, t.IssueToken(t.ctx, t.record("tok_3", "lamp-1"), t.spend("c"), e))
}
