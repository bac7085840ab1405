package token_test

import (
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

const issuer = "https://localhost:8443"

var now = time.Unix(1_790_000_000, 0)

func signer(t testing.TB, crv string) *jose.Signer {
	t.Helper()
	k, err := jose.GenerateKey(crv)
	if err != nil {
		t.Fatal(err)
	}
	s, err := k.Signer()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// kind is one kind of credential: how a good one is made, and how it is checked. All
// are signed by one and the same key here, so that the kind alone keeps them apart.
type kind struct {
	name  string
	sign  func(s *jose.Signer) (string, error)
	check func(raw string, keys token.KeySet) error
}

const (
	dpop  = "DPoP proof"
	dev   = watchword.SubjectID("lamp-1")
	nonce = "AAAAAAAAAAAAAAAAAAAAAA"
	hash  = "n4bQgYhMfWWaL-qgxVrQFaO_TxsrC4Is0V1sFbDwCgg"
)

var kinds = []kind{
	{
		"assertion",
		func(s *jose.Signer) (string, error) {
			return token.SignAssertion(s, dev, issuer, now, token.AssertionLifetime)
		},
		func(raw string, keys token.KeySet) error {
			p, err := token.ParseAssertion(raw, false)
			if err != nil {
				return err
			}
			if err := p.CheckClaims(issuer, now); err != nil {
				return err
			}
			_, err = p.Verify(keys)
			return err
		},
	},
	{
		"access token",
		func(s *jose.Signer) (string, error) {
			return token.SignAccess(s, token.Grant{
				Issuer: issuer, Subject: watchword.Subject{ID: dev, Kind: watchword.Device}, Key: "k", JTI: "tok_1", Issued: now, Expires: now.Add(10 * time.Minute),
				Perm: []watchword.Permission{{Resource: "api:/v1/self/#", Actions: []string{"get"}}},
			})
		},
		func(raw string, keys token.KeySet) error {
			_, err := token.VerifyAccess(raw, keys, issuer, issuer, now, 0)
			return err
		},
	},
	{
		"enrollment",
		func(s *jose.Signer) (string, error) { return token.SignEnrollment(s, issuer, hash, "seal", now) },
		func(raw string, keys token.KeySet) error {
			for _, k := range keys {
				return token.VerifyEnrollment(raw, k, issuer, hash, "seal", now)
			}
			return nil
		},
	},
	{
		"command",
		func(s *jose.Signer) (string, error) {
			return token.SignCommand(s, token.Command{
				Issuer: issuer, Device: dev, ID: "cmd_1", Epoch: 1, Seq: 1, Function: "f", Args: []byte("{}"), By: "operator", Issued: now, Expires: now.Add(time.Minute),
			})
		},
		func(raw string, keys token.KeySet) error {
			_, err := token.VerifyCommand(raw, keys, issuer, dev, now, "")
			return err
		},
	},
	{
		"config",
		func(s *jose.Signer) (string, error) {
			return token.SignConfig(s, token.Config{Issuer: issuer, Device: dev, Version: 1, Document: []byte("{}"), Issued: now})
		},
		func(raw string, keys token.KeySet) error {
			_, err := token.VerifyConfig(raw, keys, issuer, dev, now)
			return err
		},
	},
	{
		"receipt",
		func(s *jose.Signer) (string, error) {
			return token.SignReceipt(s, token.Receipt{
				Device: dev, Issuer: issuer, Epoch: 1, Seq: 1, Command: "cmd_1", Hash: hash, Status: watchword.StatusDone, At: now,
			})
		},
		func(raw string, keys token.KeySet) error {
			_, _, err := token.VerifyReceipt(raw, keys, dev, issuer)
			return err
		},
	},
	{
		"order",
		func(s *jose.Signer) (string, error) {
			return token.SignOrder(s, token.Order{By: "operator", Server: issuer, Device: dev, Function: "f", ArgsHash: hash, Issued: now, Expires: now.Add(time.Minute)})
		},
		func(raw string, keys token.KeySet) error {
			_, err := token.VerifyOrder(raw, keys, hasIssuer, dev, now)
			return err
		},
	},
	{
		dpop,
		func(s *jose.Signer) (string, error) {
			return token.SignDPoP(s, "POST", issuer+"/oauth/token", "nonce", "", now)
		},
		func(raw string, keys token.KeySet) error {
			p, err := token.VerifyDPoP(raw, "POST", issuer+"/oauth/token", "", now)
			if err == nil && keys[p.Key] == nil { // the proof carries its key: whose it must be is the caller's to say
				err = watchword.Refuse(watchword.KeyUnknown, "another key")
			}
			return err
		},
	},
	{
		"signed time",
		func(s *jose.Signer) (string, error) { return token.SignTime(s, issuer, nonce, now) },
		func(raw string, keys token.KeySet) error {
			_, err := token.VerifyTime(raw, keys, issuer, nonce)
			return err
		},
	},
	{
		"key change", // one of its two tokens: what each must be is the same
		func(s *jose.Signer) (string, error) {
			raw, err := token.SignRekey(s, s, dev, issuer, "seal", now)
			return strings.TrimSuffix(strings.TrimPrefix(raw, `["`), `"]`), err
		},
		func(raw string, keys token.KeySet) error {
			for _, k := range keys {
				_, err := token.VerifyRekey(`["`+raw+`"]`, k, k, dev, issuer, now)
				return err
			}
			return nil
		},
	},
	{
		"trust bundle",
		func(s *jose.Signer) (string, error) {
			return token.SignTrust(token.Trust{
				Issuer: issuer, Version: 1, Epoch: 1, Roots: []*jose.PublicKey{s.Public()}, Issued: now, Expires: now.Add(24 * time.Hour),
			}, s)
		},
		func(raw string, keys token.KeySet) error {
			for _, k := range keys {
				_, err := token.VerifyTrust(raw, token.TrustPin(k), now)
				return err
			}
			return nil
		},
	},
}

// Every credential at every verifier: its own takes it, every other refuses it.
func TestATokenOfAnotherTypeIsRefused(t *testing.T) {
	for _, crv := range []string{jose.P256, jose.Ed} {
		s := signer(t, crv)
		keys := token.NewKeySet(s.Public())
		for _, made := range kinds {
			raw, err := made.sign(s)
			if err != nil {
				t.Fatalf("%s: %v", made.name, err)
			}
			for _, door := range kinds {
				err := door.check(raw, keys)
				if (made.name == door.name) != (err == nil) {
					t.Errorf("%s: a %s where a %s is expected: %v", crv, made.name, door.name, err)
				}
				want := watchword.TokenKind
				switch { // a proof's header is of another form, which is seen before its typ
				case door.name == dpop:
					want = watchword.DPoPInvalid
				case made.name == dpop:
					want = watchword.TokenMalformed
				}
				if err != nil && door.name != "trust bundle" && watchword.CodeOf(err) != want {
					t.Errorf("a %s as a %s is refused with %v, not for its kind", made.name, door.name, err)
				}
			}
		}
	}
}

// An encrypted token is no credential until it is decrypted; and two in an array, or one in a JSON serialization, are not a
// credential of these kinds.
func TestWhatIsNoCompactSignatureIsRefusedEverywhere(t *testing.T) {
	s := signer(t, jose.P256)
	keys := token.NewKeySet(s.Public())
	for _, k := range kinds {
		raw, err := k.sign(s)
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := jose.Encrypt(s.Public(), "JWT", []byte(raw))
		if err != nil {
			t.Fatal(err)
		}
		p := strings.Split(raw, ".")
		if len(p) != 3 {
			continue
		}
		for what, bad := range map[string]string{
			"sealed": sealed, "in an array": `["` + raw + `"]`, "twice in an array": `["` + raw + `","` + raw + `"]`, "quoted": `"` + raw + `"`,
			"flattened": `{"protected":"` + p[0] + `","payload":"` + p[1] + `","signature":"` + p[2] + `"}`, "with Bearer before": "Bearer " + raw,
			"detached": p[0] + ".." + p[2], "without a signature": p[0] + "." + p[1] + ".", "in capitals": strings.ToUpper(raw), "with a space before": " " + raw,
			"with a line behind": raw + "\n", "with a NUL behind": raw + "\x00", "with a part behind": raw + ".", "twice": raw + raw,
		} {
			if err := k.check(bad, keys); err == nil || watchword.CodeOf(err) == watchword.Internal {
				t.Errorf("a %s %s: %v", k.name, what, err)
			}
		}
	}
}

func TestEveryTokenTypeVerifiesItsSignature(t *testing.T) {
	s, other := signer(t, jose.P256), signer(t, jose.P256)
	for _, k := range kinds {
		raw, err := k.sign(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.check(raw, token.NewKeySet(other.Public())); err == nil {
			t.Errorf("%s: holds under another key", k.name)
		}
		parts := strings.Split(raw, ".")
		forged, err := k.sign(other)
		if err != nil {
			t.Fatal(err)
		}
		mixed := parts[0] + "." + strings.Split(forged, ".")[1] + "." + strings.Split(forged, ".")[2]
		if err := k.check(mixed, token.NewKeySet(s.Public())); err == nil {
			t.Errorf("%s: another key's signature under this key's header holds", k.name)
		}
		for i := 0; i < len(raw); i += 7 {
			c := byte('A')
			if raw[i] == c {
				c = 'B'
			}
			if err := k.check(raw[:i]+string(c)+raw[i+1:], token.NewKeySet(s.Public())); err == nil {
				t.Errorf("%s: byte %d changed holds", k.name, i)
			}
		}
	}
}

func TestTimeLimitsAreExact(t *testing.T) {
	s := signer(t, jose.P256)
	keys := token.NewKeySet(s.Public())
	raw, err := kinds[1].sign(s) // an access token of ten minutes
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		at   time.Duration
		late time.Duration
		want watchword.Code
	}{
		{"at its beginning", 0, 0, ""},
		{"a minute before, by a clock that is behind", -time.Minute, 0, ""},
		{"more than a minute before", -61 * time.Second, 0, watchword.TokenEarly},
		{"a nanosecond before its end", 10*time.Minute - 1, 0, ""},
		{"at its end, at its own endpoint", 10 * time.Minute, 0, watchword.TokenExpired},
		{"at its end, elsewhere", 10 * time.Minute, token.Skew, ""},
		{"a minute after its end, elsewhere", 11 * time.Minute, token.Skew, watchword.TokenExpired},
	} {
		if _, err := token.VerifyAccess(raw, keys, issuer, issuer, now.Add(tc.at), tc.late); watchword.CodeOf(err) != tc.want {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	for ttl, want := range map[time.Duration]time.Duration{
		time.Second:           2 * time.Second, // begun half a second into one: never shorter than asked for
		120 * time.Second:     121 * time.Second,
		token.CommandLifetime: token.CommandLifetime, // never longer than a command may live
		1500 * time.Second:    1501 * time.Second,
	} {
		if got := token.CommandExpiry(now.Add(500*time.Millisecond), ttl).Sub(now); got != want {
			t.Errorf("a command for %s ends after %s, want %s", ttl, got, want)
		}
	}
}

func TestVerifyNextTrust(t *testing.T) {
	root, stranger := signer(t, jose.P256), signer(t, jose.P256)
	make := func(s *jose.Signer, change func(*token.Trust)) string {
		b := token.Trust{Issuer: issuer, Version: 5, Epoch: 2, Roots: []*jose.PublicKey{s.Public()}, Issued: now, Expires: now.Add(24 * time.Hour)}
		if change != nil {
			change(&b)
		}
		return signedAnyway(t, b, s)
	}
	known, err := token.VerifyTrust(make(root, nil), token.TrustPin(root.Public()), now)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		raw  string
		want watchword.Code
	}{
		{"the same again", make(root, nil), ""},
		{"a later one", make(root, func(b *token.Trust) { b.Version = 6 }), ""},
		{"an older one", make(root, func(b *token.Trust) { b.Version = 4 }), watchword.BundleInvalid},
		{"an earlier epoch", make(root, func(b *token.Trust) { b.Version, b.Epoch = 6, 1 }), watchword.BundleInvalid},
		{"another issuer's", make(root, func(b *token.Trust) { b.Issuer = "https://evil.example" }), watchword.BundleInvalid},
		{"over", make(root, func(b *token.Trust) { b.Issued, b.Expires = now.Add(-48*time.Hour), now.Add(-24*time.Hour) }), watchword.BundleInvalid},
		{"living too long", make(root, func(b *token.Trust) { b.Expires = now.Add(91 * 24 * time.Hour) }), watchword.BundleInvalid},
		{"of a foreign key", make(stranger, nil), watchword.KeyUnknown},
	} {
		if _, err := token.VerifyNextTrust(tc.raw, known, now); watchword.CodeOf(err) != tc.want {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	if _, err := token.VerifyTrust(make(stranger, func(b *token.Trust) { b.Roots = append(b.Roots, root.Public()) }), token.TrustPin(root.Public()), now); err == nil {
		t.Error("a bundle by an unknown key that lists the pinned root is taken")
	}
}

func TestOrderCoversOneCommand(t *testing.T) {
	s := signer(t, jose.P256)
	args, end := []byte(`{"level": 40}`), now.Add(time.Minute)
	raw, err := token.SignOrder(s, token.Order{By: "alice", Server: issuer, Device: dev, Function: "lamp.set", ArgsHash: jose.Hash(args), Issued: now, Expires: end})
	if err != nil {
		t.Fatal(err)
	}
	o, err := token.VerifyOrder(raw, token.NewKeySet(s.Public()), hasIssuer, dev, now)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, function, args string
		by                   watchword.SubjectID
		end                  time.Time
		ok                   bool
	}{
		{"as ordered", "lamp.set", string(args), "alice", end, true},
		{"another function", "lamp.get", string(args), "alice", end, false},
		{"the same arguments with other bytes", "lamp.set", `{"level":40}`, "alice", end, false},
		{"another orderer", "lamp.set", string(args), "bob", end, false},
		{"another end", "lamp.set", string(args), "alice", end.Add(time.Second), false},
	} {
		if err := o.Covers(tc.function, []byte(tc.args), tc.by, tc.end); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if _, err := token.VerifyOrder(raw, token.NewKeySet(s.Public()), hasIssuer, "lamp-2", now); watchword.CodeOf(err) != watchword.AudienceMismatch {
		t.Errorf("for another device: %v", err)
	}
	other := func(server string) bool { return server == issuer+"/t/other" }
	if _, err := token.VerifyOrder(raw, token.NewKeySet(s.Public()), other, dev, now); watchword.CodeOf(err) != watchword.OrderInvalid {
		t.Errorf("at another tenant: %v", err)
	}
	if _, err := token.SignOrder(s, token.Order{By: "alice", Device: dev, Function: "lamp.set", ArgsHash: jose.Hash(args), Issued: now, Expires: end}); err == nil {
		t.Error("an order that names no server is signed")
	}
}

func hasIssuer(server string) bool { return server == issuer }

func TestLinks(t *testing.T) {
	code, pin := watchword.NewNonce(), strings.Repeat("p", 42)+"o"
	server, c, p, err := token.ParseEnrollmentLink(" " + token.EnrollmentLink("https://hub.local:8443", code, pin) + "\n")
	if err != nil || server != "https://hub.local:8443" || c != code || p != pin {
		t.Errorf("got %q %q %q %v", server, c, p, err)
	}
	for _, bad := range []string{
		"", "lamp", "http://hub/e#code=" + code + "&pin=" + pin, "https:///e#code=" + code + "&pin=" + pin, "https://hub/e?code=" + code + "&pin=" + pin,
		"https://hub/e#code=short&pin=" + pin, "https://hub/e#code=" + code + "&pin=short", "https://hub/x#code=" + code + "&pin=" + pin,
		"https://hub/e#code=" + code + "&pin=" + pin[:42] + "p", "https://hub/e#code=" + code + "&pin=" + pin[:42] + " ", "https://hub/e#code=" + code + "&pin=" + pin + "&pin=" + pin,
		"https://hub/e#code=" + code + "&pin=" + pin + "&x=1", "https://who@hub/e#code=" + code + "&pin=" + pin, "https://hub/e?#code=" + code + "&pin=" + pin,
		"https://hub/e?code=x#code=" + code + "&pin=" + pin, "https://hub/e#code=" + code + "%0A&pin=" + pin,
	} {
		_, _, _, err := token.ParseEnrollmentLink(bad)
		if watchword.CodeOf(err) != watchword.BadRequest {
			t.Errorf("%q: %v", bad, err)
		}
		if err != nil && strings.Contains(err.Error(), code) {
			t.Error("the error repeats the code")
		}
	}
}
