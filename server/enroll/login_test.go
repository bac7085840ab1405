package enroll_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/enroll"
	"github.com/watchword-iot/watchword/token"
)

// A pairing becomes a subject of its own kind; an active operator gets a further key, up to the bound.
func TestLoginDecisionRule(t *testing.T) {
	for _, c := range []struct {
		name string
		kind watchword.Kind
		from watchword.State
		keys int
		want watchword.Code
	}{
		{"a new operator is approved", watchword.Operator, watchword.New, 0, ""},
		{"a revoked operator is approved", watchword.Operator, watchword.Revoked, 1, ""},
		{"an active operator gets a further key", watchword.Operator, watchword.Active, 1, ""},
		{"an operator with one key less than the bound", watchword.Operator, watchword.Active, watchword.MaxSignKeys - 1, ""},
		{"an operator with as many keys as the bound", watchword.Operator, watchword.Active, watchword.MaxSignKeys, watchword.Conflict},
		{"a suspended operator", watchword.Operator, watchword.Suspended, 1, watchword.Conflict},
		{"a device", watchword.Device, watchword.New, 0, watchword.Conflict},
		{"a service", watchword.Service, watchword.New, 0, watchword.Conflict},
	} {
		p := asking()
		p.Kind, p.Seal = watchword.Operator, watchword.Key{}
		s := watchword.Subject{ID: "alice", Kind: c.kind, State: c.from, Version: 3, Incarnation: 1}
		for i := range c.keys {
			s.Keys = append(s.Keys, keyNamed(string(rune('a'+i)), watchword.Sign, noon))
		}
		after, out, err := p.Approve(enroll.Approval{AnswerUntil: noon.Add(time.Minute)}, "boss", s, noon)
		wantCode(t, c.name, err, c.want)
		if err == nil && (after.Subject != "alice" || len(out.Keys) != c.keys+1 || out.Keys[c.keys].ID != "k-sign" || out.State != watchword.Active || out.Version != 4) {
			t.Errorf("%s: %+v, %+v", c.name, after, out)
		}
	}
}

// pin is that of the root in [newSetup].
var pin = strings.Repeat("p", 43)

func (s *setup) loginProof(d device, codeHash string) string {
	s.t.Helper()
	proof, err := token.SignLogin(d.sign, issuer, codeHash, pin, s.now)
	must(s.t, err)
	return proof
}

func (s *setup) askLogin(d device) enroll.PairingResponse {
	s.t.Helper()
	a, err := s.RequestLogin(s.t.Context(), here, enroll.LoginRequest{Sign: d.sign.Public().JWK(), Proof: s.loginProof(d, token.LoginHashClaim())}, netip.MustParseAddr("192.0.2.7"), s.now)
	must(s.t, err)
	return a
}

func (s *setup) pollLogin(d device, code string) (watchword.Subject, error) {
	s.t.Helper()
	return s.PollLogin(s.t.Context(), here, code, s.loginProof(d, token.CodeHashClaim(code)), s.now)
}

// A proof of one kind is none of the other, and a login proof is for one root, one code and one key.
func TestLoginProofs(t *testing.T) {
	s, d, other := newSetup(t, enroll.Options{}), newDevice(t), newDevice(t)
	sign := func(raw string, err error) string {
		t.Helper()
		must(t, err)
		return raw
	}
	request := func(key device, proof string) error {
		_, err := s.RequestLogin(t.Context(), here, enroll.LoginRequest{Sign: key.sign.Public().JWK(), Proof: proof}, netip.MustParseAddr("192.0.2.7"), s.now)
		return err
	}
	for name, proof := range map[string]string{
		"the proof of a device's pairing":          sign(token.SignEnrollment(d.sign, issuer, token.PairingHashClaim(), d.seal.ID(), s.now)),
		"an enrollment proof for the login's word": sign(token.SignEnrollment(d.sign, issuer, token.LoginHashClaim(), "", s.now)),
		"another root":       sign(token.SignLogin(d.sign, issuer, token.LoginHashClaim(), pin[1:]+"x", s.now)),
		"no root":            sign(token.SignLogin(d.sign, issuer, token.LoginHashClaim(), "", s.now)),
		"the pairing's word": sign(token.SignLogin(d.sign, issuer, token.PairingHashClaim(), pin, s.now)),
		"another issuer":     sign(token.SignLogin(d.sign, issuer+"/t/x", token.LoginHashClaim(), pin, s.now)),
		"another key":        sign(token.SignLogin(other.sign, issuer, token.LoginHashClaim(), pin, s.now)),
		"an old one":         sign(token.SignLogin(d.sign, issuer, token.LoginHashClaim(), pin, s.now.Add(-time.Hour))),
		"nothing":            "",
	} {
		wantCode(t, name, request(d, proof), watchword.ProofInvalid)
	}
	second, err := token.SignLogin(d.sign, issuer, token.LoginHashClaim(), strings.Repeat("q", 43), s.now)
	must(t, err)
	wantCode(t, "the root that is being introduced", request(d, second), "")
	_, err = s.ask(d, "lamp-1", func(a *enroll.PairingRequest) { a.Proof = s.loginProof(d, token.LoginHashClaim()) })
	wantCode(t, "a login proof for a device's pairing", err, watchword.ProofInvalid)

	a := s.askLogin(d)
	if a.Kind != watchword.Operator || a.RequestedID != "" || !a.Expires.Equal(s.now.Add(10*time.Minute)) {
		t.Errorf("asked: %+v", a)
	}
	_, err = s.PollLogin(t.Context(), here, a.DeviceCode, s.loginProof(d, token.LoginHashClaim()), s.now)
	wantCode(t, "polling with the first proof", err, watchword.ProofInvalid)
	_, err = s.pollLogin(other, a.DeviceCode)
	wantCode(t, "polling by another key", err, watchword.ProofInvalid)
	_, err = s.pollLogin(d, watchword.NewNonce())
	wantCode(t, "polling with another code", err, watchword.PairingExpired)
	_, err = s.pollLogin(d, a.DeviceCode)
	wantCode(t, "polling", err, watchword.PairingPending)
	_, err = s.pollLogin(d, a.DeviceCode)
	wantCode(t, "polling at once again", err, watchword.PairingSlow)
	_, _, _, err = s.PollPairing(t.Context(), here, a.DeviceCode, string(d.sign.Public().ID()), s.loginProof(d, token.CodeHashClaim(a.DeviceCode)), s.now)
	wantCode(t, "polling as a device", err, watchword.PairingExpired)
}

func TestApproveLogin(t *testing.T) {
	s, d := newSetup(t, enroll.Options{}), newDevice(t)
	_, _, err := s.CreateDevice(t.Context(), by, "lamp-1", nil, "", 0, s.now)
	must(t, err)
	lamp := s.asked(newDevice(t), "lamp-2")
	s.wantChanged("so far", "lamp-1")
	a := s.askLogin(d)
	key := d.sign.Public().ID()
	for name, tc := range map[string]struct {
		edit  func(a *enroll.LoginApproval)
		fits  error
		code  watchword.Code
		field string
	}{
		"the code of a device's pairing": {edit: func(a *enroll.LoginApproval) { a.UserCode, a.Sign = lamp.UserCode, lamp.Sign.ID }, code: watchword.NotFound},
		"a code that there is not":       {edit: func(a *enroll.LoginApproval) { a.UserCode = "BBBB-BBBB" }, code: watchword.NotFound},
		"another thumbprint":             {edit: func(a *enroll.LoginApproval) { a.Sign = newDevice(t).sign.Public().ID() }, code: watchword.Conflict, field: "sign"},
		"half the thumbprint":            {edit: func(a *enroll.LoginApproval) { a.Sign = a.Sign[:20] }, code: watchword.Conflict, field: "sign"},
		"no thumbprint":                  {edit: func(a *enroll.LoginApproval) { a.Sign = "" }, code: watchword.Conflict, field: "sign"},
		"another pin":                    {edit: func(a *enroll.LoginApproval) { a.Pin = pin[1:] + "x" }, code: watchword.Conflict, field: "pin"},
		"no pin":                         {edit: func(a *enroll.LoginApproval) { a.Pin = "" }, code: watchword.Conflict, field: "pin"},
		"no role":                        {edit: func(a *enroll.LoginApproval) { a.Role = "" }, code: watchword.BadRequest, field: "role"},
		"a name of two lines":            {edit: func(a *enroll.LoginApproval) { a.KeyName = "lap\ntop" }, code: watchword.BadRequest, field: "key_name"},
		"no id":                          {edit: func(a *enroll.LoginApproval) { a.ID = "" }, code: watchword.BadRequest, field: "id"},
		"the id of a device":             {edit: func(a *enroll.LoginApproval) { a.ID = "lamp-1" }, code: watchword.Conflict},
		"more than the approver has":     {fits: watchword.Refuse(watchword.ExceedsOwn, "owner"), code: watchword.ExceedsOwn},
	} {
		in := enroll.LoginApproval{UserCode: a.UserCode, Sign: key, Pin: pin, ID: "bob", Role: "viewer"}
		if tc.edit != nil {
			tc.edit(&in)
		}
		s.fits = tc.fits
		_, err := s.ApproveLogin(t.Context(), by, in, s.now)
		s.fits = nil
		if tc.field != "" {
			wantField(t, name, err, tc.code, tc.field)
		} else {
			wantCode(t, name, err, tc.code)
		}
	}
	_, err = s.ApprovePairing(t.Context(), by, enroll.PairingApproval{UserCode: a.UserCode, Sign: key, ID: "lamp-9"}, s.now)
	wantCode(t, "approved as a device", err, watchword.NotFound)
	_, err = s.RejectPairing(t.Context(), by, watchword.Device, a.UserCode, s.now)
	wantCode(t, "rejected as a device", err, watchword.NotFound)
	s.wantChanged("refused")

	sub, err := s.ApproveLogin(t.Context(), by, enroll.LoginApproval{UserCode: a.UserCode, Sign: key, Pin: pin, ID: "bob", Role: "viewer", KeyName: "laptop"}, s.now)
	must(t, err)
	if sub.ID != "bob" || sub.Kind != watchword.Operator || sub.Role != "viewer" || sub.State != watchword.Active || sub.Keys[0].Name != "laptop" {
		t.Errorf("approved: %+v", sub)
	}
	s.wantChanged("approved", "bob")
	if e := s.entry("operator.create"); e.Object != "bob" || e.Actor != "alice" || e.Data["role"] != "viewer" || e.Data["pairing"] != a.ID {
		t.Errorf("entry %+v", e)
	}
	if e := s.entry("operator.enroll"); e.Object != "bob" || e.Actor != "alice" || e.Data["sign"] != string(key) || e.Data["user_code"] != enroll.FormatUserCode(a.UserCode) || e.Data["before"] != "new" || e.Data["after"] != "active" {
		t.Errorf("entry %+v", e)
	}
	_, err = s.ApproveLogin(t.Context(), by, enroll.LoginApproval{UserCode: a.UserCode, Sign: key, Pin: pin, ID: "eve", Role: "viewer"}, s.now)
	wantCode(t, "a second approval", err, watchword.Conflict)
	for range 2 { // the client may ask again
		got, err := s.pollLogin(d, a.DeviceCode)
		if err != nil || got.ID != "bob" {
			t.Errorf("polled: %+v, %v", got, err)
		}
	}

	// A further key of an operator who exists: the role is not said again.
	desktop := newDevice(t)
	a = s.askLogin(desktop)
	in := enroll.LoginApproval{UserCode: a.UserCode, Sign: desktop.sign.Public().ID(), Pin: pin, ID: "bob", Role: "owner"}
	_, err = s.ApproveLogin(t.Context(), by, in, s.now)
	wantField(t, "another role for one that exists", err, watchword.BadRequest, "role")
	in.Role = ""
	sub, err = s.ApproveLogin(t.Context(), by, in, s.now)
	must(t, err)
	if _, first := sub.SignKey(key, s.now); !first || len(sub.Keys) != 2 || sub.Role != "viewer" {
		t.Errorf("a further key: %+v", sub)
	}
	if n := len(s.entries("operator.create")); n != 1 {
		t.Errorf("%d operators were added, want 1", n)
	}
	s.now = s.now.Add(5 * time.Minute)
	_, err = s.pollLogin(desktop, a.DeviceCode)
	wantCode(t, "minutes later", err, watchword.PairingExpired)

	// One that is rejected, and one that is not decided on.
	tablet := newDevice(t)
	a = s.askLogin(tablet)
	_, err = s.RejectPairing(t.Context(), by, watchword.Operator, a.UserCode, s.now)
	must(t, err)
	if e := s.entry(audit.LoginReject); e.Object != a.ID || e.Data["sign"] != string(tablet.sign.Public().ID()) {
		t.Errorf("entry %+v", e)
	}
	_, err = s.pollLogin(tablet, a.DeviceCode)
	wantCode(t, "rejected", err, watchword.PairingRejected)
	late := s.askLogin(newDevice(t))
	s.now = late.Expires
	_, err = s.ApproveLogin(t.Context(), by, enroll.LoginApproval{UserCode: late.UserCode, Sign: late.Sign.ID, Pin: pin, ID: "carl", Role: "viewer"}, s.now)
	wantCode(t, "at its end", err, watchword.NotFound)
}
