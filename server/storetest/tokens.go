package storetest

import (
	"fmt"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/token"
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

func (t *T) record(jti string, id watchword.SubjectID) token.Record {
	return token.Record{
		Tenant: tenant, JTI: jti, Subject: id, Incarnation: 1, Key: watchword.KeyID(id + "-sign"), Issued: t.now, Expires: t.now.Add(10 * time.Minute),
	}
}

func (t *T) spend(jti string) token.SingleUse {
	return token.SingleUse{JTI: jti, Expires: t.now.Add(time.Minute)}
}

func tokens(t *T) {
	e := t.entry(audit.TokenIssue, "tok")
	t.wantCode(watchword.ClientInvalid, t.IssueToken(t.ctx, t.record("tok_0", "nobody"), t.spend("a"), e))
	t.add("lamp-1", nil)
	t.wantCode(watchword.SubjectNew, t.IssueToken(t.ctx, t.record("tok_1", "lamp-1"), t.spend("a"), e))
	t.enroll("lamp-1", "lamp-1")
	r := t.record("tok_1", "lamp-1")
	r.ClaimsDigest = [32]byte{1, 31: 2}
	t.must(t.IssueToken(t.ctx, r, t.spend("a"), e))
	got, err := t.TokenRecord(t.ctx, tenant, "tok_1")
	t.must(err)
	equal(t, "record", got, r)
	t.wantCode(watchword.TokenReplayed, t.IssueToken(t.ctx, t.record("tok_2", "lamp-1"), t.spend("a"), e))
	_, err = t.TokenRecord(t.ctx, tenant, "tok_2")
	t.wantCode(watchword.NotFound, err)
	foreign := t.record("tok_3", "lamp-1")
	foreign.Key = "lamp-1-seal"
	t.wantCode(watchword.ClientInvalid, t.IssueToken(t.ctx, foreign, t.spend("b"), e))
	early := t.record("tok_4", "lamp-1")
	early.Incarnation = 2
	t.wantCode(watchword.ClientInvalid, t.IssueToken(t.ctx, early, t.spend("b"), e))
	t.must(t.IssueToken(t.ctx, t.record("tok_5", "lamp-1"), t.spend("b"), e)) // what was refused spent nothing
	t.enrolled("lamp-2")
	t.must(t.IssueToken(t.ctx, t.record("tok_6", "lamp-2"), t.spend("a"), e)) // jti counts for its subject alone
	// An assertion counts once, for a token or for anything else.
	t.wantCode(watchword.TokenReplayed, t.ConsumeAssertion(t.ctx, tenant, "lamp-1", t.spend("a")))
	t.must(t.ConsumeAssertion(t.ctx, tenant, "lamp-1", t.spend("d")))
	t.wantCode(watchword.TokenReplayed, t.ConsumeAssertion(t.ctx, tenant, "lamp-1", t.spend("d")))
	t.wantCode(watchword.TokenReplayed, t.IssueToken(t.ctx, t.record("tok_9", "lamp-1"), t.spend("d"), e))
	_, err = t.Suspend(t.ctx, tenant, "lamp-1", t.now, e)
	t.must(err)
	t.wantCode(watchword.SubjectSuspended, t.IssueToken(t.ctx, t.record("tok_7", "lamp-1"), t.spend("c"), e))
	_, err = t.Revoke(t.ctx, tenant, "lamp-1", t.now, e)
	t.must(err)
	t.wantCode(watchword.SubjectRevoked, t.IssueToken(t.ctx, t.record("tok_8", "lamp-1"), t.spend("c"), e))
}

func assertionRace(t *T) {
	t.enrolled("lamp-1")
	n := t.log()
	errs := count(race(16, func(i int) error {
		return t.IssueToken(t.ctx, t.record(fmt.Sprint("tok_", i), "lamp-1"), t.spend("same"), t.entry(audit.TokenIssue, "tok"))
	}))
	if errs[""] != 1 || errs[watchword.TokenReplayed] != 15 {
		t.Fatalf("sixteen uses of one assertion: %v", errs)
	}
	equal(t, "entries", t.log(), n+1)
}

func prune(t *T) {
	t.enrolled("lamp-1")
	e := t.entry(audit.TokenIssue, "tok")
	for i := range 5 {
		t.must(t.IssueToken(t.ctx, t.record(fmt.Sprint("tok_", i), "lamp-1"), t.spend(fmt.Sprint("a", i)), e))
		t.must(t.ConsumeAssertion(t.ctx, tenant, "lamp-1", t.spend(fmt.Sprint("b", i))))
	}
	n, err := t.DeleteExpired(t.ctx, t.now, 100)
	t.must(err)
	equal(t, "gone while all counts", n, 0)
	n, err = t.DeleteExpired(t.ctx, t.now.Add(2*time.Minute), 3)
	t.must(err)
	equal(t, "gone, at most the limit", n, 3)
	n, err = t.DeleteExpired(t.ctx, t.now.Add(2*time.Minute), 100)
	t.must(err)
	equal(t, "the other assertions", n, 2)
	_, err = t.TokenRecord(t.ctx, tenant, "tok_0")
	t.must(err)
	n, err = t.DeleteExpired(t.ctx, t.now.Add(2*time.Hour), 100)
	t.must(err)
	equal(t, "tokens and the code", n, 6)
	_, err = t.TokenRecord(t.ctx, tenant, "tok_0")
	t.wantCode(watchword.NotFound, err)
}
