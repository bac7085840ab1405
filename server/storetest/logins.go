package storetest

import (
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/enroll"
)

// login is a pairing of an operator that was just requested, with the key NAME-sign.
func (t *T) login(name string) enroll.Pairing {
	p := t.pairing(name)
	p.Kind, p.RequestedID, p.Seal = watchword.Operator, "", watchword.Key{}
	p.Hash = sha256.Sum256([]byte("login code of " + name))
	return p
}

func (t *T) askLogin(name, code string) enroll.Pairing {
	t.Helper()
	p, err := t.under(code, t.login(name), t.now)
	t.must(err)
	return p
}

// loginApproval adds the operator id with a role.
func (t *T) loginApproval(p enroll.Pairing, id watchword.SubjectID, role string) enroll.Approval {
	a := t.approval(p, id)
	a.AnswerUntil = t.now.Add(5 * time.Minute)
	a.Subject.Kind, a.Subject.Role, a.Subject.Labels = watchword.Operator, role, nil
	return a
}

func (t *T) loggedIn(id watchword.SubjectID) []audit.Entry {
	return []audit.Entry{
		t.entry(audit.KindFor(watchword.Operator, audit.DeviceCreate), string(id)), t.entry(audit.KindFor(watchword.Operator, audit.DeviceEnroll), string(id)),
	}
}

func loginLife(t *T) {
	asked := t.askLogin("laptop", "BBBBBBBB")
	device := t.askPairing("lamp-1", "CCCCCCCC")
	p, err := t.Store.PairingByDeviceCode(t.ctx, tenant, watchword.Operator, asked.Hash, t.now)
	t.must(err)
	equal(t, "login", fmt.Sprint(p.Kind, p.State, p.Sign.ID, p.Seal.ID, len(p.Seal.JWK), p.RequestedID), fmt.Sprint("operator", "pending", "laptop-sign", "", 0, ""))

	// The operations of one kind do not find the other.
	_, err = t.Store.PairingByDeviceCode(t.ctx, tenant, watchword.Device, asked.Hash, t.now)
	t.wantCode(watchword.NotFound, err)
	_, err = t.Store.PairingByUserCode(t.ctx, tenant, watchword.Device, "BBBBBBBB", t.now)
	t.wantCode(watchword.NotFound, err)
	_, err = t.Store.PairingByUserCode(t.ctx, tenant, watchword.Operator, "CCCCCCCC", t.now)
	t.wantCode(watchword.NotFound, err)
	for kind, want := range map[watchword.Kind]string{watchword.Operator: asked.ID, watchword.Device: device.ID} {
		ps, err := t.Store.Pairings(t.ctx, tenant, kind, "", 10, t.now)
		t.must(err)
		if len(ps) != 1 || ps[0].ID != want {
			t.Errorf("pairings of the kind %s: %+v", kind, ps)
		}
	}

	// What is approved has the kind of its pairing.
	_, err = t.ApprovePairing(t.ctx, t.approval(asked, "lamp-2"), t.now, t.approved("lamp-2")...)
	t.wantCode(watchword.Conflict, err)
	_, err = t.ApprovePairing(t.ctx, t.loginApproval(device, "alice", "viewer"), t.now, t.loggedIn("alice")...)
	t.wantCode(watchword.Conflict, err)
	equal(t, "entries", t.log(), 0)

	s, err := t.ApprovePairing(t.ctx, t.loginApproval(asked, "alice", "viewer"), t.now, t.loggedIn("alice")...)
	t.must(err)
	equal(t, "operator", fmt.Sprint(s.ID, s.Kind, s.Role, s.State, len(s.Keys), s.Keys[0].ID), fmt.Sprint("alice", "operator", "viewer", "active", 1, "laptop-sign"))
	_, err = t.ApprovePairing(t.ctx, t.loginApproval(asked, "bob", "viewer"), t.now, t.loggedIn("bob")...)
	t.wantCode(watchword.Conflict, err)
	p, err = t.Store.PairingByDeviceCode(t.ctx, tenant, watchword.Operator, asked.Hash, t.now.Add(5*time.Minute-time.Millisecond))
	t.must(err)
	equal(t, "became", p.Subject, "alice")
	_, err = t.Store.PairingByDeviceCode(t.ctx, tenant, watchword.Operator, asked.Hash, t.now.Add(5*time.Minute))
	t.wantCode(watchword.NotFound, err)

	// The key that was approved as an operator's is not one for a device.
	crossed := t.pairing("crossed")
	crossed.Sign = asked.Sign
	_, err = t.under("DDDDDDDD", crossed, t.now)
	t.wantCode(watchword.Conflict, err)

	// Nor the reverse.
	_, err = t.ApprovePairing(t.ctx, t.approval(device, "lamp-1"), t.now, t.approved("lamp-1")...)
	t.must(err)
	crossed = t.login("crossed")
	crossed.Sign = device.Sign
	_, err = t.under("DDDDDDDD", crossed, t.now)
	t.wantCode(watchword.Conflict, err)
}

func loginExisting(t *T) {
	existing := func(name, code string, s watchword.Subject) (watchword.Subject, error) {
		a := t.loginApproval(t.askLogin(name, code), s.ID, "")
		a.Create, a.Subject = false, s
		return t.ApprovePairing(t.ctx, a, t.now, t.entry(audit.KindFor(watchword.Operator, audit.DeviceEnroll), string(s.ID)))
	}
	s, err := t.ApprovePairing(t.ctx, t.loginApproval(t.askLogin("laptop", "BBBBBBBB"), "alice", "viewer"), t.now, t.loggedIn("alice")...)
	t.must(err)

	// A further key is beside the first, and moves the authority version. A link for another machine stays.
	before := s.AuthorityVersion
	t.must(t.AddCode(t.ctx, t.code("alice", "phone"), t.entry(audit.KindFor(watchword.Operator, audit.DeviceLink), "alice")))
	s, err = existing("desktop", "CCCCCCCC", s)
	t.must(err)
	_, first := s.SignKey("laptop-sign", t.now)
	_, second := s.SignKey("desktop-sign", t.now)
	equal(t, "both keys count", first && second, true)
	equal(t, "role", s.Role, "viewer")
	equal(t, "incarnation", s.Incarnation, 1)
	equal(t, "authority version", s.AuthorityVersion > before, true)

	r := t.redemption("phone", "phone")
	r.Seal = watchword.Key{}
	_, _, err = t.RedeemCode(t.ctx, r, t.now, t.entry(audit.KindFor(watchword.Operator, audit.DeviceEnroll), "alice"))
	t.must(err)

	// A suspended operator gets none; a revoked one comes back with this key alone.
	s, err = t.Suspend(t.ctx, tenant, "alice", t.now, t.entry(audit.DeviceSuspend, "alice"))
	t.must(err)
	_, err = existing("tablet", "DDDDDDDD", s)
	t.wantCode(watchword.Conflict, err)
	s, err = t.Revoke(t.ctx, tenant, "alice", t.now, t.entry(audit.DeviceRevoke, "alice"))
	t.must(err)
	s, err = existing("tablet", "DDDDDDDD", s)
	t.must(err)
	_, first = s.SignKey("laptop-sign", t.now)
	_, third := s.SignKey("tablet-sign", t.now)
	equal(t, "the new key alone counts", third && !first, true)
	equal(t, "incarnation", s.Incarnation, 2)
}

// A flood of logins leaves room for the pairings of devices; [pairingBounds] holds the reverse.
func loginBounds(t *T) {
	n := 0
	ask := func(p enroll.Pairing, network string) error {
		p.Network = network
		n++
		_, err := t.under(fmt.Sprintf("%08d", n), p, t.now)
		return err
	}
	for i := range enroll.MaxLoginsPerNetwork {
		t.must(ask(t.login(fmt.Sprint("near-", i)), "here"))
	}
	t.wantCode(watchword.RateLimited, ask(t.login("one-more"), "here"))
	t.must(ask(t.pairing("lamp"), "here"))
	for i := range enroll.MaxLogins - enroll.MaxLoginsPerNetwork {
		t.must(ask(t.login(fmt.Sprint("far-", i)), fmt.Sprint("there-", i/enroll.MaxLoginsPerNetwork)))
	}
	t.wantCode(watchword.Busy, ask(t.login("one-more"), "elsewhere"))
	t.must(ask(t.pairing("another-lamp"), "elsewhere"))
}
