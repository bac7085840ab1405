package storetest

import (
	"errors"
	"reflect"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/enroll"
	"github.com/watchword-iot/watchword/server/internal/clock"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/token"
)

// authorizedSteps is every authorized step, done by the actor of e.
func (t *T) authorizedSteps(e audit.Entry) map[string]error {
	sub := watchword.Subject{Tenant: tenant, ID: "new", Kind: watchword.Device, State: watchword.New, Created: t.now, Changed: t.now}
	out := map[string]error{
		"CreateSubject": t.CreateSubject(t.ctx, sub, nil, e),
		"DeleteSubject": t.DeleteSubject(t.ctx, tenant, "lamp-1", t.now, e),
		"ForgetSubject": t.ForgetSubject(t.ctx, tenant, "lamp-1", e),
		"AddCode":       t.AddCode(t.ctx, t.code("lamp-1", "x"), e),
		"SetClockMark":  t.SetClockMark(t.ctx, clock.Mark{}, e),
		"RotateKeys":    t.RotateKeys(t.ctx, keyring.KeyUpdate{}, e),
		"RevokeToken":   t.RevokeToken(t.ctx, tenant, "tok", e),
		"SetFunctions":  t.SetFunctions(t.ctx, tenant, e.Versions, "lamp-1", nil, t.now),
		"ReportState":   t.ReportState(t.ctx, tenant, e.Versions, "lamp-1", []byte("{}"), t.now),
		"AddEntry":      t.AddEntry(t.ctx, e),

		"AcknowledgeNotice": t.AcknowledgeNotice(t.ctx, actor(e), watchword.NoticeRecovery, "x", t.now, t.now, e),
	}
	_, _, out["RedeemCode"] = t.RedeemCode(t.ctx, t.redemption("x", "x"), t.now, e) // by the maker of the code
	_, out["SetLabels"] = t.SetLabels(t.ctx, tenant, "lamp-1", nil, 0, t.now, e)
	_, out["SetName"] = t.SetName(t.ctx, tenant, "lamp-1", "x", t.now, e)
	_, out["SetProof"] = t.SetProof(t.ctx, tenant, "lamp-1", watchword.RequireProof, t.now, e)
	_, out["SetRole"] = t.SetRole(t.ctx, tenant, "lamp-1", "viewer", t.now, e)
	_, out["Suspend"] = t.Suspend(t.ctx, tenant, "lamp-1", t.now, e)
	_, out["Resume"] = t.Resume(t.ctx, tenant, "lamp-1", t.now, e)
	_, out["RevokeKey"] = t.RevokeKey(t.ctx, tenant, "lamp-1", "lamp-1-sign", t.now, e)
	_, out["SetKeyEnd"] = t.SetKeyEnd(t.ctx, tenant, "lamp-1", "lamp-1-sign", t.now.Add(time.Hour), t.now, e)
	_, out["Revoke"] = t.Revoke(t.ctx, tenant, "lamp-1", t.now, e)
	_, _, out["Rekey"] = t.Rekey(t.ctx, enroll.KeyChange{Tenant: tenant, Subject: "lamp-1"}, t.now, e)
	_, out["ApprovePairing"] = t.ApprovePairing(t.ctx, enroll.Approval{Pairing: "x", Subject: sub}, t.now, e)
	_, out["RejectPairing"] = t.RejectPairing(t.ctx, tenant, "x", "boss", t.now, e)
	_, _, out["PutPolicy"] = t.PutPolicy(t.ctx, tenant, "p", []byte("x"), -1, t.now, e)
	_, out["DeletePolicy"] = t.DeletePolicy(t.ctx, tenant, "p", -1, t.now, e)
	_, _, out["AddCommand"] = t.AddCommand(t.ctx, t.row(900, "lamp-1"), command.Idempotency{}, unbounded, e)
	_, _, out["ApplyReceipt"] = t.ApplyReceipt(t.ctx, command.ReceiptUpdate{Tenant: tenant, Device: "lamp-1", ID: "x"}, e)
	_, out["CancelCommand"] = t.CancelCommand(t.ctx, tenant, "x", t.now, e)
	_, out["SetConfig"] = t.SetConfig(t.ctx, tenant, "lamp-1", []byte("{}"), -1, t.now, e)
	return out
}

// withoutVersions is why a step that takes an entry compares nothing.
var withoutVersions = map[string]string{
	"Initialize":        "there is no subject yet",
	"IssueToken":        "the step checks the subject and its key itself",
	"AddHandover":       "the server does it; the step checks the device itself",
	"MarkUndeliverable": "the server does it, for what its device cannot take",
	"Recover":           "a process with access to the data folder does it",
	"RetireEndedKeys":   "the server does it, when their time has come",
	"ExpireCommands":    "the server does it, when their time has come",
}

// everyActIsListed fails where a step takes an entry or versions and is in no table.
func everyActIsListed(t *T) {
	acts := t.authorizedSteps(audit.Entry{Versions: watchword.AuthorityVersions{Subject: "nobody"}})
	store := reflect.TypeFor[Store]()
	for m := range store.NumMethod() {
		name, in := store.Method(m).Name, store.Method(m).Type
		for i := range in.NumIn() {
			switch p := in.In(i); {
			case p == reflect.TypeFor[watchword.AuthorityVersions](), p == reflect.TypeFor[audit.Actor](), isEntry(p):
				_, tried := acts[name]
				if _, excused := withoutVersions[name]; tried == excused {
					t.Errorf("%s: is it one that authority allows? Put it in one table, and in one only", name)
				}
			}
		}
	}
}

// isEntry reports whether a parameter of that type is an entry, several, or makes one.
func isEntry(p reflect.Type) bool {
	if p.Kind() == reflect.Func && p.NumOut() == 1 {
		p = p.Out(0)
	}
	return p == reflect.TypeFor[audit.Entry]() || p == reflect.TypeFor[[]audit.Entry]()
}

// versions returns what the acts of a subject are decided on now.
func (t *T) versions(id watchword.SubjectID) watchword.AuthorityVersions {
	t.Helper()
	s, err := t.Subject(t.ctx, tenant, id)
	t.must(err)
	v, err := t.PolicyVersion(t.ctx, tenant)
	t.must(err)
	return watchword.AuthorityVersions{Subject: id, SubjectVersion: s.AuthorityVersion, Policies: v}
}

func (t *T) entryBy(id watchword.SubjectID, b watchword.AuthorityVersions, kind, object string) audit.Entry {
	e := t.entry(kind, object)
	e.Actor, e.Versions = id, b
	return e
}

// staleVersionsRefused covers every change of authority and every act that was decided before it.
func staleVersionsRefused(t *T) {
	everyActIsListed(t)
	t.add("lamp-1", watchword.Labels{"site": "a"})
	t.enroll("lamp-1", "lamp-1")
	t.enrolled("boss")
	admin := t.entry(audit.DeviceLabel, "x")
	issued := token.Record{Tenant: tenant, JTI: "tok_1", Subject: "boss", Incarnation: 1, Key: "boss-sign", Issued: t.now, Expires: t.now.Add(time.Minute)}
	t.must(t.IssueToken(t.ctx, issued, token.SingleUse{JTI: "a", Expires: t.now.Add(time.Minute)}, t.entry(audit.TokenIssue, "tok_1")))
	issuer := keyring.SealedKey{ID: "issuer-1", Role: keyring.Issuer, State: keyring.Active, Private: []byte("x"), Created: t.now, Starts: t.now}
	t.must(t.RotateKeys(t.ctx, keyring.KeyUpdate{Add: []keyring.SealedKey{issuer}}, admin))
	end := t.now.Add(time.Hour) // of its next signing key
	edits := []struct {
		name string
		do   func() error
	}{
		{"its labels", func() error {
			_, err := t.SetLabels(t.ctx, tenant, "boss", watchword.Labels{"a": "b"}, 0, t.now, admin)
			return err
		}},
		{"a proof is required of it", func() error {
			_, err := t.SetProof(t.ctx, tenant, "boss", watchword.RequireProof, t.now, admin)
			return err
		}},
		{"it is suspended", func() error { _, err := t.Suspend(t.ctx, tenant, "boss", t.now, admin); return err }},
		{"it is resumed", func() error { _, err := t.Resume(t.ctx, tenant, "boss", t.now, admin); return err }},
		{"it changes its keys", func() error {
			k := t.redemption("", "fresh")
			k.Sign.Ends = end
			_, _, err := t.Rekey(t.ctx, enroll.KeyChange{
				Tenant: tenant, Subject: "boss", Incarnation: 1, From: "boss-sign", Sign: k.Sign, Seal: k.Seal, Spent: token.SingleUse{JTI: "r", Expires: t.now.Add(time.Minute)},
			}, t.now, admin)
			return err
		}},
		{"a token of it is revoked", func() error { return t.RevokeToken(t.ctx, tenant, "tok_1", admin) }},
		{"a policy is added", func() error {
			_, _, err := t.PutPolicy(t.ctx, tenant, "first", []byte("a"), -1, t.now, admin)
			return err
		}},
		{"a policy is changed", func() error {
			_, _, err := t.PutPolicy(t.ctx, tenant, "first", []byte("b"), -1, t.now, admin)
			return err
		}},
		{"a policy is deleted", func() error { _, err := t.DeletePolicy(t.ctx, tenant, "first", -1, t.now, admin); return err }},
		{"an issuer key is revoked", func() error {
			return t.RotateKeys(t.ctx, keyring.KeyUpdate{Change: []keyring.StateChange{{Role: keyring.Issuer, ID: "issuer-1", From: keyring.Active, To: keyring.Revoked, Ends: t.now}}}, admin)
		}},
		{"one of its keys ends", func() error {
			_, err := t.RetireEndedKeys(t.ctx, end, 10, audit.FixedEntry[watchword.Subject](admin))
			return err
		}},
		{"it is revoked", func() error { _, err := t.Revoke(t.ctx, tenant, "boss", t.now, admin); return err }},
		{"it is deleted", func() error { return t.DeleteSubject(t.ctx, tenant, "boss", t.now, admin) }},
	}
	for _, edit := range edits {
		before := t.versions("boss")
		t.must(edit.do())
		n := t.log()
		for act, err := range t.authorizedSteps(t.entryBy("boss", before, audit.ConfigSet, "x")) {
			if !errors.Is(err, watchword.ErrAuthorityChanged) {
				t.Errorf("%s, then %s: got %v, want ErrBasisMoved", edit.name, act, err)
			}
		}
		equal(t, edit.name+": entries", t.log(), n)
	}
}

// currentVersionsCommit commits acts that were decided on current versions, also if the act changes them.
func currentVersionsCommit(t *T) {
	t.enrolled("lamp-1")
	t.enrolled("boss")
	t.enrolled("other")
	b := t.versions("boss")
	_, err := t.SetConfig(t.ctx, tenant, "lamp-1", []byte("{}"), -1, t.now, t.entryBy("boss", b, audit.ConfigSet, "lamp-1"))
	t.must(err)
	_, err = t.SetLabels(t.ctx, tenant, "other", watchword.Labels{"a": "b"}, 0, t.now, t.entryBy("boss", b, audit.DeviceLabel, "other"))
	t.must(err) // what another subject may do is nothing to it
	equal(t, "versions", t.versions("boss"), b)

	// An act is decided on its target's labels too.
	onto := t.versions("lamp-1")
	b.Target, b.TargetVersion = "lamp-1", onto.SubjectVersion
	_, _, err = t.AddCommand(t.ctx, t.row(1, "lamp-1"), command.Idempotency{}, unbounded, t.entryBy("boss", b, audit.CommandOrder, "1"))
	t.must(err)
	_, err = t.SetLabels(t.ctx, tenant, "lamp-1", watchword.Labels{"a": "b"}, 0, t.now, t.entryBy("boss", t.versions("boss"), audit.DeviceLabel, "lamp-1"))
	t.must(err)
	_, _, err = t.AddCommand(t.ctx, t.row(2, "lamp-1"), command.Idempotency{}, unbounded, t.entryBy("boss", b, audit.CommandOrder, "2"))
	if !errors.Is(err, watchword.ErrAuthorityChanged) {
		t.Fatalf("the target's labels changed: got %v, want ErrBasisMoved", err)
	}

	// Another tenant's changes are nothing to this one.
	b = t.versions("boss")
	e := t.entry(audit.PolicyApply, "p")
	e.Tenant = otherTenant
	_, _, err = t.PutPolicy(t.ctx, otherTenant, "p", []byte("x"), -1, t.now, e)
	t.must(err)
	equal(t, "versions after another tenant's policy", t.versions("boss"), b)

	// A subject may remove its own right.
	_, err = t.Suspend(t.ctx, tenant, "boss", t.now, t.entryBy("boss", b, audit.DeviceSuspend, "boss"))
	t.must(err)

	// An entry that says it was allowed, and that nothing compared, is a mistake of the program.
	t.wantCode(watchword.Internal, t.AddEntry(t.ctx, t.entryBy("boss", watchword.AuthorityVersions{}, audit.ConfigSet, "x")))
	for _, kind := range []string{audit.SessionOpen, audit.SessionClose, audit.TokenIssue, audit.DeviceEnroll} {
		t.must(t.AddEntry(t.ctx, t.entryBy("boss", watchword.AuthorityVersions{}, kind, "x")))
	}
}

// versionsRace has two revoke each other at once: one of them does.
func versionsRace(t *T) {
	for range 20 {
		ids := []watchword.SubjectID{"a", "b"}
		for i := range ids {
			ids[i] = watchword.SubjectID(string(ids[i]) + watchword.NewID("-", t.now))
			t.enrolled(ids[i])
		}
		bases := []watchword.AuthorityVersions{t.versions(ids[0]), t.versions(ids[1])}
		errs := race(2, func(i int) error {
			_, err := t.Revoke(t.ctx, tenant, ids[1-i], t.now, t.entryBy(ids[i], bases[i], audit.DeviceRevoke, string(ids[1-i])))
			return err
		})
		if (errs[0] == nil) == (errs[1] == nil) || !errors.Is(errors.Join(errs...), watchword.ErrAuthorityChanged) {
			t.Fatalf("of two that revoke each other one does: %v, %v", errs[0], errs[1])
		}
	}
}

// versionReturned checks that each step that changes a subject returns the changed subject, with a version that has grown:
// by that version receivers know whether they have processed a later change.
func versionReturned(t *T) {
	last := t.enrolled("lamp-1")
	grown := func(what string, s watchword.Subject, err error) {
		t.must(err)
		equal(t, "versions after "+what, s.AuthorityVersion, t.versions("lamp-1").SubjectVersion)
		if s.AuthorityVersion <= last.AuthorityVersion {
			t.Fatalf("%s: version %d after %d", what, s.AuthorityVersion, last.AuthorityVersion)
		}
		last = s
	}
	equal(t, "versions after enrollment", last.AuthorityVersion, t.versions("lamp-1").SubjectVersion)
	s, err := t.SetLabels(t.ctx, tenant, "lamp-1", watchword.Labels{"a": "b"}, 0, t.now, t.entry(audit.DeviceLabel, "lamp-1"))
	grown("labels", s, err)
	s, err = t.SetProof(t.ctx, tenant, "lamp-1", watchword.RequireProof, t.now, t.entry(audit.DeviceProof, "lamp-1"))
	grown("proof", s, err)
	s, _, err = t.rekey(t.rekeying("lamp-1-sign", "sign-2", "seal-2", "jti"))
	grown("rekey", s, err)
	s, err = t.Suspend(t.ctx, tenant, "lamp-1", t.now, t.entry(audit.DeviceSuspend, "lamp-1"))
	grown("suspend", s, err)
	s, err = t.Resume(t.ctx, tenant, "lamp-1", t.now, t.entry(audit.DeviceResume, "lamp-1"))
	grown("resume", s, err)
	s, err = t.Revoke(t.ctx, tenant, "lamp-1", t.now, t.entry(audit.DeviceRevoke, "lamp-1"))
	grown("revoke", s, err)
	grown("another life", t.enroll("lamp-1", "again"), nil)
	_, err = t.Revoke(t.ctx, tenant, "lamp-1", t.now, t.entry(audit.DeviceRevoke, "lamp-1"))
	t.must(err)
	s, err = t.ApprovePairing(t.ctx, func() enroll.Approval {
		a := t.approval(t.askPairing("one", "BCDFGHJK"), "lamp-1")
		a.Create = false
		return a
	}(), t.now, t.entry(audit.DeviceEnroll, "lamp-1"))
	grown("pairing", s, err)
}
