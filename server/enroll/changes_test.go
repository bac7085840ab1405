package enroll_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/enroll"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func keyNamed(name string, p watchword.Purpose, added time.Time) watchword.Key {
	return watchword.Key{ID: watchword.KeyID(name + "-" + string(p)), Purpose: p, State: watchword.KeyActive, Added: added}
}

// holder is lamp-1 in a state, with the active keys NAME-sign and NAME-seal of each name.
func holder(st watchword.State, names ...string) watchword.Subject {
	s := watchword.Subject{ID: "lamp-1", Kind: watchword.Device, State: st, Incarnation: 2, Version: 4}
	for _, n := range names {
		s.Keys = append(s.Keys, keyNamed(n, watchword.Sign, noon), keyNamed(n, watchword.Seal, noon))
	}
	return s
}

func TestEnrollmentCodeRedemption(t *testing.T) {
	fresh := enroll.Code{Subject: "lamp-1", Expires: noon.Add(time.Millisecond)}
	used := fresh
	used.Sign, used.Seal = "k-sign", "k-seal"
	ended := fresh
	ended.Expires = noon
	usedAndEnded := used
	usedAndEnded.Expires = noon
	otherSeal := used
	otherSeal.Seal = "other-seal"
	for _, c := range []struct {
		name   string
		code   enroll.Code
		s      watchword.Subject
		replay bool
		want   watchword.Code
	}{
		{"a new subject comes in", fresh, holder(watchword.New), false, ""},
		{"a revoked one comes in", fresh, holder(watchword.Revoked), false, ""},
		{"a suspended one does not", fresh, holder(watchword.Suspended), false, watchword.CodeInvalid},
		{"an active one does not", fresh, holder(watchword.Active, "k"), false, watchword.CodeInvalid},
		{"at its end the code is over", ended, holder(watchword.New), false, watchword.CodeInvalid},
		{"the same keys again are answered alike", used, holder(watchword.Active, "k"), true, ""},
		{"but not after the code's end", usedAndEnded, holder(watchword.Active, "k"), false, watchword.CodeInvalid},
		{"nor where the code was used with another sealing key", otherSeal, holder(watchword.Active, "k"), false, watchword.CodeInvalid},
		{"nor where the subject has another sealing key by now", used, holder(watchword.Active, "k", "l"), false, watchword.CodeInvalid},
		{"nor where it has another signing key", used, holder(watchword.Active, "l"), false, watchword.CodeInvalid},
		{"nor while it is suspended", used, holder(watchword.Suspended, "k"), false, watchword.CodeInvalid},
		{"nor after it was revoked", used, holder(watchword.Revoked), false, watchword.CodeInvalid},
	} {
		r := enroll.Redemption{Sign: keyNamed("k", watchword.Sign, noon), Seal: keyNamed("k", watchword.Seal, noon)}
		s, replay, err := r.Redeem(c.code, c.s, noon)
		wantCode(t, c.name, err, c.want)
		if replay != c.replay {
			t.Errorf("%s: replay %v", c.name, replay)
		}
		if err == nil && (s.State != watchword.Active || replay != reflect.DeepEqual(s, c.s) || len(s.Keys) != 2) {
			t.Errorf("%s: %+v", c.name, s)
		}
	}
}

func TestRekeyRule(t *testing.T) {
	many := func(n int, oldest time.Time) watchword.Subject {
		s := holder(watchword.Active)
		for i := range n - 2 {
			k := keyNamed(fmt.Sprint(i), watchword.Sign, oldest)
			k.State = watchword.KeyRetired
			s.Keys = append(s.Keys, k)
		}
		s.Keys = append(s.Keys, keyNamed("old", watchword.Sign, oldest), keyNamed("old", watchword.Seal, oldest))
		return s
	}
	retired := holder(watchword.Active, "old")
	retired.Keys[0].State = watchword.KeyRetired
	later := holder(watchword.Active, "old")
	later.Incarnation++
	for _, c := range []struct {
		name   string
		s      watchword.Subject
		replay bool
		want   watchword.Code
	}{
		{"the keys of an active subject are replaced", holder(watchword.Active, "old"), false, ""},
		{"the keys that are asked for are there already", holder(watchword.Active, "new"), true, ""},
		{"a suspended subject keeps its keys", holder(watchword.Suspended, "old"), false, watchword.SubjectSuspended},
		{"a revoked one too", holder(watchword.Revoked, "old"), false, watchword.SubjectRevoked},
		{"a key that is retired replaces none", retired, false, watchword.ClientInvalid},
		{"nor does one of an earlier life", later, false, watchword.ClientInvalid},
		{"one key less than a day may bring", many(watchword.MaxNewKeys-1, noon), false, ""},
		{"as many keys as a day may bring", many(watchword.MaxNewKeys, noon.Add(time.Millisecond-watchword.NewKeysWindow)), false, watchword.RateLimited},
		{"as many keys, a day ago", many(watchword.MaxNewKeys, noon.Add(-watchword.NewKeysWindow)), false, ""},
	} {
		r := enroll.KeyChange{
			Subject: "lamp-1", Incarnation: 2, From: "old-sign", Sign: keyNamed("new", watchword.Sign, noon), Seal: keyNamed("new", watchword.Seal, noon),
		}
		s, replay, err := r.Apply(c.s, noon)
		wantCode(t, c.name, err, c.want)
		if e, ok := errors.AsType[*watchword.Error](err); ok && e.Code == watchword.RateLimited && e.RetryAfter != time.Millisecond {
			t.Errorf("%s: again after %s", c.name, e.RetryAfter)
		}
		if replay != c.replay || replay && !reflect.DeepEqual(s, c.s) {
			t.Errorf("%s: replay %v", c.name, replay)
		}
		_, signs := s.SignKey("new-sign", noon)
		if seal, _ := s.SealKey(noon); err == nil && (!signs || seal.ID != "new-seal") {
			t.Errorf("%s: %+v", c.name, s.Keys)
		}
	}
}

func asking() enroll.Pairing {
	return enroll.Pairing{
		Kind: watchword.Device, ID: "pair_2", Sign: keyNamed("k", watchword.Sign, noon), Seal: keyNamed("k", watchword.Seal, noon), State: enroll.PairingPending, Expires: noon.Add(time.Minute),
	}
}

func TestPairingRequestRule(t *testing.T) {
	approved := func(with func(*enroll.PairingRequester)) enroll.PairingRequester {
		last := asking()
		last.ID, last.State, last.Subject, last.By, last.Decided, last.Expires = "pair_1", enroll.PairingApproved, "lamp-1", "alice", noon.Add(-time.Hour), noon.Add(time.Hour)
		a := enroll.PairingRequester{KeysUsed: true, LastPairing: last, Subject: holder(watchword.Active, "k"), Pending: enroll.PendingPairings{All: enroll.MaxPairings, SameNetwork: enroll.MaxPairingsPerNetwork}}
		if with != nil {
			with(&a)
		}
		return a
	}
	full := enroll.PendingPairings{All: enroll.MaxPairings, FirstExpiry: noon.Add(time.Second), SameNetwork: enroll.MaxPairingsPerNetwork - 1, FirstExpirySameNetwork: noon.Add(2 * time.Second)}
	near := enroll.PendingPairings{All: enroll.MaxPairings, FirstExpiry: noon.Add(time.Second), SameNetwork: enroll.MaxPairingsPerNetwork, FirstExpirySameNetwork: noon.Add(2 * time.Second)}
	for _, c := range []struct {
		name  string
		a     enroll.PairingRequester
		state enroll.PairingState
		want  watchword.Code
		after time.Duration
	}{
		{"new keys wait", enroll.PairingRequester{}, enroll.PairingPending, "", 0},
		{"there is one place left", enroll.PairingRequester{Pending: enroll.PendingPairings{All: enroll.MaxPairings - 1, SameNetwork: enroll.MaxPairingsPerNetwork - 1}}, enroll.PairingPending, "", 0},
		{"too many wait", enroll.PairingRequester{Pending: full}, "", watchword.Busy, time.Second},
		{"too many wait from the network", enroll.PairingRequester{Pending: near}, "", watchword.RateLimited, 2 * time.Second},
		{"keys that were approved stay approved, however many wait", approved(nil), enroll.PairingApproved, "", 0},
		{"keys of another subject are refused", enroll.PairingRequester{KeysUsed: true}, "", watchword.Conflict, 0},
		{"another sealing key was not approved", approved(func(a *enroll.PairingRequester) { a.LastPairing.Seal.ID = "other" }), "", watchword.Conflict, 0},
		{"the approval is over", approved(func(a *enroll.PairingRequester) { a.LastPairing.Expires = noon }), "", watchword.Conflict, 0},
		{"the device was revoked", approved(func(a *enroll.PairingRequester) { a.Subject, _ = a.Subject.Revoke(noon) }), "", watchword.Conflict, 0},
		{"the device was deleted", approved(func(a *enroll.PairingRequester) { a.Subject = watchword.Subject{} }), "", watchword.Conflict, 0},
		{"the approval was for an operator", approved(func(a *enroll.PairingRequester) { a.LastPairing.Kind = watchword.Operator }), "", watchword.Conflict, 0},
		{"used keys were turned down", approved(func(a *enroll.PairingRequester) { a.LastPairing.State = enroll.PairingRejected }), "", watchword.Conflict, 0},
	} {
		p, err := asking().Request(c.a, noon)
		wantCode(t, c.name, err, c.want)
		if e, ok := errors.AsType[*watchword.Error](err); ok && e.RetryAfter != c.after {
			t.Errorf("%s: again after %s", c.name, e.RetryAfter)
		}
		want := asking()
		if c.state == enroll.PairingApproved {
			l := c.a.LastPairing
			want.State, want.Subject, want.By, want.Decided, want.Expires = l.State, l.Subject, l.By, l.Decided, l.Expires
		}
		if err == nil && !reflect.DeepEqual(p, want) {
			t.Errorf("%s: %+v", c.name, p)
		}
	}
}

func TestPairingDecisionRule(t *testing.T) {
	for _, c := range []struct {
		name  string
		state enroll.PairingState
		kind  watchword.Kind
		from  watchword.State
		want  watchword.Code
	}{
		{"a new device is approved", enroll.PairingPending, watchword.Device, watchword.New, ""},
		{"a revoked device is approved", enroll.PairingPending, watchword.Device, watchword.Revoked, ""},
		{"an active device has keys", enroll.PairingPending, watchword.Device, watchword.Active, watchword.Conflict},
		{"a suspended device has keys", enroll.PairingPending, watchword.Device, watchword.Suspended, watchword.Conflict},
		{"an operator is no device", enroll.PairingPending, watchword.Operator, watchword.New, watchword.Conflict},
		{"what is approved is decided", enroll.PairingApproved, watchword.Device, watchword.New, watchword.Conflict},
		{"what is rejected is decided", enroll.PairingRejected, watchword.Device, watchword.New, watchword.Conflict},
	} {
		p, s := asking(), holder(c.from)
		p.State, s.Kind = c.state, c.kind
		p.Sign.Added, p.Seal.Added = time.Time{}, time.Time{}
		until := noon.Add(time.Hour)
		after, device, err := p.Approve(enroll.Approval{AnswerUntil: until}, "alice", s, noon)
		wantCode(t, c.name, err, c.want)
		if err == nil && (after.State != enroll.PairingApproved || after.Subject != "lamp-1" || after.By != "alice" || !after.Decided.Equal(noon) || !after.Expires.Equal(until) ||
			device.State != watchword.Active || !device.Keys[0].Added.Equal(noon) || !device.Keys[1].Added.Equal(noon)) {
			t.Errorf("%s: %+v, %+v", c.name, after, device)
		}
		after, err = p.Reject("alice", noon)
		if c.state != enroll.PairingPending {
			wantCode(t, "rejected: "+c.name, err, watchword.Conflict)
		} else if err != nil || after.State != enroll.PairingRejected || after.By != "alice" || !after.Decided.Equal(noon) || !after.Expires.Equal(p.Expires) {
			t.Errorf("rejected: %+v, %v", after, err)
		}
	}
}

// taken is a store in which the first user codes are taken.
type taken struct {
	enroll.Store
	n     int
	asked map[string]bool
}

func (s *taken) AddPairing(ctx context.Context, p enroll.Pairing, now time.Time) (enroll.Pairing, error) {
	s.asked[p.UserCode] = true
	if len(s.asked) <= s.n {
		return enroll.Pairing{}, enroll.ErrUserCodeTaken
	}
	return s.Store.AddPairing(ctx, p, now)
}

func TestTakenUserCodeIsSkipped(t *testing.T) {
	s := newSetup(t, enroll.Options{})
	st := &taken{Store: s.store, n: 2, asked: map[string]bool{}}
	s.Service = enroll.New(st, enroll.Options{Issuers: watchword.FixedIssuer(issuer)})
	a := s.asked(newDevice(t), "lamp-1")
	if len(st.asked) != 3 || !st.asked[a.UserCode] {
		t.Errorf("asked for %v, got %s", st.asked, a.UserCode)
	}
	if p, err := s.store.PairingByUserCode(t.Context(), here, watchword.Device, a.UserCode, s.now); err != nil || p.ID != a.ID {
		t.Errorf("under the code is %+v, %v", p, err)
	}
}
