package authn

import (
	"context"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/token"
)

// records is a token store that keeps the last record.
type records struct {
	TokenStore
	last token.Record
}

func (r *records) IssueToken(_ context.Context, rec token.Record, _ token.SingleUse, _ audit.Entry) error {
	r.last = rec
	return nil
}

func (r *records) ConsumeAssertion(context.Context, watchword.TenantID, watchword.SubjectID, token.SingleUse) error {
	return nil
}

// After the end of a key nothing that it signs is accepted, and what was issued to it before ends with it.
func TestKeyPastItsEndSignsNothing(t *testing.T) {
	_, s := newKey(t)
	now := time.Now()
	end := now.Truncate(time.Second).Add(5 * time.Minute)
	store := &records{}
	svc, err := New(issuer, keys{s}, fakeDirectory{watchword.Subject{
		ID: "alice", Kind: watchword.Operator, State: watchword.Active,
		Keys: []watchword.Key{{ID: s.Public().ID(), Purpose: watchword.Sign, State: watchword.KeyActive, JWK: s.Public().JWK(), Ends: end}},
	}}, store, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	assertion := func(at time.Time) string {
		raw, err := token.SignAssertion(s, "alice", issuer, at, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	ctx := t.Context()
	acts := map[string]func(at time.Time) error{
		"a token": func(at time.Time) error {
			issued, err := svc.Exchange(ctx, "default", TokenRequest{Assertion: assertion(at)}, "", at)
			if want := min(at.Truncate(time.Second).Add(10*time.Minute).Unix(), end.Unix()); err == nil && (issued.Expires.Unix() != want || store.last.Expires.Unix() != want || issued.ExpiresIn != time.Duration(want-at.Unix())*time.Second) {
				t.Errorf("at %s: the token expires at %s, in %s", at, issued.Expires, issued.ExpiresIn)
			}
			return err
		},
		"an MQTT connection": func(at time.Time) error {
			p, err := svc.AuthenticateAssertion(ctx, "default", assertion(at), func(session.Credentials) error { return nil }, "", at)
			if err == nil && p.Expires.After(end) {
				t.Errorf("at %s: the credentials expire at %s", at, p.Expires)
			}
			return err
		},
		"a client": func(at time.Time) error {
			_, err := svc.AuthenticateClient(ctx, "default", assertion(at), nil, at)
			return err
		},
		"a pairing's token": func(at time.Time) error {
			_, err := svc.IssueForPairing(ctx, "default", "alice", s.Public().ID(), token.SingleUse{JTI: "p", Expires: at.Add(time.Minute)}, nil, "", at)
			return err
		},
		"a proof of possession": func(at time.Time) error {
			sig, err := s.SignBytes([]byte("challenge"))
			if err != nil {
				t.Fatal(err)
			}
			return svc.VerifyPossession(ctx, session.Credentials{Tenant: "default", Subject: "alice", Key: s.Public().ID()}, []byte("challenge"), sig, at)
		},
	}
	for name, act := range acts {
		want := watchword.ClientInvalid
		if name == "a proof of possession" {
			want = watchword.KeyUnknown
		}
		for _, at := range []time.Time{now, end.Add(-time.Millisecond)} {
			if err := act(at); err != nil {
				t.Errorf("%s, %s before the end: %v", name, end.Sub(at), err)
			}
		}
		for _, at := range []time.Time{end, end.Add(time.Hour)} {
			if err := act(at); watchword.CodeOf(err) != want {
				t.Errorf("%s, %s after the end: %v", name, at.Sub(end), err)
			}
		}
	}
}

// A token is not bound to another key of its subject: the revocation or the end of that key would not be the token's.
func TestTokenIsNotBoundToAnotherKeyOfTheSubject(t *testing.T) {
	s := &watchword.Subject{Keys: []watchword.Key{{ID: "laptop", State: watchword.KeyActive}, {ID: "desktop", State: watchword.KeyActive}, {ID: "old", State: watchword.KeyRevoked}}}
	for bound, want := range map[watchword.KeyID]bool{"": true, "laptop": true, "desktop": false, "old": false, "unknown": true} {
		if got := mayBind(s, "laptop", bound); got != want {
			t.Errorf("%q: %v", bound, got)
		}
	}
}
