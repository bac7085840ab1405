package storetest

import (
	"errors"
	"reflect"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/command"
	"github.com/watchword-iot/watchword/enroll"
	"github.com/watchword-iot/watchword/keyring"
	"github.com/watchword-iot/watchword/token"
)

// acts is every step that somebody's authority allows, done by the actor of e.
func (t *T) acts(e audit.Entry) map[string]error {
	sub := watchword.Subject{Tenant: here, ID: "new", Kind: watchword.Device, State: watchword.New, Created: t.now, Changed: t.now}
	out := map[string]error{
		"CreateSubject": t.CreateSubject(t.ctx, sub, nil, e),
		"DeleteSubject": t.DeleteSubject(t.ctx, here, "lamp-1", t.now, e),
		"AddCode":       t.AddCode(t.ctx, t.code("lamp-1", "x"), e),
		"TurnKeys":      t.TurnKeys(t.ctx, keyring.Turn{}, e),
		"RevokeToken":   t.RevokeToken(t.ctx, here, "tok", e),
		"SetFunctions":  t.SetFunctions(t.ctx, here, e.Basis, "lamp-1", nil, t.now),
		"ReportState":   t.ReportState(t.ctx, here, e.Basis, "lamp-1", []byte("{}"), t.now),
		"AddEntry":      t.AddEntry(t.ctx, e),
	}
	_, out["SetLabels"] = t.SetLabels(t.ctx, here, "lamp-1", nil, 0, t.now, e)
	_, out["SetProof"] = t.SetProof(t.ctx, here, "lamp-1", watchword.RequireProof, t.now, e)
	_, out["Suspend"] = t.Suspend(t.ctx, here, "lamp-1", t.now, e)
	_, out["Resume"] = t.Resume(t.ctx, here, "lamp-1", t.now, e)
	_, out["Revoke"] = t.Revoke(t.ctx, here, "lamp-1", t.now, e)
	_, _, out["Rekey"] = t.Rekey(t.ctx, enroll.Rekeying{Tenant: here, Subject: "lamp-1"}, t.now, e)
	_, out["ApprovePairing"] = t.ApprovePairing(t.ctx, enroll.Approval{Pairing: "x", Subject: sub}, t.now, e)
	_, out["RejectPairing"] = t.RejectPairing(t.ctx, here, "x", "boss", t.now, e)
	_, _, out["PutPolicy"] = t.PutPolicy(t.ctx, here, "p", []byte("x"), -1, t.now, e)
	_, out["DeletePolicy"] = t.DeletePolicy(t.ctx, here, "p", -1, t.now, e)
	_, _, out["AddCommand"] = t.AddCommand(t.ctx, t.row(900, "lamp-1"), command.Idempotency{}, unbounded, e)
	_, _, out["Settle"] = t.Settle(t.ctx, command.Settlement{Tenant: here, Device: "lamp-1", ID: "x"}, e)
	_, out["CancelCommand"] = t.CancelCommand(t.ctx, here, "x", t.now, e)
	_, out["SetConfig"] = t.SetConfig(t.ctx, here, "lamp-1", []byte("{}"), -1, t.now, e)
	return out
}

// withoutBasis is why a step that takes an entry compares nothing.
var withoutBasis = map[string]string{
	"Found":          "there is nobody yet",
	"RedeemCode":     "the code is what allows it, and the step checks the code",
	"IssueToken":     "the step checks the subject and its key itself",
	"HandOver":       "the server does it; the step checks the device itself",
	"Undeliver":      "the server does it, for what its device cannot take",
	"ExpireCommands": "the server does it, when their time has come",
}

// everyActIsKnown fails where a step takes an entry or a basis and is in no table.
func everyActIsKnown(t *T) {
	acts := t.acts(audit.Entry{Basis: watchword.Basis{Subject: "nobody"}})
	store := reflect.TypeFor[Store]()
	for m := range store.NumMethod() {
		name, in := store.Method(m).Name, store.Method(m).Type
		for i := range in.NumIn() {
			switch p := in.In(i); {
			case p == reflect.TypeFor[watchword.Basis](), p == reflect.TypeFor[audit.Actor](), isEntry(p):
				_, tried := acts[name]
				if _, excused := withoutBasis[name]; tried == excused {
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

// basis returns what the acts of a subject are decided on now.
func (t *T) basis(id watchword.SubjectID) watchword.Basis {
	t.Helper()
	s, err := t.Subject(t.ctx, here, id)
	t.must(err)
	v, err := t.PolicyVersion(t.ctx, here)
	t.must(err)
	return watchword.Basis{Subject: id, Version: s.Basis, Policies: v}
}

func (t *T) by(id watchword.SubjectID, b watchword.Basis, kind, object string) audit.Entry {
	e := t.entry(kind, object)
	e.Actor, e.Basis = id, b
	return e
}

// basisMoved goes over every change of authority and every act that was decided before it.
func basisMoved(t *T) {
	everyActIsKnown(t)
	t.add("lamp-1", watchword.Labels{"site": "a"})
	t.enroll("lamp-1", "lamp-1")
	t.enrolled("boss")
	admin := t.entry(audit.DeviceLabel, "x")
	issued := token.Record{Tenant: here, JTI: "tok_1", Subject: "boss", Incarnation: 1, Key: "boss-sign", Issued: t.now, Expires: t.now.Add(time.Minute)}
	t.must(t.IssueToken(t.ctx, issued, token.Spent{JTI: "a", Expires: t.now.Add(time.Minute)}, t.entry(audit.TokenIssue, "tok_1")))
	issuer := keyring.Sealed{ID: "issuer-1", Role: keyring.Issuer, State: keyring.Active, Private: []byte("x"), Created: t.now, Starts: t.now}
	t.must(t.TurnKeys(t.ctx, keyring.Turn{Add: []keyring.Sealed{issuer}}, admin))
	edits := []struct {
		name string
		do   func() error
	}{
		{"its labels", func() error {
			_, err := t.SetLabels(t.ctx, here, "boss", watchword.Labels{"a": "b"}, 0, t.now, admin)
			return err
		}},
		{"a proof is required of it", func() error {
			_, err := t.SetProof(t.ctx, here, "boss", watchword.RequireProof, t.now, admin)
			return err
		}},
		{"it is suspended", func() error { _, err := t.Suspend(t.ctx, here, "boss", t.now, admin); return err }},
		{"it is resumed", func() error { _, err := t.Resume(t.ctx, here, "boss", t.now, admin); return err }},
		{"it changes its keys", func() error {
			k := t.redemption("", "fresh")
			_, _, err := t.Rekey(t.ctx, enroll.Rekeying{
				Tenant: here, Subject: "boss", Incarnation: 1, From: "boss-sign", Sign: k.Sign, Seal: k.Seal, Spent: token.Spent{JTI: "r", Expires: t.now.Add(time.Minute)},
			}, t.now, admin)
			return err
		}},
		{"a token of it is revoked", func() error { return t.RevokeToken(t.ctx, here, "tok_1", admin) }},
		{"a policy is added", func() error {
			_, _, err := t.PutPolicy(t.ctx, here, "first", []byte("a"), -1, t.now, admin)
			return err
		}},
		{"a policy is changed", func() error {
			_, _, err := t.PutPolicy(t.ctx, here, "first", []byte("b"), -1, t.now, admin)
			return err
		}},
		{"a policy is deleted", func() error { _, err := t.DeletePolicy(t.ctx, here, "first", -1, t.now, admin); return err }},
		{"an issuer key is revoked", func() error {
			return t.TurnKeys(t.ctx, keyring.Turn{Move: []keyring.Move{{Role: keyring.Issuer, ID: "issuer-1", From: keyring.Active, To: keyring.Revoked, Ends: t.now}}}, admin)
		}},
		{"it is revoked", func() error { _, err := t.Revoke(t.ctx, here, "boss", t.now, admin); return err }},
		{"it is deleted", func() error { return t.DeleteSubject(t.ctx, here, "boss", t.now, admin) }},
	}
	for _, edit := range edits {
		before := t.basis("boss")
		t.must(edit.do())
		n := t.log()
		for act, err := range t.acts(t.by("boss", before, audit.ConfigSet, "x")) {
			if !errors.Is(err, watchword.ErrBasisMoved) {
				t.Errorf("%s, then %s: got %v, want ErrBasisMoved", edit.name, act, err)
			}
		}
		is(t, edit.name+": entries", t.log(), n)
	}
}

// basisStands commits what was decided on what stands, also where the act moves it.
func basisStands(t *T) {
	t.enrolled("lamp-1")
	t.enrolled("boss")
	t.enrolled("other")
	b := t.basis("boss")
	_, err := t.SetConfig(t.ctx, here, "lamp-1", []byte("{}"), -1, t.now, t.by("boss", b, audit.ConfigSet, "lamp-1"))
	t.must(err)
	_, err = t.SetLabels(t.ctx, here, "other", watchword.Labels{"a": "b"}, 0, t.now, t.by("boss", b, audit.DeviceLabel, "other"))
	t.must(err) // what another subject may do is nothing to it
	is(t, "basis", t.basis("boss"), b)

	// An act is decided on its target's labels too.
	onto := t.basis("lamp-1")
	b.Target, b.TargetVersion = "lamp-1", onto.Version
	_, _, err = t.AddCommand(t.ctx, t.row(1, "lamp-1"), command.Idempotency{}, unbounded, t.by("boss", b, audit.CommandOrder, "1"))
	t.must(err)
	_, err = t.SetLabels(t.ctx, here, "lamp-1", watchword.Labels{"a": "b"}, 0, t.now, t.by("boss", t.basis("boss"), audit.DeviceLabel, "lamp-1"))
	t.must(err)
	_, _, err = t.AddCommand(t.ctx, t.row(2, "lamp-1"), command.Idempotency{}, unbounded, t.by("boss", b, audit.CommandOrder, "2"))
	if !errors.Is(err, watchword.ErrBasisMoved) {
		t.Fatalf("the target's labels changed: got %v, want ErrBasisMoved", err)
	}

	// Another tenant's changes are nothing to this one.
	b = t.basis("boss")
	e := t.entry(audit.PolicyApply, "p")
	e.Tenant = other
	_, _, err = t.PutPolicy(t.ctx, other, "p", []byte("x"), -1, t.now, e)
	t.must(err)
	is(t, "basis after another tenant's policy", t.basis("boss"), b)

	// Who takes their own right away does so.
	_, err = t.Suspend(t.ctx, here, "boss", t.now, t.by("boss", b, audit.DeviceSuspend, "boss"))
	t.must(err)

	// An entry that says it was allowed, and that nothing compared, is a mistake of the program.
	t.wants(watchword.Internal, t.AddEntry(t.ctx, t.by("boss", watchword.Basis{}, audit.ConfigSet, "x")))
	for _, kind := range []string{audit.SessionOpen, audit.SessionClose, audit.TokenIssue, audit.DeviceEnroll} {
		t.must(t.AddEntry(t.ctx, t.by("boss", watchword.Basis{}, kind, "x")))
	}
}

// basisRace has two revoke each other at once: one of them does.
func basisRace(t *T) {
	for range 20 {
		ids := []watchword.SubjectID{"a", "b"}
		for i := range ids {
			ids[i] = watchword.SubjectID(string(ids[i]) + watchword.NewID("-", t.now))
			t.enrolled(ids[i])
		}
		bases := []watchword.Basis{t.basis(ids[0]), t.basis(ids[1])}
		errs := race(2, func(i int) error {
			_, err := t.Revoke(t.ctx, here, ids[1-i], t.now, t.by(ids[i], bases[i], audit.DeviceRevoke, string(ids[1-i])))
			return err
		})
		if (errs[0] == nil) == (errs[1] == nil) || !errors.Is(errors.Join(errs...), watchword.ErrBasisMoved) {
			t.Fatalf("of two that revoke each other one does: %v, %v", errs[0], errs[1])
		}
	}
}
