package storetest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/enroll"
)

// Pairings is the part of a store that keeps devices which wait for an operator's
// word (RFC 8628). One whose end has passed is not_found, as if it had never been.
type Pairings interface {
	// AddPairing stores p, which is pending, instead of any other pairing of p.Sign. If another pairing of the tenant has
	// p.UserCode: enroll.ErrUserCodeTaken, and the earlier pairing stays. A key that the tenant knows already: conflict,
	// unless there is an approved pairing of the same two keys, and its subject still has them: then p gets that one's
	// state, subject and end. Over MaxPairingsNearby that wait from p.Network: rate_limited; over MaxPairings: busy; both
	// with RetryAfter.
	AddPairing(ctx context.Context, p enroll.Pairing, now time.Time) (enroll.Pairing, error)
	// PairingByDeviceCode and PairingByUserCode return one of kind k by the hash of its device code, or by its user code; not_found.
	PairingByDeviceCode(ctx context.Context, t watchword.TenantID, k watchword.Kind, device [32]byte, now time.Time) (enroll.Pairing, error)
	PairingByUserCode(ctx context.Context, t watchword.TenantID, k watchword.Kind, userCode string, now time.Time) (enroll.Pairing, error)
	// Pairings lists those of kind k newest first, with ids below `before` (empty: from the newest).
	Pairings(ctx context.Context, t watchword.TenantID, k watchword.Kind, before string, limit int, now time.Time) ([]enroll.Pairing, error)
	// ApprovePairing adds the subject of a (a.Add), or takes the one that is there, and makes it active with the pairing's
	// keys; its codes go, and Incarnation grows if it was revoked. Decided already, an id that is taken, a subject that is no device or
	// neither new nor revoked, a key that was used before: conflict. The pairing lasts until a.Until then.
	ApprovePairing(ctx context.Context, by audit.Actor, a enroll.Approval, now time.Time, entries func(before, after watchword.Subject) []audit.Entry) (watchword.Subject, error)
	// RejectPairing turns a pending one down; decided already: conflict.
	RejectPairing(ctx context.Context, by audit.Actor, id string, now time.Time, entry audit.EntryOf[enroll.Pairing]) (enroll.Pairing, error)
}

// pairing is one that was just asked for, with the keys NAME-sign and NAME-seal.
func (t *T) pairing(name string) enroll.Pairing {
	r := t.redemption(name, name)
	return enroll.Pairing{
		Tenant: tenant, Kind: watchword.Device, ID: watchword.NewID("pair_", t.now), Hash: sha256.Sum256([]byte("device code of " + name)), RequestedID: watchword.SubjectID(name),
		Sign: r.Sign, Seal: r.Seal, Remote: "192.0.2.1", Network: "192.0.2.1/32", State: enroll.PairingPending, Created: t.now, Expires: t.now.Add(10 * time.Minute),
	}
}

// under stores p under a user code.
func (t *T) under(code string, p enroll.Pairing, now time.Time) (enroll.Pairing, error) {
	p.UserCode = code
	return t.AddPairing(t.ctx, p, now)
}

func (t *T) askPairing(name, code string) enroll.Pairing {
	t.Helper()
	p, err := t.under(code, t.pairing(name), t.now)
	t.must(err)
	return p
}

func (t *T) approval(p enroll.Pairing, id watchword.SubjectID) enroll.Approval {
	return enroll.Approval{
		Pairing: p.ID, Create: true, AnswerUntil: t.now.Add(24 * time.Hour),
		Subject: watchword.Subject{Tenant: tenant, ID: id, Kind: watchword.Device, State: watchword.New, Labels: watchword.Labels{"site": "a"}, Version: 1, Incarnation: 1, Created: t.now, Changed: t.now},
	}
}

func (t *T) approved(id watchword.SubjectID) []audit.Entry {
	return []audit.Entry{t.entry(audit.DeviceCreate, string(id)), t.entry(audit.DeviceEnroll, string(id))}
}

func pairingLife(t *T) {
	asked := t.askPairing("lamp-1", "BBBBBBBB")
	p, err := t.PairingByDeviceCode(t.ctx, tenant, asked.Hash, t.now)
	t.must(err)
	equal(t, "state", p.State, enroll.PairingPending)
	equal(t, "wish", p.RequestedID, "lamp-1")
	equal(t, "user code", p.UserCode, "BBBBBBBB")
	equal(t, "keys", fmt.Sprint(p.Sign.ID, string(p.Sign.JWK), p.Seal.ID, string(p.Seal.JWK)), `lamp-1-sign{"kty":"test"}lamp-1-seal{"kty":"test"}`)
	equal(t, "from", p.Remote+" "+p.Network, "192.0.2.1 192.0.2.1/32")
	equal(t, "over", p.Expires, t.now.Add(10*time.Minute))
	_, err = t.PairingByDeviceCode(t.ctx, otherTenant, asked.Hash, t.now)
	t.wantCode(watchword.NotFound, err)
	_, err = t.PairingByUserCode(t.ctx, otherTenant, "BBBBBBBB", t.now)
	t.wantCode(watchword.NotFound, err)
	equal(t, "entries of an ask", t.log(), 0)

	s, err := t.ApprovePairing(t.ctx, t.approval(p, "lamp-9"), t.now, t.approved("lamp-9")...)
	t.must(err)
	equal(t, "device", s.ID, "lamp-9")
	equal(t, "its state", s.State, watchword.Active)
	equal(t, "its labels", s.Labels.String(), "site=a")
	_, signs := s.SignKey("lamp-1-sign", t.now)
	seal, seals := s.SealKey(t.now)
	equal(t, "signs and seals", signs && seals && seal.ID == "lamp-1-seal", true)
	equal(t, "entries", t.log(), 2)
	p, err = t.PairingByUserCode(t.ctx, tenant, "BBBBBBBB", t.now.Add(23*time.Hour))
	t.must(err)
	equal(t, "state", p.State, enroll.PairingApproved)
	equal(t, "became", p.Subject, "lamp-9")
	equal(t, "by", p.By, "operator")
	_, err = t.PairingByUserCode(t.ctx, tenant, "BBBBBBBB", t.now.Add(24*time.Hour))
	t.wantCode(watchword.NotFound, err)

	// Expired is expired, by a millisecond.
	late := t.askPairing("lamp-2", "CCCCCCCC")
	_, err = t.PairingByDeviceCode(t.ctx, tenant, late.Hash, late.Expires.Add(-time.Millisecond))
	t.must(err)
	for _, err := range []error{
		func() error { _, err := t.PairingByDeviceCode(t.ctx, tenant, late.Hash, late.Expires); return err }(),
		func() error {
			_, err := t.ApprovePairing(t.ctx, t.approval(late, "lamp-2"), late.Expires, t.approved("lamp-2")...)
			return err
		}(),
		func() error {
			_, err := t.RejectPairing(t.ctx, tenant, late.ID, "operator", late.Expires, t.entry(audit.PairingReject, late.ID))
			return err
		}(),
		func() error {
			_, err := t.RejectPairing(t.ctx, otherTenant, late.ID, "operator", t.now, t.entry(audit.PairingReject, late.ID))
			return err
		}(),
	} {
		t.wantCode(watchword.NotFound, err)
	}
	_, err = t.Subject(t.ctx, tenant, "lamp-2")
	t.wantCode(watchword.NotFound, err)
	n, err := t.DeleteExpired(t.ctx, t.now.Add(time.Hour), 100)
	t.must(err)
	equal(t, "pruned", n, 1)
}

func pairingAgain(t *T) {
	first := t.askPairing("lamp-1", "BBBBBBBB")
	t.askPairing("lamp-2", "CCCCCCCC")
	_, err := t.under("BBBBBBBB", t.pairing("lamp-2"), t.now)
	if !errors.Is(err, enroll.ErrUserCodeTaken) {
		t.Fatalf("a code that is taken: %v", err)
	}
	_, err = t.PairingByUserCode(t.ctx, tenant, "CCCCCCCC", t.now)
	t.must(err) // what was there before stays

	again := t.pairing("lamp-1")
	again.Hash = sha256.Sum256([]byte("another device code"))
	again, err = t.under("DDDDDDDD", again, t.now)
	t.must(err)
	equal(t, "state", again.State, enroll.PairingPending)
	_, err = t.PairingByDeviceCode(t.ctx, tenant, first.Hash, t.now)
	t.wantCode(watchword.NotFound, err)
	_, err = t.PairingByUserCode(t.ctx, tenant, "BBBBBBBB", t.now)
	t.wantCode(watchword.NotFound, err)
	_, err = t.ApprovePairing(t.ctx, t.approval(first, "lamp-1"), t.now, t.approved("lamp-1")...)
	t.wantCode(watchword.NotFound, err)

	// What was turned down may ask once more.
	_, err = t.RejectPairing(t.ctx, tenant, again.ID, "operator", t.now, t.entry(audit.PairingReject, again.ID))
	t.must(err)
	_, err = t.ApprovePairing(t.ctx, t.approval(again, "lamp-1"), t.now, t.approved("lamp-1")...)
	t.wantCode(watchword.Conflict, err)
	third := t.askPairing("lamp-1", "FFFFFFFF")
	equal(t, "state", third.State, enroll.PairingPending)

	// An operator's word is about keys, and outlives a device code that got lost.
	_, err = t.ApprovePairing(t.ctx, t.approval(third, "lamp-1"), t.now, t.approved("lamp-1")...)
	t.must(err)
	lost := t.pairing("lamp-1")
	lost.Hash = sha256.Sum256([]byte("a third device code"))
	lost, err = t.under("GGGGGGGG", lost, t.now)
	t.must(err)
	equal(t, "state", lost.State, enroll.PairingApproved)
	equal(t, "subject", lost.Subject, "lamp-1")
	lost, err = t.PairingByDeviceCode(t.ctx, tenant, lost.Hash, t.now.Add(23*time.Hour))
	t.must(err)
	equal(t, "state", lost.State, enroll.PairingApproved)

	// But not with another encryption key, not after its expiry, and not after the device was revoked.
	swapped := t.pairing("lamp-1")
	swapped.Seal.ID = "another-seal"
	_, err = t.under("JJJJJJJJ", swapped, t.now)
	t.wantCode(watchword.Conflict, err)
	_, err = t.under("JJJJJJJJ", t.pairing("lamp-1"), t.now.Add(25*time.Hour))
	t.wantCode(watchword.Conflict, err)
	_, err = t.Revoke(t.ctx, tenant, "lamp-1", t.now, t.entry(audit.DeviceRevoke, "lamp-1"))
	t.must(err)
	_, err = t.under("JJJJJJJJ", t.pairing("lamp-1"), t.now)
	t.wantCode(watchword.Conflict, err)

	// Another subject's key is refused.
	t.enrolled("lamp-3")
	attacker := t.pairing("lamp-4")
	attacker.Seal.ID = "lamp-3-seal"
	_, err = t.under("JJJJJJJJ", attacker, t.now)
	t.wantCode(watchword.Conflict, err)
}

func pairingBounds(t *T) {
	n := 0
	code := func() string { n++; return fmt.Sprintf("%08d", n) }
	from := func(name, network string) error {
		p := t.pairing(name)
		p.Network = network
		_, err := t.under(code(), p, t.now)
		return err
	}
	for i := range enroll.MaxPairingsPerNetwork {
		t.must(from(fmt.Sprint("near-", i), "here"))
	}
	err := from("one-more", "here")
	t.wantCode(watchword.RateLimited, err)
	equal(t, "retry after", err.(*watchword.Error).RetryAfter, 10*time.Minute)
	t.must(from("near-0", "here")) // in place of its own
	for i := range enroll.MaxPairings - enroll.MaxPairingsPerNetwork {
		t.must(from(fmt.Sprint("far-", i), fmt.Sprint("there-", i/enroll.MaxPairingsPerNetwork)))
	}
	err = from("one-more", "nowhere")
	t.wantCode(watchword.Busy, err)
	equal(t, "retry after", err.(*watchword.Error).RetryAfter, 10*time.Minute)
	operator := t.login("laptop")
	operator.Network = "here"
	_, err = t.under(code(), operator, t.now) // logins have bounds of their own
	t.must(err)
	t.now = t.now.Add(10 * time.Minute) // those have expired now, pruned or not
	t.must(from("one-more", "here"))
}

func pairingExisting(t *T) {
	existing := func(p enroll.Pairing, s watchword.Subject) error {
		a := t.approval(p, s.ID)
		a.Create, a.Subject = false, s
		_, err := t.ApprovePairing(t.ctx, a, t.now, t.entry(audit.DeviceEnroll, string(s.ID)))
		return err
	}
	fresh := t.add("lamp-1", watchword.Labels{"site": "b"})
	t.must(t.AddCode(t.ctx, t.code("lamp-1", "link"), t.entry(audit.DeviceLink, "lamp-1")))
	p := t.askPairing("keys-1", "BBBBBBBB")
	_, err := t.ApprovePairing(t.ctx, t.approval(p, "lamp-1"), t.now, t.approved("lamp-1")...)
	t.wantCode(watchword.Conflict, err) // added anew, an id that is taken is taken
	before := t.log()
	t.must(existing(p, fresh))
	equal(t, "entries", t.log(), before+1)
	s, err := t.Subject(t.ctx, tenant, "lamp-1")
	t.must(err)
	equal(t, "state", s.State, watchword.Active)
	equal(t, "labels", s.Labels.String(), "site=b")
	equal(t, "incarnation", s.Incarnation, 1)
	_, _, err = t.RedeemCode(t.ctx, t.redemption("link", "others"), t.now, t.entry(audit.DeviceEnroll, ""))
	t.wantCode(watchword.CodeInvalid, err)

	two := t.askPairing("keys-2", "CCCCCCCC")
	t.wantCode(watchword.Conflict, existing(two, s)) // active
	_, err = t.Suspend(t.ctx, tenant, "lamp-1", t.now, t.entry(audit.DeviceSuspend, "lamp-1"))
	t.must(err)
	t.wantCode(watchword.Conflict, existing(two, s))
	_, err = t.Revoke(t.ctx, tenant, "lamp-1", t.now, t.entry(audit.DeviceRevoke, "lamp-1"))
	t.must(err)
	t.must(existing(two, s))
	s, err = t.Subject(t.ctx, tenant, "lamp-1")
	t.must(err)
	equal(t, "incarnation", s.Incarnation, 2)
	_, old := s.SignKey("keys-1-sign", t.now)
	equal(t, "the old key counts", old, false)

	// An operator is no device, and a tombstone is no subject.
	op := watchword.Subject{Tenant: tenant, ID: "alice", Kind: watchword.Operator, State: watchword.New, Created: t.now, Changed: t.now}
	t.must(t.CreateSubject(t.ctx, op, nil, t.entry(audit.KindFor(watchword.Operator, audit.DeviceCreate), "alice")))
	three := t.askPairing("keys-3", "DDDDDDDD")
	t.wantCode(watchword.Conflict, existing(three, op))
	gone := t.add("gone", nil)
	t.must(t.DeleteSubject(t.ctx, tenant, "gone", t.now, t.entry(audit.DeviceDelete, "gone")))
	t.wantCode(watchword.NotFound, existing(three, gone))
	_, err = t.ApprovePairing(t.ctx, t.approval(three, "gone"), t.now, t.approved("gone")...)
	t.wantCode(watchword.Conflict, err)

	// Keys that came in by a link between ask and word: nothing is half done.
	t.add("lamp-5", nil)
	t.enroll("lamp-5", "keys-3")
	before = t.log()
	_, err = t.ApprovePairing(t.ctx, t.approval(three, "lamp-6"), t.now, t.approved("lamp-6")...)
	t.wantCode(watchword.Conflict, err)
	_, err = t.Subject(t.ctx, tenant, "lamp-6")
	t.wantCode(watchword.NotFound, err)
	equal(t, "entries", t.log(), before)
}

func pairingRace(t *T) {
	p := t.askPairing("lamp-1", "BBBBBBBB")
	const n = 8
	errs := race(n, func(i int) error {
		if i%2 == 0 {
			_, err := t.RejectPairing(t.ctx, tenant, p.ID, "operator", t.now, t.entry(audit.PairingReject, p.ID))
			return err
		}
		id := watchword.SubjectID(fmt.Sprint("lamp-", i))
		_, err := t.ApprovePairing(t.ctx, t.approval(p, id), t.now, t.approved(id)...)
		return err
	})
	got := count(errs)
	equal(t, "winners", got[""], 1)
	equal(t, "losers", got[watchword.Conflict], n-1)
	p, err := t.PairingByDeviceCode(t.ctx, tenant, p.Hash, t.now)
	t.must(err)
	all, err := t.Subjects(t.ctx, tenant, "", "", nil, "", 100)
	t.must(err)
	want := map[enroll.PairingState]int{enroll.PairingApproved: 1, enroll.PairingRejected: 0}[p.State]
	equal(t, "devices", len(all), want)
	equal(t, "entries", t.log(), want+1)
}

func pairingLists(t *T) {
	var ids []string
	for i := range 5 {
		t.now = t.now.Add(time.Minute)
		ids = append(ids, t.askPairing(fmt.Sprint("lamp-", i), fmt.Sprintf("%08d", i)).ID)
	}
	page, err := t.Store.Pairings(t.ctx, tenant, watchword.Device, "", 3, t.now)
	t.must(err)
	equal(t, "page", len(page), 3)
	equal(t, "newest", page[0].ID, ids[4])
	page, err = t.Store.Pairings(t.ctx, tenant, watchword.Device, page[2].ID, 3, t.now)
	t.must(err)
	equal(t, "next page", len(page), 2)
	equal(t, "oldest", page[1].ID, ids[0])
	page, err = t.Store.Pairings(t.ctx, tenant, watchword.Device, "", 10, t.now.Add(8*time.Minute))
	t.must(err)
	equal(t, "not over", len(page), 2)
	page, err = t.Store.Pairings(t.ctx, otherTenant, watchword.Device, "", 10, t.now)
	t.must(err)
	equal(t, "of another tenant", len(page), 0)
}
