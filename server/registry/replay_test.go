package registry_test

import (
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/registry"
)

// Each act on a subject, applied again to the subject of a backup.
func TestReplayedActsOnSubjects(t *testing.T) {
	at := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	key := func(curve string) *jose.PublicKey {
		k, err := jose.GenerateKey(curve)
		if err != nil {
			t.Fatal(err)
		}
		return k.Public()
	}
	sign, seal, next := key(jose.P256), key(jose.P256), key(jose.P256)
	keys := map[string]string{"sign": string(sign.ID()), "sign_jwk": string(sign.JWK()), "seal": string(seal.ID()), "seal_jwk": string(seal.JWK())}
	signing := watchword.Key{ID: next.ID(), Purpose: watchword.Sign, JWK: next.JWK(), State: watchword.KeyActive, Added: at}
	device := watchword.Subject{Tenant: "default", ID: "lamp", Kind: watchword.Device, State: watchword.New, Version: 1, Incarnation: 1}
	active := device
	active.State, active.Keys = watchword.Active, []watchword.Key{signing}
	operator := active
	operator.Kind, operator.Role = watchword.Operator, "viewer"
	for _, tc := range []struct {
		kind   string
		data   map[string]string
		before *watchword.Subject // nil: there is none
		effect registry.Effect
		state  watchword.State
		code   watchword.Code
	}{
		{"device.create", map[string]string{"labels": "kind=lamp,site=a"}, nil, registry.Added, watchword.New, ""},
		{"device.create", map[string]string{"labels": "kind"}, nil, registry.NoEffect, "", watchword.Conflict},
		{"device.create", nil, &device, registry.NoEffect, watchword.New, watchword.Conflict},
		{"device.enroll", keys, &device, registry.Changed, watchword.Active, ""},
		{"device.enroll", map[string]string{"sign": "x", "sign_jwk": string(sign.JWK())}, &device, registry.NoEffect, watchword.New, watchword.Conflict},
		{"device.rekey", keys, &active, registry.Changed, watchword.Active, ""},
		{"operator.enroll", map[string]string{"sign": keys["sign"], "sign_jwk": keys["sign_jwk"]}, &operator, registry.Changed, watchword.Active, ""},
		{"operator.key_revoke", map[string]string{"sign": string(next.ID())}, &operator, registry.Changed, watchword.Active, ""},
		{"operator.key_end", map[string]string{"sign": string(next.ID()), "key_ends": at.Add(time.Hour).Format(time.RFC3339)}, &operator, registry.Changed, watchword.Active, ""},
		{"operator.key_end", map[string]string{"sign": string(next.ID()), "key_ends": "soon"}, &operator, registry.NoEffect, watchword.Active, watchword.Conflict},
		{"operator.role", map[string]string{"after": "admin"}, &operator, registry.Changed, watchword.Active, ""},
		{"operator.role", map[string]string{"after": "viewer"}, &operator, registry.NoEffect, watchword.Active, ""},
		{"device.label", map[string]string{"after": "site=b"}, &active, registry.Changed, watchword.Active, ""},
		{"device.proof", map[string]string{"after": watchword.RequireProof}, &active, registry.Changed, watchword.Active, ""},
		{"device.suspend", nil, &active, registry.Changed, watchword.Suspended, ""},
		{"device.resume", nil, &active, registry.NoEffect, watchword.Active, ""},
		{"device.revoke", nil, &active, registry.AccessEnd, watchword.Revoked, ""},
		{"device.delete", nil, &active, registry.Deleted, watchword.Revoked, ""},
		{"device.revoke", nil, nil, registry.NoEffect, "", watchword.NotFound},
	} {
		e := audit.Entry{Tenant: "default", Kind: tc.kind, Object: "lamp", Outcome: audit.Done, At: at, Data: tc.data}
		if !registry.Replayable(e) {
			t.Errorf("%s is not applied again", tc.kind)
		}
		var before watchword.Subject
		if tc.before != nil {
			before = *tc.before
		}
		after, effect, err := registry.ReplaySubject(before, tc.before != nil, e)
		if watchword.CodeOf(err) != tc.code || effect != tc.effect || after.State != tc.state {
			t.Errorf("%s: effect %d, %s, %v; want %d, %s, %s", tc.kind, effect, after.State, err, tc.effect, tc.state, tc.code)
		}
	}
	refused := audit.Entry{Kind: "device.revoke", Outcome: audit.Refused}
	if registry.Replayable(refused) || registry.Replayable(audit.Entry{Kind: audit.DeviceLink, Outcome: audit.Done}) || registry.Replayable(audit.Entry{Kind: audit.OperatorRecover, Outcome: audit.Done}) || registry.Replayable(audit.Entry{Kind: audit.TokenIssue, Outcome: audit.Done}) {
		t.Error("a refusal, a link, a recovery or a token is applied again")
	}
}

func TestReplayedPolicies(t *testing.T) {
	stored := policy.Stored{Tenant: "default", Name: "p", Version: 3, Source: []byte("a")}
	for _, tc := range []struct {
		name    string
		before  policy.Stored
		e       audit.Entry
		changed bool
		source  string
		code    watchword.Code
	}{
		{"another text", stored, audit.Entry{Kind: audit.PolicyApply, Data: map[string]string{"source": "b"}}, true, "b", ""},
		{"the same text", stored, audit.Entry{Kind: audit.PolicyApply, Data: map[string]string{"source": "a"}}, false, "a", ""},
		{"a hash alone", stored, audit.Entry{Kind: audit.PolicyApply, Data: map[string]string{"after": "h"}}, false, "a", watchword.Conflict},
		{"deleted", stored, audit.Entry{Kind: audit.PolicyDelete}, true, "", ""},
		{"deleted, and not there", policy.Stored{}, audit.Entry{Kind: audit.PolicyDelete}, false, "", ""},
	} {
		after, changed, err := registry.ReplayPolicy(tc.before, tc.e)
		if watchword.CodeOf(err) != tc.code || changed != tc.changed || string(after.Source) != tc.source {
			t.Errorf("%s: %q %v, %v", tc.name, after.Source, changed, err)
		}
	}
}
