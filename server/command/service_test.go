package command_test

import (
	"context"
	"crypto/sha256"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/enroll"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/registry"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/server/sqlite"
	"github.com/watchword-iot/watchword/token"
)

const (
	tenant = watchword.DefaultTenant
	issuer = "https://hub.example"
)

// callers is the policy of these tests: alice may call everything of the lamps with her label, bob one function with a
// constraint.
const callers = `
subjects = ["alice"]
[[allow]]
call = ["*"]
on = { kind = "lamp" }
`

const bounded = `
subjects = ["bob"]
[[allow]]
call = ["lamp.set"]
devices = ["lamp-1", "lamp-9"]
args = { level = { maximum = 80 } }
`

// setup is a service over a real store and a real keyring, with a clock of its own.
type setup struct {
	*command.Service
	t         *testing.T
	store     *sqlite.Store
	ring      *keyring.Ring
	directory *registry.Directory
	guard     *session.Guard
	clock     atomic.Int64 // in nanoseconds since 1970
	signs     map[watchword.SubjectID]*jose.Signer
	opens     map[watchword.SubjectID]*jose.Decrypter
}

func (s *setup) now() time.Time { return time.Unix(0, s.clock.Load()).UTC() }

func (s *setup) pass(d time.Duration) { s.clock.Add(int64(d)) }

// options change what the service is made of; nil leaves it.
type options struct {
	store   func(command.Store) command.Store
	keys    func(command.Keys) command.Keys
	safe    func(command.Sealer) command.Sealer
	service command.Options
}

func newSetup(t *testing.T, o options) *setup {
	t.Helper()
	dir := t.TempDir()
	st, err := sqlite.Open(t.Context(), filepath.Join(dir, "db"), sqlite.Options{})
	must(t, err)
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	kek, err := keyring.OpenKEK(filepath.Join(dir, "kek"), true)
	must(t, err)
	s := &setup{t: t, store: st, signs: map[watchword.SubjectID]*jose.Signer{}, opens: map[watchword.SubjectID]*jose.Decrypter{}}
	s.clock.Store(at.UnixNano())
	alice := signer(t, jose.P256)
	s.signs["alice"] = alice
	must(t, keyring.Initialize(t.Context(), st, keyring.InitOptions{Issuer: issuer, KEK: kek, Now: at, Operator: watchword.Subject{
		Tenant: tenant, ID: "alice", Kind: watchword.Operator, State: watchword.Active, Version: 1, Incarnation: 1, Created: at, Changed: at,
		Keys: []watchword.Key{{ID: alice.Public().ID(), Purpose: watchword.Sign, JWK: alice.Public().JWK(), State: watchword.KeyActive, Added: at}},
	}}))
	s.ring, err = keyring.Open(t.Context(), st, kek, nil)
	must(t, err)
	for name, src := range map[string]string{"callers": callers, "bounded": bounded} {
		_, _, err = st.PutPolicy(t.Context(), audit.Actor{Tenant: tenant}, name, []byte(src), -1, at, audit.FixedEntry[policy.Stored](s.entry(audit.PolicyApply, name, nil)))
		must(t, err)
	}
	s.directory = registry.NewDirectory(st)
	s.guard = session.NewGuard(s.directory, session.GuardOptions{Now: s.now})
	o.service.Issuers, o.service.Epoch, o.service.Now = watchword.FixedIssuer(issuer), s.ring.Epoch(), s.now
	under, keys := command.Store(st), command.Keys(s.ring)
	if o.store != nil {
		under = o.store(under)
	}
	if o.keys != nil {
		keys = o.keys(keys)
	}
	sealer := command.Sealer(s.ring)
	if o.safe != nil {
		sealer = o.safe(sealer)
	}
	s.Service = command.New(under, s.directory, sealer, keys, o.service)
	s.subject("lamp-1", watchword.Device, watchword.Labels{"kind": "lamp"})
	return s
}

// subject adds an active subject with keys of its own.
func (s *setup) subject(id watchword.SubjectID, kind watchword.Kind, labels watchword.Labels) {
	s.t.Helper()
	created := audit.DeviceCreate
	if kind != watchword.Device {
		created = audit.KindFor(watchword.Operator, audit.DeviceCreate)
	}
	hash := sha256.Sum256([]byte(id))
	must(s.t, s.store.CreateSubject(s.t.Context(), watchword.Subject{Tenant: tenant, ID: id, Kind: kind, State: watchword.New, Labels: labels, Created: s.now(), Changed: s.now()},
		&enroll.Code{Tenant: tenant, Hash: hash, Subject: id, Expires: s.now().Add(time.Hour), CreatedBy: "alice"}, s.entry(created, string(id), nil)))
	sign, seal := s.newKeys(id)
	_, _, err := s.store.RedeemCode(s.t.Context(), enroll.Redemption{Tenant: tenant, Hash: hash, Sign: sign, Seal: seal}, watchword.AuthorityVersions{}, s.now(),
		audit.FixedEntry[watchword.Subject](s.entry(audit.DeviceEnroll, string(id), map[string]string{"sign": string(sign.ID), "sign_jwk": string(sign.JWK)})))
	must(s.t, err)
	s.changed(id)
}

func (s *setup) entry(kind, object string, data map[string]string) audit.Entry {
	return audit.Entry{Tenant: tenant, At: s.now(), Kind: kind, Object: object, Outcome: audit.Done, Data: data}
}

// newKeys makes keys that the subject signs and opens with from now on.
func (s *setup) newKeys(id watchword.SubjectID) (sign, seal watchword.Key) {
	s.t.Helper()
	s.signs[id] = signer(s.t, jose.P256)
	k, err := jose.GenerateKey(jose.X25519)
	must(s.t, err)
	s.opens[id], err = k.Decrypter()
	must(s.t, err)
	key := func(p *jose.PublicKey, of watchword.Purpose) watchword.Key {
		return watchword.Key{ID: p.ID(), Purpose: of, JWK: p.JWK(), State: watchword.KeyActive, Added: s.now()}
	}
	return key(s.signs[id].Public(), watchword.Sign), key(k.Public(), watchword.Seal)
}

// rekey gives the device other keys; the old ones are retired now.
func (s *setup) rekey(id watchword.SubjectID) {
	s.t.Helper()
	from := s.signs[id].Public().ID()
	sign, seal := s.newKeys(id)
	_, _, err := s.store.Rekey(s.t.Context(), audit.Actor{Tenant: tenant}, enroll.KeyChange{
		Tenant: tenant, Subject: id, Incarnation: 1, From: from, Sign: sign, Seal: seal,
		Spent: token.SingleUse{JTI: string(sign.ID), Expires: s.now().Add(time.Hour)},
	}, s.now(), audit.FixedEntry[watchword.Subject](s.entry(audit.DeviceRekey, string(id), map[string]string{"sign": string(sign.ID), "sign_jwk": string(sign.JWK)})))
	must(s.t, err)
	s.changed(id)
}

// as is the authority of a subject whose token carries every call.
func (s *setup) as(id watchword.SubjectID) *session.Authority {
	s.t.Helper()
	a, err := s.guard.Check(s.t.Context(), s.credentialsOf(id, "fn:*/*"))
	must(s.t, err)
	return a
}

// order orders a call that must be taken.
func (s *setup) order(c command.Call) command.Row {
	s.t.Helper()
	if c.Device == "" {
		c.Device = "lamp-1"
	}
	if c.Function == "" {
		c.Function = "lamp.set"
	}
	row, err := s.Order(s.t.Context(), s.as("alice"), c, "trace")
	must(s.t, err)
	return row
}

// unsealed is a command as its device reads it.
type unsealed struct {
	command.SealedCommand
	token.Command
	jws string
}

// open opens what was handed to a device.
func (s *setup) open(device watchword.SubjectID, cs []command.SealedCommand) (out []unsealed) {
	s.t.Helper()
	for _, c := range cs {
		jws, cty, err := s.opens[device].Decrypt(c.JWE, watchword.MaxDocument)
		must(s.t, err)
		if cty != "JWT" {
			s.t.Fatalf("the content is %q", cty)
		}
		u, err := token.VerifyCommand(string(jws), token.NewKeySet(s.ring.Public(keyring.Command)...), issuer, device, s.now(), "")
		must(s.t, err)
		out = append(out, unsealed{c, u, string(jws)})
	}
	return out
}

// next is what waits for lamp-1 on a line.
func (s *setup) next(l *command.Delivery, after int64, nonce string) []unsealed {
	s.t.Helper()
	cs, _, err := l.Take(s.t.Context(), after, nonce, 100)
	must(s.t, err)
	return s.open("lamp-1", cs)
}

// receipt signs a device's answer to what it was handed.
func (s *setup) receipt(by *jose.Signer, u unsealed, st watchword.ReceiptStatus, edit ...func(*token.Receipt)) string {
	s.t.Helper()
	r := token.Receipt{
		Device: u.Device, Issuer: issuer, Epoch: u.SealedCommand.Epoch, Seq: u.SealedCommand.Seq, Command: u.SealedCommand.ID,
		Hash: jose.HashString(u.jws), Status: st, At: s.now(),
	}
	for _, f := range edit {
		f(&r)
	}
	raw, err := token.SignReceipt(by, r)
	must(s.t, err)
	return raw
}

func (s *setup) state(id watchword.CommandID) watchword.CommandState {
	s.t.Helper()
	row, err := s.Command(s.t.Context(), tenant, id)
	must(s.t, err)
	return row.State
}

// last returns the newest entry of a kind.
func (s *setup) last(kind string) audit.Entry {
	s.t.Helper()
	rs, err := s.store.Find(s.t.Context(), audit.Query{Kind: kind}, audit.Page{Limit: 1, Newest: true})
	must(s.t, err)
	if len(rs) != 1 {
		s.t.Fatalf("no entry %s", kind)
	}
	e, err := rs[0].Entry()
	must(s.t, err)
	return e
}

func wantCode(t *testing.T, what string, err error, want watchword.Code) {
	t.Helper()
	if got := watchword.CodeOf(err); got != want {
		t.Errorf("%s: got %q (%v), want %q", what, got, err, want)
	}
}

// until waits for what must become true, by looking again at each change.
func until(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(10 * time.Second):
		t.Fatalf("10 s passed without %s", what)
	}
}

func short(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// ended returns a context that has ended: a wait with it returns at once.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func deep(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }

func (s *setup) credentialsOf(id watchword.SubjectID, resource string) session.Credentials {
	s.t.Helper()
	g, err := policy.FromPermissions([]watchword.Permission{{Resource: resource, Actions: []string{"call"}}}, nil)
	must(s.t, err)
	return session.Credentials{Tenant: tenant, Subject: id, Incarnation: 1, Key: s.signs[id].Public().ID(), Expires: s.now().Add(time.Hour), Permissions: g}
}

// changed has the directory and the command service read a subject again.
func (s *setup) changed(id watchword.SubjectID) {
	s.t.Helper()
	live := session.NewLive()
	live.Register(s.directory, s.Service)
	must(s.t, live.Apply(s.t.Context(), watchword.Change{Tenant: tenant, Kind: watchword.SubjectChanged, ID: string(id)}))
}
