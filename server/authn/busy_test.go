package authn

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/token"
)

const issuer = "https://watch.example"

// keys is an issuer with one key.
type keys struct{ s *jose.Signer }

func (k keys) IssuerSigner() *jose.Signer { return k.s }
func (k keys) IssuerKeys() map[watchword.KeyID]*jose.PublicKey {
	return token.NewKeySet(k.s.Public())
}
func (k keys) IssuerKeyRevoked(watchword.KeyID) bool { return false }

// fakeDirectory knows one device.
type fakeDirectory struct{ s watchword.Subject }

func (r fakeDirectory) Principal(_ context.Context, _ watchword.TenantID, id watchword.SubjectID) (*session.Principal, error) {
	if id != r.s.ID {
		return nil, watchword.Refuse(watchword.NotFound, "nobody")
	}
	return session.NewPrincipal(&r.s, policy.NewSet()), nil
}

// If too many signatures are queued, every further request gets busy, whatever its credentials: the answer discloses
// neither whether they are valid nor whether their subject exists.
func TestBusyDoesNotHideOtherRefusals(t *testing.T) {
	_, s := newKey(t)
	room := fair.NewSemaphore()
	o, err := New(issuer, keys{s}, fakeDirectory{watchword.Subject{
		ID: "lamp-1", Kind: watchword.Device, State: watchword.Active,
		Keys: []watchword.Key{{ID: s.Public().ID(), Purpose: watchword.Sign, State: watchword.KeyActive, JWK: s.Public().JWK()}},
	}}, nil, nil, Options{Semaphore: room})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	access, err := token.SignAccess(s, token.Grant{Issuer: issuer, Subject: watchword.Subject{ID: "lamp-1"}, Key: "k", JTI: "j", Issued: now, Expires: now.Add(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	assertion := func(id watchword.SubjectID) string {
		raw, err := token.SignAssertion(s, id, issuer, now, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	verified, nobody := assertion("lamp-1"), assertion("lamp-2")
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		open := make(chan struct{})
		var wg sync.WaitGroup
		for range 2048 { // in the room, and in line
			wg.Go(func() { _ = room.Do(ctx, func() error { <-open; return nil }) }) // those beyond the bound are refused
		}
		synctest.Wait()
		for what, req := range map[string]func() error{
			"a token": func() error { _, err := o.VerifyBearer(ctx, "default", access, now); return err },
			"a bound token": func() error {
				_, err := o.VerifyDPoP(ctx, "default", access, DPoPRequest{}, now)
				return err
			},
			"introspection": func() error {
				_, err := o.Introspect(ctx, "default", access, func(context.Context, session.Credentials) (*session.Authority, error) { return nil, nil }, now)
				return err
			},
			"revocation": func() error { _, err := o.RevocableRecord(ctx, "default", "lamp-1", nil, access, now); return err },
			"an assertion": func() error {
				_, err := o.Exchange(ctx, "default", TokenRequest{Assertion: verified}, "", now)
				return err
			},
			"an assertion of an unknown subject": func() error {
				_, err := o.Exchange(ctx, "default", TokenRequest{Assertion: nobody}, "", now)
				return err
			},
			"an assertion over MQTT": func() error {
				_, err := o.AuthenticateAssertion(ctx, "default", verified, func(session.Credentials) error { return nil }, "", now)
				return err
			},
			"a proof": func() error {
				_, err := o.Exchange(ctx, "default", TokenRequest{Assertion: verified, Proof: &DPoPRequest{}}, "", now)
				return err
			},
			"a challenge": func() error {
				return o.VerifyPossession(ctx, session.Credentials{Subject: "lamp-1", Key: s.Public().ID()}, nil, nil, now)
			},
		} {
			err := req()
			if e, ok := err.(*watchword.Error); !ok || e.Code != watchword.Busy || e.RetryAfter == 0 {
				t.Errorf("%s: %v", what, err)
			}
		}
		close(open)
		wg.Wait()
		if _, err := o.Exchange(ctx, "default", TokenRequest{Assertion: nobody}, "", now); watchword.CodeOf(err) != watchword.ClientInvalid {
			t.Errorf("when it has expired: %v", err)
		}
	})
}

func newKey(t *testing.T) (*jose.PrivateKey, *jose.Signer) {
	t.Helper()
	k, err := jose.GenerateKey("P-256")
	if err != nil {
		t.Fatal(err)
	}
	s, err := k.Signer()
	if err != nil {
		t.Fatal(err)
	}
	return k, s
}
