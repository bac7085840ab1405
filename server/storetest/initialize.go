package storetest

import (
	"bytes"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/keyring"
)

func initialized(t *T) {
	_, err := t.Instance(t.ctx)
	t.wantCode(watchword.NotFound, err)
	f := keyring.Instance{Issuer: "https://localhost:1", Epoch: 1, At: t.now}
	keys := []keyring.SealedKey{
		{ID: "kek", Role: keyring.Data, State: keyring.Active, Private: []byte{1}, Created: t.now},
		{ID: "ca", Role: keyring.CA, State: keyring.Active, Public: []byte("{}"), Private: []byte{2}, Cert: []byte{3}, Created: t.now},
	}
	operator := watchword.Subject{
		Tenant: tenant, ID: "operator", Kind: watchword.Operator, State: watchword.Active, Role: "owner", Version: 1, Incarnation: 1,
		Created: t.now, Changed: t.now, Keys: []watchword.Key{{ID: "op", Purpose: watchword.Sign, JWK: []byte("{}"), State: watchword.KeyActive, Added: t.now}},
	}
	es := []audit.Entry{t.entry(audit.KeyCreate, "ca"), t.entry(audit.KindFor(watchword.Operator, audit.DeviceCreate), "operator")}
	errs := count(race(4, func(int) error { return t.Initialize(t.ctx, f, keys, operator, es) }))
	if errs[""] != 1 || errs[watchword.Conflict] != 3 {
		t.Fatalf("four foundings ended with %v", errs)
	}
	got, err := t.Instance(t.ctx)
	t.must(err)
	equal(t, "instance", got, f)
	ks, err := t.ServerKeys(t.ctx)
	t.must(err)
	if len(ks) != 2 || ks[0].ID != "kek" || ks[1].Role != keyring.CA || !bytes.Equal(ks[1].Cert, []byte{3}) || !ks[1].Created.Equal(t.now) || ks[0].Public != nil {
		t.Fatalf("server keys: %+v", ks)
	}
	s, err := t.Subject(t.ctx, tenant, "operator")
	t.must(err)
	equal(t, "operator's state", s.State, watchword.Active)
	equal(t, "operator's role", s.Role, "owner")
	if _, ok := s.SignKey("op", t.now); !ok {
		t.Fatal("the operator's key is not there")
	}
	equal(t, "entries", t.log(), 2)
}
