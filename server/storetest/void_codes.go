package storetest

import (
	"fmt"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/enroll"
)

// voidCodes: an unused code ends with what it was decided on: the state, role, labels and required proof of its subject, and the state,
// role, labels and key of its maker.
func voidCodes(t *T) {
	e := t.entry(operatorEnroll, "x")
	act := func(_ watchword.Subject, err error) error { return err }
	for i, tc := range []struct {
		name string
		does func(maker, subject watchword.SubjectID) error
		void bool
	}{
		{"the labels of its subject change", func(_, s watchword.SubjectID) error {
			return act(t.SetLabels(t.ctx, tenant, s, watchword.Labels{"a": "b"}, 0, t.now, e))
		}, true},
		{"the role of its subject changes", func(_, s watchword.SubjectID) error { return act(t.SetRole(t.ctx, tenant, s, "auditor", t.now, e)) }, true},
		{"the required proof of its subject changes", func(_, s watchword.SubjectID) error {
			return act(t.SetProof(t.ctx, tenant, s, watchword.RequireProof, t.now, e))
		}, true},
		{"its subject is suspended", func(_, s watchword.SubjectID) error { return act(t.Suspend(t.ctx, tenant, s, t.now, e)) }, false},
		{"its subject is revoked", func(_, s watchword.SubjectID) error { return act(t.Revoke(t.ctx, tenant, s, t.now, e)) }, true},
		{"its subject is deleted", func(_, s watchword.SubjectID) error { return t.DeleteSubject(t.ctx, tenant, s, t.now, e) }, true},
		{"a key of its subject is revoked", func(_, s watchword.SubjectID) error {
			return act(t.RevokeKey(t.ctx, tenant, s, watchword.KeyID(s)+"-sign", t.now, e))
		}, true},
		{"its subject changes nothing", func(_, s watchword.SubjectID) error { return act(t.SetRole(t.ctx, tenant, s, "viewer", t.now, e)) }, false},
		{"the labels of its maker change", func(m, _ watchword.SubjectID) error {
			return act(t.SetLabels(t.ctx, tenant, m, watchword.Labels{"a": "b"}, 0, t.now, e))
		}, true},
		{"the role of its maker changes", func(m, _ watchword.SubjectID) error { return act(t.SetRole(t.ctx, tenant, m, "auditor", t.now, e)) }, true},
		{"its maker is suspended", func(m, _ watchword.SubjectID) error { return act(t.Suspend(t.ctx, tenant, m, t.now, e)) }, true},
		{"its maker is revoked", func(m, _ watchword.SubjectID) error { return act(t.Revoke(t.ctx, tenant, m, t.now, e)) }, true},
		{"its maker is deleted", func(m, _ watchword.SubjectID) error { return t.DeleteSubject(t.ctx, tenant, m, t.now, e) }, true},
		{"the key that it was made with is revoked", func(m, _ watchword.SubjectID) error {
			return act(t.RevokeKey(t.ctx, tenant, m, watchword.KeyID(m)+"-sign", t.now, e))
		}, true},
		{"the key that it was made with gets an end", func(m, _ watchword.SubjectID) error {
			return act(t.SetKeyEnd(t.ctx, tenant, m, watchword.KeyID(m)+"-sign", t.now.Add(time.Hour), t.now, e))
		}, true},
		{"a key of its subject gets an end", func(_, s watchword.SubjectID) error {
			return act(t.SetKeyEnd(t.ctx, tenant, s, watchword.KeyID(s)+"-sign", t.now.Add(time.Hour), t.now, e))
		}, true},
		{"another key of its maker is revoked", func(m, _ watchword.SubjectID) error {
			t.must(t.AddCode(t.ctx, t.code(m, "code of second"), e))
			_, _, err := t.RedeemCode(t.ctx, t.signing("second"), t.now, e)
			t.must(err)
			return act(t.RevokeKey(t.ctx, tenant, m, "second-sign", t.now, e))
		}, false},
		{"its maker has to prove its key", func(m, _ watchword.SubjectID) error {
			return act(t.SetProof(t.ctx, tenant, m, watchword.RequireProof, t.now, e))
		}, false},
	} {
		maker, subject := watchword.SubjectID(fmt.Sprint("maker-", i)), watchword.SubjectID(fmt.Sprint("subject-", i))
		t.operator(maker, "admin")
		t.operator(subject, "viewer")
		c := t.code(subject, tc.name)
		c.CreatedBy, c.CreatedByKey = maker, watchword.KeyID(maker)+"-sign"
		t.must(t.AddCode(t.ctx, c, e))
		other := t.code("other", "of others")
		other.CreatedBy = "another maker"
		if i == 0 {
			t.operator("other", "viewer")
			t.must(t.AddCode(t.ctx, other, e))
		}
		found := func(c enroll.Code) bool {
			t.Helper()
			pending, err := t.PendingCode(t.ctx, tenant, c.Subject, t.now)
			same, err2 := t.Code(t.ctx, tenant, c.Hash)
			equal(t, tc.name+": both find the code", watchword.CodeOf(err2), watchword.CodeOf(err))
			if err != nil {
				t.wantCode(watchword.CodeInvalid, err)
				return false
			}
			equal(t, tc.name+": the code", pending, c)
			equal(t, tc.name+": the code", same, c)
			return true
		}
		equal(t, tc.name+": before", found(c), true)
		_, err := t.PendingCode(t.ctx, tenant, subject, c.Expires)
		t.wantCode(watchword.CodeInvalid, err)
		_, err = t.PendingCode(t.ctx, otherTenant, subject, t.now)
		t.wantCode(watchword.CodeInvalid, err)
		t.must(tc.does(maker, subject))
		equal(t, tc.name+": after", found(c), !tc.void)
		equal(t, tc.name+": the code of others", found(other), true)
	}
}
