package keyring

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
)

// InitOptions are the arguments of [Initialize].
type InitOptions struct {
	Issuer   string
	Operator watchword.Subject // the first operator, active, with its keys
	KEK      KEK
	Now      time.Time
	Clock    Clock // nil: always trusted
}

// Initialize creates every role's key, encrypts them, and writes them with the instance and the first operator in one
// transaction. Codes: conflict if the server is initialized already; clock_untrusted.
func Initialize(ctx context.Context, st Store, f InitOptions) error {
	data := randomKey()
	wrapped, err := f.KEK.Wrap(data)
	if err != nil {
		return err
	}
	sealed := []SealedKey{{ID: f.KEK.ID(), Role: Data, State: Active, Private: wrapped, Created: f.Now, Starts: f.Now}}
	instance := audit.Actor{Tenant: watchword.DefaultTenant}
	var entries []audit.Entry
	for _, role := range Roles {
		s, err := makeKey(data, role, Active, Instance{Issuer: f.Issuer}, f.Clock, f.Now, f.Now)
		if err != nil {
			return err
		}
		sealed = append(sealed, s)
		entries = append(entries, instance.DoneEntry(audit.KeyCreate, string(s.ID), f.Now, auditData(s, nil)))
	}
	entries = append(entries, instance.DoneEntry(audit.KindFor(watchword.Operator, audit.DeviceCreate), string(f.Operator.ID), f.Now, map[string]string{
		"role": f.Operator.Role, "labels": f.Operator.Labels.String(), "sign": string(f.Operator.Keys[0].ID), "sign_jwk": string(f.Operator.Keys[0].JWK),
	}))
	return st.Initialize(ctx, Instance{Issuer: f.Issuer, Epoch: 1, At: f.Now}, sealed, f.Operator, entries)
}

// makeKey creates a key of a role, encrypted under data. The certificate of an authority is valid from now on, even if the
// key starts to sign later.
func makeKey(data []byte, role Role, state State, f Instance, clock Clock, now, starts time.Time) (SealedKey, error) {
	curve := jose.P256
	if role == Log {
		curve = jose.Ed // required by C2SP signed notes
	}
	k, err := jose.GenerateKey(curve)
	if err != nil {
		return SealedKey{}, err
	}
	s := SealedKey{ID: k.Public().ID(), Role: role, State: state, Public: k.Public().JWK(), Created: now, Starts: starts}
	if s.Private, err = sealBytes(data, sealContext(s), k.JWK()); err != nil {
		return s, err
	}
	switch role {
	case CA:
		s.Cert, err = selfSign(checkedKey{k.Crypto(), check(role, clock)}, f.Issuer, now)
	case Log:
		s.Origin = f.LogOrigin
	}
	return s, err
}
