package office

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/policy"
	"github.com/watchword-iot/watchword/session"
	"github.com/watchword-iot/watchword/token"
)

const issuer = "https://watch.example"

// keys is an issuer with one key.
type keys struct{ s *jose.Signer }

func (k keys) IssuerSigner() *jose.Signer { return k.s }
func (k keys) IssuerKeys() map[watchword.KeyID]*jose.PublicKey {
	return token.NewKeySet(k.s.Public())
}
func (k keys) RevokedIssuer(watchword.KeyID) bool { return false }

// roll knows one device.
type roll struct{ s watchword.Subject }

func (r roll) Principal(_ context.Context, _ watchword.TenantID, id watchword.SubjectID) (*session.Principal, error) {
	if id != r.s.ID {
		return nil, watchword.Refuse(watchword.NotFound, "nobody")
	}
	return session.NewPrincipal(&r.s, policy.NewSet()), nil
}

// Where too many signatures wait already, whoever comes is told so, by that word,
// and nothing is said of papers that nobody looked at: not that they are bad, nor
// whether their subject is known.
func TestWhereTooManyWaitNothingElseIsSaid(t *testing.T) {
	_, s := newKey(t)
	room := fair.NewRoom()
	o, err := New(issuer, keys{s}, roll{watchword.Subject{
		ID: "lamp-1", Kind: watchword.Device, State: watchword.Active,
		Keys: []watchword.Key{{ID: s.Public().ID(), Purpose: watchword.Sign, State: watchword.KeyActive, JWK: s.Public().JWK()}},
	}}, nil, Options{Room: room})
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
	known, nobody := assertion("lamp-1"), assertion("lamp-2")
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		open := make(chan struct{})
		var wg sync.WaitGroup
		for range 2048 { // in the room, and in line
			wg.Go(func() { _ = room.Do(ctx, func() error { <-open; return nil }) }) // those beyond the bound are refused
		}
		synctest.Wait()
		for what, ask := range map[string]func() error{
			"a token": func() error { _, err := o.Admit(ctx, "default", access, now); return err },
			"a bound token": func() error {
				_, err := o.AdmitBound(ctx, "default", access, Shown{}, now)
				return err
			},
			"introspection": func() error {
				_, err := o.Introspect(ctx, "default", access, func(context.Context, session.Papers) (*session.Authority, error) { return nil, nil }, now)
				return err
			},
			"revocation":             func() error { _, err := o.Own(ctx, "default", "lamp-1", nil, access, now); return err },
			"an assertion":           func() error { _, err := o.Exchange(ctx, "default", Ask{Assertion: known}, "", now); return err },
			"an assertion, nobody's": func() error { _, err := o.Exchange(ctx, "default", Ask{Assertion: nobody}, "", now); return err },
			"an assertion over MQTT": func() error {
				_, err := o.Login(ctx, "default", known, func(session.Papers) error { return nil }, "", now)
				return err
			},
			"a proof": func() error {
				_, err := o.Exchange(ctx, "default", Ask{Assertion: known, Proof: &Shown{}}, "", now)
				return err
			},
			"a challenge": func() error { return o.Proves(ctx, session.Papers{Subject: "lamp-1", Key: s.Public().ID()}, nil, nil) },
		} {
			err := ask()
			if e, ok := err.(*watchword.Error); !ok || e.Code != watchword.Busy || e.RetryAfter == 0 {
				t.Errorf("%s: %v", what, err)
			}
		}
		close(open)
		wg.Wait()
		if _, err := o.Exchange(ctx, "default", Ask{Assertion: nobody}, "", now); watchword.CodeOf(err) != watchword.ClientInvalid {
			t.Errorf("when it is over: %v", err)
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
