package enroll_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/enroll"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/server/sqlite"
	"github.com/watchword-iot/watchword/token"
)

const (
	here   = watchword.DefaultTenant
	issuer = "https://hub.example"
)

var (
	at     = time.Unix(1_760_000_000, 0).UTC()
	nearby = netip.MustParseAddr("192.0.2.7")
)

// setup is a service over a real store.
type setup struct {
	*enroll.Service
	t       *testing.T
	store   *sqlite.Store
	now     time.Time
	changed []watchword.SubjectID
	fits    error
}

// CreateDevice is Create for a device.
func (s *setup) CreateDevice(ctx context.Context, by session.Actor, id watchword.SubjectID, labels watchword.Labels, proof string, ttl time.Duration, now time.Time) (watchword.Subject, enroll.Link, error) {
	return s.Create(ctx, by, enroll.NewSubject{ID: id, Kind: watchword.Device, Labels: labels, Proof: proof, TTL: ttl}, now)
}

func newSetup(t *testing.T, o enroll.Options) *setup {
	t.Helper()
	st, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "db"), sqlite.Options{})
	must(t, err)
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &setup{t: t, store: st, now: at}
	s.Service = enroll.New(st, s.options(o))
	return s
}

// options completes the options of a service over the store.
func (s *setup) options(o enroll.Options) enroll.Options {
	o.PublicURL, o.Issuers = "https://hub.example/w", watchword.FixedIssuer(issuer)
	o.TrustPin = func() string { return strings.Repeat("p", 43) }
	o.TrustPins = func() []string { return []string{strings.Repeat("p", 43), strings.Repeat("q", 43)} }
	o.CheckGiven = func(context.Context, session.Actor, watchword.Subject) error { return s.fits }
	o.CheckActOn = func(context.Context, session.Actor, watchword.Subject) error { return nil }
	o.Live = live(func(id watchword.SubjectID) {
		s.changed = append(s.changed, id)
	})
	return o
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// by is the operator who does all this.
var by = session.Actor{Actor: audit.Actor{Tenant: here, Subject: "alice", Key: "alice-key", Trace: "trace", Versions: watchword.AuthorityVersions{Local: true}}}

func wantCode(t *testing.T, what string, err error, want watchword.Code) {
	t.Helper()
	if got := watchword.CodeOf(err); got != want {
		t.Errorf("%s: got %q (%v), want %q", what, got, err, want)
	}
}

// wantField holds an error's field beside its code.
func wantField(t *testing.T, what string, err error, want watchword.Code, field string) {
	t.Helper()
	wantCode(t, what, err, want)
	if e, ok := err.(*watchword.Error); want != "" && (!ok || e.Field != field) {
		t.Errorf("%s: got %+v, want the field %q", what, err, field)
	}
}

// wantChanged fails unless exactly these subjects were reported as changed since the last call.
func (s *setup) wantChanged(what string, want ...watchword.SubjectID) {
	s.t.Helper()
	if fmt.Sprint(s.changed) != fmt.Sprint(want) {
		s.t.Errorf("%s: told of %v, want %v", what, s.changed, want)
	}
	s.changed = nil
}

func (s *setup) subject(id watchword.SubjectID) watchword.Subject {
	s.t.Helper()
	sub, err := s.store.Subject(s.t.Context(), here, id)
	must(s.t, err)
	return sub
}

// entries returns the log's entries of a kind, oldest first.
func (s *setup) entries(kind string) (out []audit.Entry) {
	s.t.Helper()
	rs, err := s.store.Find(s.t.Context(), audit.Query{Kind: kind}, audit.Page{Limit: 100})
	must(s.t, err)
	for _, r := range rs {
		e, err := r.Entry()
		must(s.t, err)
		out = append(out, e)
	}
	return out
}

func (s *setup) entry(kind string) audit.Entry {
	s.t.Helper()
	es := s.entries(kind)
	if len(es) == 0 {
		s.t.Fatalf("no entry %s", kind)
	}
	return es[len(es)-1]
}

// makers is a store in which subjects have keys that no enrollment brought.
type makers struct {
	*sqlite.Store
	byID map[watchword.SubjectID]watchword.Subject
}

func (m makers) Subject(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (watchword.Subject, error) {
	if s, ok := m.byID[id]; ok {
		return s, nil
	}
	return m.Store.Subject(ctx, t, id)
}

// A link ends with the key that it was made with. A key that was replaced has one in its place.
func TestLinkEndsWithTheKeyOfItsMaker(t *testing.T) {
	grant, err := policy.FromPermissions([]watchword.Permission{{Resource: "api:/v1/#", Actions: []string{"post"}}}, nil)
	must(t, err)
	s := newSetup(t, enroll.Options{})
	known := makers{s.store, map[watchword.SubjectID]watchword.Subject{}}
	s.Service = enroll.New(known, s.options(enroll.Options{RunFor: func(ctx context.Context, tn watchword.TenantID, id watchword.SubjectID, do func(context.Context, session.Actor) error) error {
		return do(ctx, session.Actor{Actor: audit.Actor{Tenant: tn, Subject: id, Versions: watchword.AuthorityVersions{Local: true}}, Policy: grant})
	}}))
	key := func(name string, state watchword.KeyState, ends time.Time) watchword.Key {
		return watchword.Key{ID: watchword.KeyID(name), Purpose: watchword.Sign, JWK: []byte("{}"), State: state, Added: s.now, Ends: ends}
	}
	end := s.now.Add(time.Hour)
	for i, c := range []struct {
		name string
		keys []watchword.Key
		by   watchword.KeyID
		at   time.Time
		want watchword.Code
	}{
		{"before the end of the key", []watchword.Key{key("a", watchword.KeyActive, end), key("b", watchword.KeyActive, time.Time{})}, "a", end.Add(-1), ""},
		{"at the end of the key", []watchword.Key{key("a", watchword.KeyActive, end), key("b", watchword.KeyActive, time.Time{})}, "a", end, watchword.CodeInvalid},
		{"after housekeeping retired it", []watchword.Key{key("a", watchword.KeyRetired, end), key("b", watchword.KeyActive, time.Time{})}, "a", end.Add(time.Minute), watchword.CodeInvalid},
		{"at the end of another key", []watchword.Key{key("a", watchword.KeyActive, end), key("b", watchword.KeyActive, time.Time{})}, "b", end, ""},
		{"after the key was replaced", []watchword.Key{key("a", watchword.KeyRetired, time.Time{}), key("b", watchword.KeyActive, time.Time{})}, "a", s.now, ""},
		{"without a valid key of the maker", []watchword.Key{key("a", watchword.KeyRetired, time.Time{}), key("b", watchword.KeyActive, end)}, "a", end, watchword.CodeInvalid},
		{"after the key was revoked", []watchword.Key{key("a", watchword.KeyRevoked, time.Time{}), key("b", watchword.KeyActive, time.Time{})}, "a", s.now, watchword.CodeInvalid},
		{"of a key that is not known", []watchword.Key{key("b", watchword.KeyActive, time.Time{})}, "a", s.now, watchword.CodeInvalid},
		{"of a version that did not store the key", []watchword.Key{key("b", watchword.KeyActive, time.Time{})}, "", s.now, ""},
		{"of such a version, without a valid key of the maker", []watchword.Key{key("b", watchword.KeyActive, end)}, "", end, watchword.CodeInvalid},
	} {
		maker := watchword.Subject{Tenant: here, ID: watchword.SubjectID(fmt.Sprint("maker-", i)), Kind: watchword.Operator, Role: "admin", State: watchword.Active, Created: s.now, Changed: s.now}
		for _, k := range c.keys {
			k.ID = watchword.KeyID(fmt.Sprint(k.ID, i))
			maker.Keys = append(maker.Keys, k)
		}
		lamp := watchword.Subject{Tenant: here, ID: watchword.SubjectID(fmt.Sprint("lamp-", i)), Kind: watchword.Device, State: watchword.New, Created: s.now, Changed: s.now}
		plain := watchword.NewNonce()
		code := enroll.Code{Tenant: here, Hash: token.CodeDigest(plain), Subject: lamp.ID, Expires: end.Add(time.Hour), CreatedBy: maker.ID}
		if c.by != "" {
			code.CreatedByKey = watchword.KeyID(fmt.Sprint(c.by, i))
		}
		known.byID[maker.ID] = maker
		must(t, s.store.CreateSubject(t.Context(), lamp, &code, by.DoneEntry(audit.DeviceCreate, string(lamp.ID), s.now, nil)))
		_, err := s.Enroll(t.Context(), here, newDevice(t).request(t, plain, c.at), netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i)}), "", c.at)
		wantCode(t, c.name, err, c.want)
	}
}

// Operators and services enroll by a link too, with a signing key alone.
func TestOperatorsAndServicesEnrollWithoutASealingKey(t *testing.T) {
	s := newSetup(t, enroll.Options{})
	for _, n := range []enroll.NewSubject{
		{ID: "alice", Kind: watchword.Operator, Role: "viewer"},
		{ID: "billing", Kind: watchword.Service, Labels: watchword.Labels{"site": "a"}},
	} {
		_, link, err := s.Create(t.Context(), by, n, s.now)
		must(t, err)
		created := s.entry(audit.KindFor(n.Kind, audit.DeviceCreate))
		if created.Object != string(n.ID) || created.Data["role"] != n.Role || created.Data["labels"] != n.Labels.String() {
			t.Errorf("%s: the entry of the creation is %+v", n.ID, created)
		}
		d := newDevice(t)
		proof, err := token.SignEnrollment(d.sign, issuer, token.CodeHashClaim(link.Code), "", s.now)
		must(t, err)
		r := enroll.EnrollRequest{Code: link.Code, Sign: d.sign.Public().JWK(), Proof: proof}
		for range 2 { // the same request again has the same answer
			sub, err := s.Enroll(t.Context(), here, r, nearby, "", s.now)
			must(t, err)
			if sub.ID != n.ID || sub.State != watchword.Active || sub.Role != n.Role || len(sub.Keys) != 1 || sub.Keys[0].ID != d.sign.Public().ID() {
				t.Errorf("%s enrolled as %+v", n.ID, sub)
			}
		}
		enrolled := s.entries(audit.KindFor(n.Kind, audit.DeviceEnroll))
		if len(enrolled) != 1 || enrolled[0].Data["sign"] != string(d.sign.Public().ID()) || enrolled[0].Data["after"] != "active" {
			t.Errorf("%s: the entries of the enrollment are %+v", n.ID, enrolled)
		}
		if _, has := enrolled[0].Data["seal"]; has {
			t.Errorf("%s: the entry names a sealing key", n.ID)
		}
		other := newDevice(t)
		proof, err = token.SignEnrollment(other.sign, issuer, token.CodeHashClaim(link.Code), other.seal.ID(), s.now)
		must(t, err)
		_, err = s.Enroll(t.Context(), here, enroll.EnrollRequest{Code: link.Code, Sign: other.sign.Public().JWK(), Seal: other.seal.JWK(), Proof: proof}, nearby, "", s.now)
		if watchword.CodeOf(err) != watchword.CodeInvalid {
			t.Errorf("other keys with a used code: %v", err)
		}
	}
}

// device is the two keys of one.
type device struct {
	sign *jose.Signer
	seal *jose.PublicKey
}

func newDevice(t *testing.T) device {
	t.Helper()
	k, err := jose.GenerateKey(jose.P256)
	must(t, err)
	sign, err := k.Signer()
	must(t, err)
	x, err := jose.GenerateKey(jose.X25519)
	must(t, err)
	return device{sign, x.Public()}
}

// request is what the device shows for a code; proof is made at now.
func (d device) request(t *testing.T, code string, now time.Time) enroll.EnrollRequest {
	t.Helper()
	proof, err := token.SignEnrollment(d.sign, issuer, token.CodeHashClaim(code), d.seal.ID(), now)
	must(t, err)
	return enroll.EnrollRequest{Code: code, Sign: d.sign.Public().JWK(), Seal: d.seal.JWK(), Proof: proof}
}

func TestCreateDevice(t *testing.T) {
	s := newSetup(t, enroll.Options{})
	sub, link, err := s.CreateDevice(t.Context(), by, "lamp-1", watchword.Labels{"site": "a"}, "", 0, s.now)
	must(t, err)
	s.wantChanged("added", "lamp-1")
	if sub.ID != "lamp-1" || sub.Kind != watchword.Device || sub.State != watchword.New || sub.Labels["site"] != "a" || sub.Proof != "" || sub.Version != 1 || sub.Incarnation != 1 {
		t.Errorf("got %+v", sub)
	}
	if !link.Expires.Equal(s.now.Add(24*time.Hour)) || link.Pin != s.TrustPin() || link.URL != token.EnrollmentLink("https://hub.example/w", link.Code, link.Pin) || !token.WellFormedCode(link.Code) {
		t.Errorf("got %+v", link)
	}
	if e := s.entry(audit.DeviceCreate); e.Object != "lamp-1" || e.Actor != "alice" || e.Data["labels"] != "site=a" || e.Data["proof"] != "" {
		t.Errorf("the log says %+v", e)
	}
	_, _, err = s.CreateDevice(t.Context(), by, "lamp-2", nil, watchword.RequireProof, 0, s.now)
	must(t, err)
	if e := s.entry(audit.DeviceCreate); e.Data["proof"] != watchword.RequireProof || s.subject("lamp-2").Proof != watchword.RequireProof {
		t.Errorf("the log says %+v", e)
	}
	s.changed = nil
	for name, c := range map[string]struct {
		id     watchword.SubjectID
		labels watchword.Labels
		proof  string
		ttl    time.Duration
		fits   error
		code   watchword.Code
	}{
		"that is there":         {id: "lamp-1", code: watchword.Conflict},
		"without an id":         {code: watchword.BadRequest},
		"with a slash in it":    {id: "a/b", code: watchword.BadRequest},
		"with a bad label":      {id: "x1", labels: watchword.Labels{"site": "a/b"}, code: watchword.BadRequest},
		"with another proof":    {id: "x2", proof: "often", code: watchword.BadRequest},
		"whose token is large":  {id: "x3", fits: watchword.Refuse(watchword.TokenTooLarge, "large"), code: watchword.TokenTooLarge},
		"for less than nothing": {id: "x4", ttl: -time.Hour, code: watchword.BadRequest},
		"for half a second":     {id: "x5", ttl: time.Second - 1, code: watchword.BadRequest},
		"for a second":          {id: "y1", ttl: time.Second},
		"for 30 days":           {id: "y2", ttl: 30 * 24 * time.Hour},
		"for longer":            {id: "x6", ttl: 30*24*time.Hour + 1, code: watchword.BadRequest},
	} {
		s.fits = c.fits
		_, link, err := s.CreateDevice(t.Context(), by, c.id, c.labels, c.proof, c.ttl, s.now)
		wantCode(t, name, err, c.code)
		if c.code != "" {
			s.wantChanged(name)
			if link != (enroll.Link{}) {
				t.Errorf("%s: a link all the same: %+v", name, link)
			}
			continue
		}
		s.wantChanged(name, c.id)
		if !link.Expires.Equal(s.now.Add(c.ttl)) {
			t.Errorf("%s: it ends at %s", name, link.Expires)
		}
	}
}

func TestEnrollByLink(t *testing.T) {
	s := newSetup(t, enroll.Options{})
	_, first, err := s.CreateDevice(t.Context(), by, "lamp-1", nil, "", 0, s.now)
	must(t, err)
	second, err := s.CreateLink(t.Context(), by, "lamp-1", enroll.Lifetimes{Link: time.Hour}, s.now)
	must(t, err)
	if e := s.entry(audit.DeviceLink); e.Object != "lamp-1" || e.Actor != "alice" {
		t.Errorf("the log says %+v", e)
	}
	d, other := newDevice(t), newDevice(t)
	s.changed = nil
	enter := func(what string, r enroll.EnrollRequest, code watchword.Code) watchword.Subject {
		t.Helper()
		sub, err := s.Enroll(t.Context(), here, r, netip.MustParseAddr("198.51.100.1"), "trace", s.now)
		wantCode(t, what, err, code)
		return sub
	}
	enter("an older link", d.request(t, first.Code, s.now), watchword.CodeInvalid)
	good := d.request(t, second.Code, s.now)
	for what, c := range map[string]struct {
		edit func(r *enroll.EnrollRequest)
		code watchword.Code
	}{
		"no code":        {func(r *enroll.EnrollRequest) { r.Code = "" }, watchword.CodeInvalid},
		"half a code":    {func(r *enroll.EnrollRequest) { r.Code = r.Code[:21] }, watchword.CodeInvalid},
		"no signing key": {func(r *enroll.EnrollRequest) { r.Sign = nil }, watchword.BadRequest},
		"no sealing key": {func(r *enroll.EnrollRequest) {
			proof, err := token.SignEnrollment(d.sign, issuer, token.CodeHashClaim(r.Code), "", s.now)
			must(t, err)
			r.Seal, r.Proof = nil, proof
		}, watchword.BadRequest},
		"a sealing key in the proof alone": {func(r *enroll.EnrollRequest) { r.Seal = nil }, watchword.ProofInvalid},
		"the signing key twice":            {func(r *enroll.EnrollRequest) { r.Seal = r.Sign }, watchword.BadRequest},
		"a signing key to seal":            {func(r *enroll.EnrollRequest) { r.Sign = r.Seal }, watchword.BadRequest},
		"a proof by another key":           {func(r *enroll.EnrollRequest) { r.Proof = other.request(t, r.Code, s.now).Proof }, watchword.ProofInvalid},
		"a proof for another code":         {func(r *enroll.EnrollRequest) { r.Proof = d.request(t, first.Code, s.now).Proof }, watchword.ProofInvalid},
		"another sealing key":              {func(r *enroll.EnrollRequest) { r.Seal = other.seal.JWK() }, watchword.ProofInvalid},
		"an expired proof":                 {func(r *enroll.EnrollRequest) { r.Proof = d.request(t, r.Code, s.now.Add(-time.Hour)).Proof }, watchword.ProofInvalid},
		"no proof":                         {func(r *enroll.EnrollRequest) { r.Proof = "" }, watchword.ProofInvalid},
		"the proof of a key change":        {func(r *enroll.EnrollRequest) { r.Proof = "x.y.z" }, watchword.ProofInvalid},
		"an unknown code of a link":        {func(r *enroll.EnrollRequest) { *r = d.request(t, watchword.NewNonce(), s.now) }, watchword.CodeInvalid},
	} {
		r := good
		c.edit(&r)
		_, err := s.Enroll(t.Context(), here, r, netip.Addr{}, "", s.now)
		wantCode(t, what, err, c.code)
		s.now = s.now.Add(time.Minute) // whatever this address must wait
		good = d.request(t, second.Code, s.now)
	}
	if got := s.subject("lamp-1").State; got != watchword.New {
		t.Fatalf("after what was refused it is %s", got)
	}
	s.wantChanged("what was refused")
	sub := enter("the link", good, "")
	s.wantChanged("enrolled", "lamp-1")
	sign, ok := sub.SignKey(d.sign.Public().ID(), s.now)
	seal, ok2 := sub.SealKey(s.now)
	if sub.State != watchword.Active || !ok || !ok2 || seal.ID != d.seal.ID() || !sign.Added.Equal(s.now) || string(sign.JWK) != string(d.sign.Public().JWK()) {
		t.Errorf("got %+v", sub)
	}
	if e := s.entry(audit.DeviceEnroll); e.Object != "lamp-1" || e.Actor != "lamp-1" || e.Key != d.sign.Public().ID() || e.Trace != "trace" || e.Data["sign"] != string(sign.ID) ||
		e.Data["seal"] != string(seal.ID) || e.Data["sign_jwk"] != string(sign.JWK) || e.Data["seal_jwk"] != string(seal.JWK) {
		t.Errorf("the log says %+v", e)
	}
	if again := enter("the same again", d.request(t, second.Code, s.now), ""); again.ID != "lamp-1" {
		t.Errorf("got %+v", again)
	}
	s.wantChanged("the same again")
	enter("another device with it", other.request(t, second.Code, s.now), watchword.CodeInvalid)
	_, err = s.CreateLink(t.Context(), by, "lamp-1", enroll.Lifetimes{}, s.now)
	wantCode(t, "a link for an active one", err, watchword.Conflict)
	_, err = s.CreateLink(t.Context(), by, "lamp-9", enroll.Lifetimes{}, s.now)
	wantCode(t, "a link for an unknown subject", err, watchword.NotFound)
	_, err = s.CreateLink(t.Context(), by, "lamp-1", enroll.Lifetimes{Link: -time.Second}, s.now)
	wantCode(t, "a link of no time", err, watchword.BadRequest)

	_, link, err := s.CreateDevice(t.Context(), by, "lamp-2", nil, "", time.Hour, s.now)
	must(t, err)
	s.now = link.Expires
	enter("a link at its end", other.request(t, link.Code, s.now), watchword.CodeInvalid)
}

// Five wrong codes are free; then an address waits, twice as long after each, at most ten
// minutes. A quiet hour forgives. IPv6 addresses are counted by /64.
func TestWrongCodesAreThrottled(t *testing.T) {
	s := newSetup(t, enroll.Options{})
	d := newDevice(t)
	guess := func(from netip.Addr) (wait time.Duration) {
		t.Helper()
		_, err := s.Enroll(t.Context(), here, d.request(t, watchword.NewNonce(), s.now), from, "", s.now)
		if watchword.CodeOf(err) == watchword.CodeInvalid {
			return 0
		}
		wantCode(t, "a guess", err, watchword.RateLimited)
		return err.(*watchword.Error).RetryAfter
	}
	for i := range 6 {
		if wait := guess(nearby); wait != 0 {
			t.Fatalf("guess %d waits %s", i+1, wait)
		}
	}
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600, 600} {
		want *= time.Second
		if wait := guess(nearby); wait != want {
			t.Fatalf("waits %s, want %s", wait, want)
		}
		s.now = s.now.Add(want - 1)
		if wait := guess(nearby); wait != 1 {
			t.Fatalf("a nanosecond early it waits %s", wait)
		}
		s.now = s.now.Add(1)
		if wait := guess(nearby); wait != 0 {
			t.Fatalf("after %s it waits %s", want, wait)
		}
	}
	if wait := guess(netip.MustParseAddr("192.0.2.8")); wait != 0 {
		t.Errorf("another address waits %s", wait)
	}
	if wait := guess(netip.AddrFrom16(nearby.As16())); wait == 0 {
		t.Error("the same address in IPv6's form is another")
	}
	// Others of the address enroll meanwhile. A code at its end is refused like a guess. A wrong proof is no guess.
	_, link, err := s.CreateDevice(t.Context(), by, "lamp-1", nil, "", time.Minute, s.now)
	must(t, err)
	_, err = s.Enroll(t.Context(), here, d.request(t, link.Code, s.now), nearby, "", s.now)
	wantCode(t, "a valid code from there", err, "")
	if wait := guess(nearby); wait != 10*time.Minute {
		t.Errorf("waits %s after the enrollment of another client", wait)
	}
	_, err = s.Enroll(t.Context(), here, d.request(t, link.Code, s.now), nearby, "", s.now)
	wantCode(t, "the same code and keys again", err, "")
	_, err = s.Enroll(t.Context(), here, newDevice(t).request(t, link.Code, s.now), nearby, "", s.now)
	wantCode(t, "a used code with other keys from there", err, watchword.RateLimited)
	_, err = s.Enroll(t.Context(), here, newDevice(t).request(t, link.Code, s.now), netip.MustParseAddr("192.0.2.9"), "", s.now)
	wantCode(t, "a used code with other keys from another address", err, watchword.CodeInvalid)
	s.now = s.now.Add(time.Minute)
	_, err = s.Enroll(t.Context(), here, d.request(t, link.Code, s.now), nearby, "", s.now)
	wantCode(t, "a code at its end from there", err, watchword.RateLimited)
	s.now = s.now.Add(59 * time.Minute)
	if wait := guess(nearby); wait != 0 { // at an hour, not forgiven: the pauses have ended
		t.Fatalf("waits %s", wait)
	}
	if wait := guess(nearby); wait != 10*time.Minute {
		t.Fatalf("waits %s after an hour to the moment", wait)
	}
	s.now = s.now.Add(time.Hour + 1)
	for range 6 {
		if wait := guess(nearby); wait != 0 {
			t.Fatalf("after a quiet hour it waits %s", wait)
		}
	}
	six := netip.MustParseAddr("2001:db8:1:2::1")
	for i := range 6 {
		guess(netip.AddrFrom16([16]byte(append(six.AsSlice()[:15:15], byte(i)))))
	}
	if guess(six) == 0 || guess(netip.MustParseAddr("2001:db8:1:2:ffff::1")) == 0 || guess(netip.MustParseAddr("2001:db8:1:3::1")) != 0 {
		t.Error("IPv6 is not counted by /64")
	}
	for range 20 {
		r := d.request(t, watchword.NewNonce(), s.now)
		r.Proof = ""
		_, err := s.Enroll(t.Context(), here, r, netip.MustParseAddr("192.0.2.99"), "", s.now)
		wantCode(t, "a wrong proof", err, watchword.ProofInvalid)
	}
}

// ask asks for a pairing.
func (s *setup) ask(d device, requestedID string, edit ...func(*enroll.PairingRequest)) (enroll.PairingResponse, error) {
	s.t.Helper()
	proof, err := token.SignEnrollment(d.sign, issuer, token.PairingHashClaim(), d.seal.ID(), s.now)
	must(s.t, err)
	a := enroll.PairingRequest{ClientID: requestedID, Sign: d.sign.Public().JWK(), Seal: d.seal.JWK(), Proof: proof}
	for _, f := range edit {
		f(&a)
	}
	return s.RequestPairing(s.t.Context(), here, a, netip.MustParseAddr("::ffff:192.0.2.7"), s.now)
}

func (s *setup) asked(d device, requestedID string) enroll.PairingResponse {
	s.t.Helper()
	a, err := s.ask(d, requestedID)
	must(s.t, err)
	return a
}

// poll asks what became of a pairing.
func (s *setup) poll(d device, code, client string) (watchword.Subject, token.SingleUse, error) {
	s.t.Helper()
	proof, err := token.SignEnrollment(d.sign, issuer, token.CodeHashClaim(code), d.seal.ID(), s.now)
	must(s.t, err)
	sub, key, spent, err := s.PollPairing(s.t.Context(), here, code, client, proof, s.now)
	if err == nil && key != d.sign.Public().ID() {
		s.t.Errorf("the key is %s", key)
	}
	return sub, spent, err
}

func TestRequestPairing(t *testing.T) {
	s := newSetup(t, enroll.Options{})
	d, other := newDevice(t), newDevice(t)
	a := s.asked(d, "lamp-1")
	if a.RequestedID != "lamp-1" || a.State != enroll.PairingPending || a.Remote != "192.0.2.7" || a.Network != "192.0.2.7/32" || a.Interval != 5*time.Second ||
		!a.Created.Equal(s.now) || !a.Expires.Equal(s.now.Add(10*time.Minute)) || a.Hash != sha256.Sum256([]byte(a.DeviceCode)) || !token.WellFormedCode(a.DeviceCode) ||
		a.Sign.ID != d.sign.Public().ID() || a.Seal.ID != d.seal.ID() || a.Sign.Purpose != watchword.Sign || a.Seal.Purpose != watchword.Seal {
		t.Errorf("got %+v", a)
	}
	if len(a.UserCode) != 8 || strings.Trim(a.UserCode, "BCDFGHJKLMNPQRSTVWXZ") != "" || enroll.FormatUserCode(a.UserCode) != a.UserCode[:4]+"-"+a.UserCode[4:] {
		t.Errorf("the user code is %q", a.UserCode)
	}
	if got := enroll.FormatUserCode("BCDF"); got != "BCDF" {
		t.Errorf("what is no code is shown as %q", got)
	}
	if a := s.asked(other, string(other.sign.Public().ID())); a.RequestedID != "" {
		t.Errorf("a thumbprint is a wish: %q", a.RequestedID)
	}
	for what, c := range map[string]struct {
		edit  func(a *enroll.PairingRequest)
		code  watchword.Code
		field string
	}{
		"no client id":           {func(a *enroll.PairingRequest) { a.ClientID = "" }, watchword.BadRequest, "client_id"},
		"a client id of a path":  {func(a *enroll.PairingRequest) { a.ClientID = "a/b" }, watchword.BadRequest, "client_id"},
		"no signing key":         {func(a *enroll.PairingRequest) { a.Sign = nil }, watchword.BadRequest, "sign"},
		"no sealing key":         {func(a *enroll.PairingRequest) { a.Seal = nil }, watchword.BadRequest, "seal"},
		"one key for both":       {func(a *enroll.PairingRequest) { a.Seal = a.Sign }, watchword.BadRequest, "seal"},
		"another's proof":        {func(a *enroll.PairingRequest) { a.Sign = other.sign.Public().JWK() }, watchword.ProofInvalid, ""},
		"another's sealing key":  {func(a *enroll.PairingRequest) { a.Seal = other.seal.JWK() }, watchword.ProofInvalid, ""},
		"the proof of a link":    {func(a *enroll.PairingRequest) { a.Proof = d.request(t, watchword.NewNonce(), s.now).Proof }, watchword.ProofInvalid, ""},
		"an expired proof":       {func(a *enroll.PairingRequest) { a.Proof = mustProof(t, d, s.now.Add(-time.Hour)) }, watchword.ProofInvalid, ""},
		"a proof of ten minutes": {func(a *enroll.PairingRequest) { a.Proof = mustProof(t, d, s.now.Add(10*time.Minute)) }, watchword.ProofInvalid, ""},
	} {
		_, err := s.ask(d, "lamp-1", c.edit)
		wantField(t, what, err, c.code, c.field)
	}
	custom := newSetup(t, enroll.Options{PairingLifetime: time.Hour, PairingInterval: time.Second})
	if a := custom.asked(d, "lamp-1"); a.Interval != time.Second || !a.Expires.Equal(at.Add(time.Hour)) {
		t.Errorf("configured: %+v", a)
	}
}

func mustProof(t *testing.T, d device, now time.Time) string {
	t.Helper()
	p, err := token.SignEnrollment(d.sign, issuer, token.PairingHashClaim(), d.seal.ID(), now)
	must(t, err)
	return p
}

func TestPollPairing(t *testing.T) {
	s := newSetup(t, enroll.Options{})
	d, other := newDevice(t), newDevice(t)
	a := s.asked(d, "lamp-1")
	poll := func(what string, want watchword.Code, after time.Duration) {
		t.Helper()
		_, spent, err := s.poll(d, a.DeviceCode, "lamp-1")
		wantCode(t, what, err, want)
		if e, ok := err.(*watchword.Error); ok && e.RetryAfter != after {
			t.Errorf("%s: again after %s, want %s", what, e.RetryAfter, after)
		}
		if spent.JTI == "" || !spent.Expires.After(s.now) {
			t.Errorf("%s: the proof is spent as %+v", what, spent)
		}
	}
	poll("a first", watchword.PairingPending, 0)
	s.now = s.now.Add(5*time.Second - 1)
	poll("a nanosecond early", watchword.PairingSlow, 10*time.Second)
	s.now = s.now.Add(10 * time.Second)
	poll("in time", watchword.PairingPending, 0)
	s.now = s.now.Add(10*time.Second - 1)
	poll("early again", watchword.PairingSlow, 15*time.Second)
	s.now = s.now.Add(15 * time.Second)

	for what, c := range map[string]struct {
		by           device
		code, client string
		want         watchword.Code
	}{
		"another's proof":      {other, a.DeviceCode, "lamp-1", watchword.ProofInvalid},
		"another client id":    {d, a.DeviceCode, "lamp-2", watchword.ClientInvalid},
		"no client id":         {d, a.DeviceCode, "", watchword.ClientInvalid},
		"its thumbprint":       {d, a.DeviceCode, string(d.sign.Public().ID()), watchword.ClientInvalid},
		"an unknown code":      {d, watchword.NewNonce(), "lamp-1", watchword.PairingExpired},
		"half a code":          {d, a.DeviceCode[:10], "lamp-1", watchword.PairingExpired},
		"what it should, late": {d, a.DeviceCode, "lamp-1", watchword.PairingPending},
	} {
		_, _, err := s.poll(c.by, c.code, c.client)
		wantCode(t, what, err, c.want)
	}
	proof, err := token.SignEnrollment(d.sign, issuer, token.PairingHashClaim(), d.seal.ID(), s.now)
	must(t, err)
	_, _, _, err = s.PollPairing(t.Context(), here, a.DeviceCode, "lamp-1", proof, s.now)
	wantCode(t, "with the proof of the asking", err, watchword.ProofInvalid)
	nameless := s.asked(other, string(other.sign.Public().ID()))
	_, _, err = s.poll(other, nameless.DeviceCode, string(other.sign.Public().ID()))
	wantCode(t, "one without a wish", err, watchword.PairingPending)

	s.now = a.Expires
	_, _, err = s.poll(d, a.DeviceCode, "lamp-1")
	wantCode(t, "at its end", err, watchword.PairingExpired)
}

func TestApproveAndRejectPairing(t *testing.T) {
	s := newSetup(t, enroll.Options{})
	_, _, err := s.CreateDevice(t.Context(), by, "lamp-0", watchword.Labels{"site": "a"}, "", 0, s.now)
	must(t, err)
	_, _, err = s.CreateDevice(t.Context(), by, "lamp-busy", nil, "", 0, s.now)
	must(t, err)
	s.changed = nil
	d := newDevice(t)
	a := s.asked(d, "lamp-0")
	key := d.sign.Public().ID()
	for what, c := range map[string]struct {
		edit  func(a *enroll.PairingApproval)
		fits  error
		code  watchword.Code
		field string
	}{
		"an unknown code":                 {edit: func(a *enroll.PairingApproval) { a.UserCode = "BBBB-BBBB" }, code: watchword.NotFound},
		"an invalid code":                 {edit: func(a *enroll.PairingApproval) { a.UserCode = "AAAA" }, code: watchword.BadRequest, field: "user_code"},
		"another thumbprint":              {edit: func(a *enroll.PairingApproval) { a.Sign = newDevice(t).sign.Public().ID() }, code: watchword.Conflict, field: "sign"},
		"half the thumbprint":             {edit: func(a *enroll.PairingApproval) { a.Sign = a.Sign[:20] }, code: watchword.Conflict, field: "sign"},
		"no thumbprint":                   {edit: func(a *enroll.PairingApproval) { a.Sign = "" }, code: watchword.Conflict, field: "sign"},
		"a wish that is there":            {edit: func(a *enroll.PairingApproval) { a.ID = "" }, code: watchword.Conflict},
		"labels of one that is there":     {edit: func(a *enroll.PairingApproval) { a.ID, a.Labels = "lamp-0", watchword.Labels{"site": "b"} }, code: watchword.BadRequest, field: "labels"},
		"an id of a path":                 {edit: func(a *enroll.PairingApproval) { a.ID = "a/b" }, code: watchword.BadRequest, field: "id"},
		"a bad label":                     {edit: func(a *enroll.PairingApproval) { a.ID, a.Labels = "lamp-7", watchword.Labels{"site": "a/b"} }, code: watchword.BadRequest, field: "labels.site"},
		"one whose token would not fit":   {edit: func(a *enroll.PairingApproval) { a.ID = "lamp-7" }, fits: watchword.Refuse(watchword.TokenTooLarge, "large"), code: watchword.TokenTooLarge},
		"one that is there and not known": {edit: func(a *enroll.PairingApproval) { a.ID = "lamp-0" }, fits: watchword.Refuse(watchword.TokenTooLarge, "large"), code: watchword.TokenTooLarge},
	} {
		say := enroll.PairingApproval{UserCode: a.UserCode, Sign: key}
		c.edit(&say)
		s.fits = c.fits
		_, err := s.ApprovePairing(t.Context(), by, say, s.now)
		s.fits = nil
		wantField(t, what, err, c.code, c.field)
	}
	s.wantChanged("what was refused")
	if ps, err := s.Pairings(t.Context(), here, watchword.Device, "", 10, s.now); err != nil || len(ps) != 1 || ps[0].State != enroll.PairingPending {
		t.Fatalf("%+v, %v", ps, err)
	}

	none := newDevice(t)
	nameless := s.asked(none, string(none.sign.Public().ID()))
	_, err = s.ApprovePairing(t.Context(), by, enroll.PairingApproval{UserCode: nameless.UserCode, Sign: none.sign.Public().ID()}, s.now)
	wantField(t, "one without a wish, and no id", err, watchword.BadRequest, "id")

	// One that is there, by its id.
	sub, err := s.ApprovePairing(t.Context(), by, enroll.PairingApproval{UserCode: strings.ToLower(enroll.FormatUserCode(a.UserCode)), Sign: key, ID: "lamp-0"}, s.now)
	must(t, err)
	s.wantChanged("approved", "lamp-0")
	if _, ok := sub.SignKey(key, s.now); !ok || sub.State != watchword.Active || sub.Labels["site"] != "a" {
		t.Errorf("got %+v", sub)
	}
	if n := len(s.entries(audit.DeviceCreate)); n != 2 {
		t.Errorf("%d entries of devices that were added, want the 2 of before", n)
	}
	e := s.entry(audit.DeviceEnroll)
	if e.Object != "lamp-0" || e.Actor != "alice" || e.Data["pairing"] != a.ID || e.Data["user_code"] != enroll.FormatUserCode(a.UserCode) || e.Data["sign"] != string(key) ||
		e.Data["seal"] != string(d.seal.ID()) || e.Data["sign_jwk"] != string(d.sign.Public().JWK()) || e.Data["seal_jwk"] != string(d.seal.JWK()) {
		t.Errorf("the log says %+v", e)
	}
	_, err = s.ApprovePairing(t.Context(), by, enroll.PairingApproval{UserCode: a.UserCode, Sign: key, ID: "lamp-0"}, s.now)
	wantCode(t, "approved again", err, watchword.Conflict)
	_, err = s.RejectPairing(t.Context(), by, watchword.Device, a.UserCode, s.now)
	wantCode(t, "rejected after it was approved", err, watchword.Conflict)
	for range 2 { // whose answer was lost asks again
		if got, _, err := s.poll(d, a.DeviceCode, "lamp-0"); err != nil || got.ID != "lamp-0" {
			t.Errorf("its device receives %+v, %v", got, err)
		}
	}
	p, err := s.Pairing(t.Context(), here, watchword.Device, a.UserCode, s.now)
	if err != nil || p.State != enroll.PairingApproved || p.By != "alice" || !p.Expires.Equal(s.now.Add(24*time.Hour)) {
		t.Errorf("%+v, %v", p, err)
	}

	// By its wish, with labels; and revoked later.
	d = newDevice(t)
	a = s.asked(d, "lamp-7")
	sub, err = s.ApprovePairing(t.Context(), by, enroll.PairingApproval{UserCode: a.UserCode, Sign: d.sign.Public().ID(), Labels: watchword.Labels{"site": "c"}}, s.now)
	if err != nil || sub.ID != "lamp-7" || sub.Labels["site"] != "c" || sub.Kind != watchword.Device {
		t.Fatalf("got %+v, %v", sub, err)
	}
	if e := s.entry(audit.DeviceCreate); e.Object != "lamp-7" || e.Data["labels"] != "site=c" || e.Data["pairing"] != a.ID {
		t.Errorf("the log says %+v", e)
	}
	_, err = s.store.Revoke(t.Context(), by.Actor, "lamp-7", s.now, audit.FixedEntry[watchword.Subject](by.DoneEntry(audit.DeviceRevoke, "lamp-7", s.now, nil)))
	must(t, err)
	_, _, err = s.poll(d, a.DeviceCode, "lamp-7")
	wantCode(t, "revoked since", err, watchword.PairingExpired)
	must(t, s.store.DeleteSubject(t.Context(), by.Actor, "lamp-7", s.now, audit.FixedEntry[watchword.Subject](by.DoneEntry(audit.DeviceDelete, "lamp-7", s.now, nil))))
	_, _, err = s.poll(d, a.DeviceCode, "lamp-7")
	wantCode(t, "deleted since", err, watchword.PairingExpired)

	// If the device requested no id, the operator must state one.
	d = newDevice(t)
	a = s.asked(d, string(d.sign.Public().ID()))
	_, err = s.ApprovePairing(t.Context(), by, enroll.PairingApproval{UserCode: a.UserCode, Sign: d.sign.Public().ID()}, s.now)
	wantField(t, "no subject is named", err, watchword.BadRequest, "id")

	p, err = s.RejectPairing(t.Context(), by, watchword.Device, a.UserCode, s.now)
	if err != nil || p.State != enroll.PairingRejected || p.By != "alice" {
		t.Errorf("rejected: %+v, %v", p, err)
	}
	if e := s.entry(audit.PairingReject); e.Object != a.ID || e.Actor != "alice" || e.Data["sign"] != string(a.Sign.ID) || e.Data["seal"] != string(a.Seal.ID) || e.Data["user_code"] != enroll.FormatUserCode(a.UserCode) {
		t.Errorf("the log says %+v", e)
	}
	_, _, err = s.poll(d, a.DeviceCode, string(d.sign.Public().ID()))
	wantCode(t, "its device receives", err, watchword.PairingRejected)
	_, err = s.ApprovePairing(t.Context(), by, enroll.PairingApproval{UserCode: a.UserCode, Sign: d.sign.Public().ID(), ID: "lamp-8"}, s.now)
	wantCode(t, "approved after it was rejected", err, watchword.Conflict)
	_, err = s.RejectPairing(t.Context(), by, watchword.Device, "BBBB-BBBB", s.now)
	wantCode(t, "rejecting what is not there", err, watchword.NotFound)
}

func TestRekey(t *testing.T) {
	s := newSetup(t, enroll.Options{})
	_, link, err := s.CreateDevice(t.Context(), by, "lamp-1", nil, "", 0, s.now)
	must(t, err)
	d := newDevice(t)
	_, err = s.Enroll(t.Context(), here, d.request(t, link.Code, s.now), nearby, "", s.now)
	must(t, err)
	s.changed = nil
	// change is a request to change one device's keys to another's.
	change := func(from, to device) enroll.RekeyRequest {
		proof, err := token.SignRekey(from.sign, to.sign, "lamp-1", issuer, to.seal.ID(), s.now)
		must(t, err)
		r := enroll.RekeyRequest{Proof: []byte(proof)}
		if to.sign != from.sign {
			r.Sign = to.sign.Public().JWK()
		}
		if to.seal != from.seal {
			r.Seal = to.seal.JWK()
		}
		return r
	}
	rekey := func(what string, key watchword.KeyID, r enroll.RekeyRequest, code watchword.Code) watchword.Subject {
		t.Helper()
		sub, err := s.Rekey(t.Context(), audit.Actor{Tenant: here, Subject: "lamp-1", Key: key, Trace: "trace", Versions: watchword.AuthorityVersions{Local: true}}, r, s.now)
		wantCode(t, what, err, code)
		return sub
	}
	id := func(d device) watchword.KeyID { return d.sign.Public().ID() }
	next, other := newDevice(t), newDevice(t)
	rekey("by another key than the token's", id(other), change(d, next), watchword.ClientInvalid)
	rekey("a proof by another key", id(d), change(other, next), watchword.ProofInvalid)
	r := change(d, next)
	r.Seal = other.seal.JWK()
	rekey("another sealing key than the proof's", id(d), r, watchword.ProofInvalid)
	r = change(d, next)
	r.Sign = other.sign.Public().JWK()
	rekey("another signing key than the proof's", id(d), r, watchword.ProofInvalid)
	r = change(d, next)
	r.Proof = nil
	rekey("no proof", id(d), r, watchword.ProofInvalid)
	r = change(d, next)
	r.Sign = []byte("{}")
	rekey("an invalid signing key", id(d), r, watchword.BadRequest)
	r = change(d, next)
	r.Seal = []byte("{}")
	rekey("an invalid sealing key", id(d), r, watchword.BadRequest)
	r = change(d, device{next.sign, next.sign.Public()})
	rekey("one key for both", id(d), r, watchword.BadRequest)
	s.wantChanged("what was refused")

	if sub := rekey("to the same keys", id(d), enroll.RekeyRequest{}, ""); sub.ID != "lamp-1" {
		t.Errorf("got %+v", sub)
	}
	same := change(d, d)
	same.Sign, same.Seal = d.sign.Public().JWK(), d.seal.JWK()
	rekey("to the same keys, said", id(d), same, "")
	s.wantChanged("to the same keys")
	if n := len(s.entries(audit.DeviceRekey)); n != 0 {
		t.Fatalf("%d entries of changes", n)
	}

	sub := rekey("to other keys", id(d), change(d, next), "")
	s.wantChanged("to other keys", "lamp-1")
	_, current := sub.SignKey(id(d), s.now)
	_, is := sub.SignKey(id(next), s.now)
	if seal, _ := sub.SealKey(s.now); current || !is || seal.ID != next.seal.ID() {
		t.Errorf("got %+v", sub)
	}
	if e := s.entry(audit.DeviceRekey); e.Object != "lamp-1" || e.Actor != "lamp-1" || e.Key != id(d) || e.Data["sign"] != string(id(next)) || e.Data["sign_before"] != string(id(d)) ||
		e.Data["seal"] != string(next.seal.ID()) || e.Data["seal_before"] != string(d.seal.ID()) || e.Data["sign_jwk"] != string(next.sign.Public().JWK()) || e.Data["seal_jwk"] != string(next.seal.JWK()) {
		t.Errorf("the log says %+v", e)
	}
	rekey("by the key of before", id(d), change(d, other), watchword.ClientInvalid)

	// One key alone; the other stays.
	sealed := device{next.sign, other.seal}
	sub = rekey("the sealing key alone", id(next), change(next, sealed), "")
	if seal, _ := sub.SealKey(s.now); seal.ID != other.seal.ID() || len(s.entries(audit.DeviceRekey)) != 2 {
		t.Errorf("got %+v", sub)
	}
	if _, ok := sub.SignKey(id(next), s.now); !ok {
		t.Error("the signing key went too")
	}
	signed := device{other.sign, other.seal}
	sub = rekey("the signing key alone", id(next), change(sealed, signed), "")
	if _, ok := sub.SignKey(id(other), s.now); !ok {
		t.Errorf("got %+v", sub)
	}
	r = change(signed, newDevice(t))
	rekey("once", id(signed), r, "")
	k := newDevice(t)
	must(t, s.store.CreateSubject(t.Context(), watchword.Subject{
		Tenant: here, ID: "bob", Kind: watchword.Operator, State: watchword.Active, Created: s.now, Changed: s.now,
		Keys: []watchword.Key{{ID: id(k), Purpose: watchword.Sign, JWK: k.sign.Public().JWK(), State: watchword.KeyActive}},
	}, nil, by.DoneEntry(audit.KindFor(watchword.Operator, audit.DeviceCreate), "bob", s.now, nil)))
	_, err = s.Rekey(t.Context(), audit.Actor{Tenant: here, Subject: "bob", Key: id(k)}, change(k, other), s.now)
	wantCode(t, "an operator", err, watchword.Denied)
	_, err = s.Rekey(t.Context(), audit.Actor{Tenant: here, Subject: "nobody", Key: id(k)}, change(k, other), s.now)
	wantCode(t, "nobody", err, watchword.NotFound)
}

// live records subjects that changed.
type live func(id watchword.SubjectID)

func (f live) Apply(_ context.Context, c watchword.Change) error {
	if c.Kind == watchword.SubjectChanged && c.Version > 0 {
		f(watchword.SubjectID(c.ID))
	}
	return nil
}
