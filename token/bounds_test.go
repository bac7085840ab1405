package token_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// signed signs claims as they are.
func signed(t *testing.T, s *jose.Signer, typ string, claims map[string]any) string {
	t.Helper()
	b, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := s.Sign(typ, b)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// with returns claims with some changed; nil takes one away.
func with(claims map[string]any, change map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range claims {
		out[k] = v
	}
	for k, v := range change {
		if out[k] = v; v == nil {
			delete(out, k)
		}
	}
	return out
}

func wantCode(t *testing.T, what string, err error, want watchword.Code) {
	t.Helper()
	if got := watchword.CodeOf(err); got != want {
		t.Errorf("%s: got %q (%v), want %q", what, got, err, want)
	}
}

// The maximum lifetimes are part of the protocol: other implementations rely on them.
func TestMaximumLifetimes(t *testing.T) {
	for name, c := range map[string]struct{ got, want time.Duration }{
		"assertion": {token.AssertionLifetime, 5 * time.Minute}, "proof": {token.ProofLifetime, 5 * time.Minute}, "command": {token.CommandLifetime, 24 * time.Hour},
		"configuration": {token.ConfigLifetime, 30 * 24 * time.Hour}, "trust bundle": {token.TrustLifetime, 90 * 24 * time.Hour}, "DPoP proof": {token.DPoPLifetime, time.Minute},
		"signed time": {token.TimeLifetime, time.Minute}, "key change": {token.RekeyLifetime, 5 * time.Minute}, "clocks": {token.Skew, time.Minute},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", name, c.got, c.want)
		}
	}
}

// A device that waits for a nonce takes a command with that nonce alone. Without a clock it
// needs one, and with a clock the command's times count.
func TestACommandAnswersTheNonceThatTheDeviceWaitsFor(t *testing.T) {
	s := signer(t, jose.P256)
	keys := token.NewKeySet(s.Public())
	make := func(nonce string) string {
		raw, err := token.SignCommand(s, token.Command{
			Issuer: issuer, Device: dev, ID: "cmd_1", Epoch: 1, Seq: 1, Function: "f", Args: []byte("{}"), By: "alice", Nonce: nonce, Issued: now, Expires: now.Add(time.Minute),
		})
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	other := strings.Repeat("B", 22)
	for name, c := range map[string]struct {
		carries, waits string
		at             time.Time
		want           watchword.Code
	}{
		"its own, with a clock":            {nonce, nonce, now, ""},
		"its own, without a clock":         {nonce, nonce, time.Time{}, ""},
		"another's, with a clock":          {other, nonce, now, watchword.NonceMismatch},
		"another's, without a clock":       {other, nonce, time.Time{}, watchword.NonceMismatch},
		"none, where it waits for one":     {"", nonce, now, watchword.NonceMismatch},
		"none, and no clock":               {"", "", time.Time{}, watchword.NonceMismatch},
		"one, and it waits for none":       {nonce, "", now, ""},
		"none, and it waits for none":      {"", "", now, ""},
		"its own, at the end of the skew":  {nonce, nonce, now.Add(time.Minute + token.Skew - 1), ""},
		"its own, after the command's end": {nonce, nonce, now.Add(time.Minute + token.Skew), watchword.CommandExpired},
		"its own, from the future":         {nonce, nonce, now.Add(-token.Skew - time.Second), watchword.TokenEarly},
	} {
		got, err := token.VerifyCommand(make(c.carries), keys, issuer, dev, c.at, c.waits)
		wantCode(t, name, err, c.want)
		if err == nil && got.Nonce != c.carries {
			t.Errorf("%s: carries %q", name, got.Nonce)
		}
	}
	good := map[string]any{
		"iss": issuer, "aud": dev, "jti": "cmd_1", "iat": now.Unix(), "exp": now.Unix() + 60, "epoch": 1, "seq": 1, "cmd": "f", "args": map[string]any{}, "act": map[string]any{"sub": "alice"},
	}
	large := map[string]any{"a": strings.Repeat("x", watchword.MaxArgs-len(`{"a":""}`))}
	for name, c := range map[string]struct {
		change map[string]any
		want   watchword.Code
	}{
		"as it should be":              {nil, ""},
		"epoch 0":                      {map[string]any{"epoch": 0}, watchword.TokenMalformed},
		"number 0":                     {map[string]any{"seq": 0}, watchword.TokenMalformed},
		"no function":                  {map[string]any{"cmd": nil}, watchword.TokenMalformed},
		"an invalid function":          {map[string]any{"cmd": "a/b"}, watchword.TokenMalformed},
		"no arguments":                 {map[string]any{"args": nil}, watchword.TokenMalformed},
		"arguments that are no object": {map[string]any{"args": []int{1}}, watchword.TokenMalformed},
		"arguments of 8 KiB":           {map[string]any{"args": large}, ""},
		"a byte more":                  {map[string]any{"args": map[string]any{"a": large["a"].(string) + "x"}}, watchword.TokenMalformed},
		"an id of 128 bytes":           {map[string]any{"jti": strings.Repeat("c", 128)}, ""},
		"an id of 129":                 {map[string]any{"jti": strings.Repeat("c", 129)}, watchword.TokenMalformed},
		"a life of a day":              {map[string]any{"exp": now.Unix() + 24*3600}, ""},
		"a second more":                {map[string]any{"exp": now.Unix() + 24*3600 + 1}, watchword.TokenLifetime},
		"no life":                      {map[string]any{"exp": now.Unix()}, watchword.TokenLifetime},
	} {
		_, err := token.VerifyCommand(signed(t, s, token.TypCommand, with(good, c.change)), keys, issuer, dev, now, "")
		wantCode(t, name, err, c.want)
	}
}

// The mandatory claims of a receipt; its result is read back unchanged.
func TestReceiptClaims(t *testing.T) {
	s := signer(t, jose.P256)
	keys := token.NewKeySet(s.Public())
	good := map[string]any{"iss": dev, "aud": issuer, "jti": "r1", "iat": now.Unix(), "epoch": 1, "seq": 1, "cid": "cmd_1", "ch": hash, "st": "done", "result": map[string]any{"lux": 3}}
	for name, c := range map[string]struct {
		change map[string]any
		want   watchword.Code
	}{
		"as it should be":        {nil, ""},
		"without a result":       {map[string]any{"result": nil}, ""},
		"without a time":         {map[string]any{"iat": nil}, ""},
		"epoch 0":                {map[string]any{"epoch": 0}, watchword.TokenMalformed},
		"number 0":               {map[string]any{"seq": 0}, watchword.TokenMalformed},
		"of no command":          {map[string]any{"cid": nil}, watchword.TokenMalformed},
		"an id of 128 bytes":     {map[string]any{"cid": strings.Repeat("c", 128)}, ""},
		"an id of 129":           {map[string]any{"cid": strings.Repeat("c", 129)}, watchword.TokenMalformed},
		"a hash that is short":   {map[string]any{"ch": hash[:42]}, watchword.TokenMalformed},
		"a hash that is long":    {map[string]any{"ch": hash + "A"}, watchword.TokenMalformed},
		"without a status":       {map[string]any{"st": nil}, watchword.TokenMalformed},
		"with another status":    {map[string]any{"st": "queued"}, watchword.TokenMalformed},
		"without jti":            {map[string]any{"jti": nil}, watchword.TokenMalformed},
		"of another device":      {map[string]any{"iss": "lamp-2"}, watchword.IssuerMismatch},
		"for another server":     {map[string]any{"aud": "https://evil.example"}, watchword.AudienceMismatch},
		"for another beside it":  {map[string]any{"aud": []any{issuer, "https://evil.example"}}, watchword.AudienceMismatch},
		"for this one in a list": {map[string]any{"aud": []any{issuer}}, ""},
	} {
		raw := signed(t, s, token.TypReceipt, with(good, c.change))
		r, key, err := token.VerifyReceipt(raw, keys, dev, issuer)
		wantCode(t, name, err, c.want)
		if err != nil {
			continue
		}
		result, err := token.ReceiptResult(raw)
		if err != nil || string(result) != string(r.Result) || (len(result) > 0) != (name != "without a result") || key != s.Public().ID() || r.Issuer != issuer || r.Device != dev {
			t.Errorf("%s: got %+v with %s, %v", name, r, result, err)
		}
		if name == "as it should be" && string(result) != `{"lux":3}` {
			t.Errorf("the result is %s", result)
		}
	}
	raw, err := token.SignReceipt(s, token.Receipt{Device: dev, Issuer: issuer, Epoch: 1, Seq: 1, Command: "c", Hash: hash, Status: watchword.StatusDone, Result: json.RawMessage(`[1]`), At: now})
	if err != nil {
		t.Fatal(err)
	}
	if result, err := token.ReceiptResult(raw); err != nil || string(result) != "[1]" {
		t.Errorf("got %s, %v", result, err)
	}
	_, err = token.SignReceipt(s, token.Receipt{Result: json.RawMessage(`"` + strings.Repeat("x", watchword.MaxDocument) + `"`)})
	wantCode(t, "a large one", err, watchword.TooLarge)
	_, err = token.SignReceipt(s, token.Receipt{Result: json.RawMessage("{")})
	wantCode(t, "a result that is no JSON", err, watchword.BadRequest)
	_, err = token.ReceiptResult("x")
	wantCode(t, "what is no receipt", err, watchword.TokenMalformed)
}

// The edges of a DPoP proof, to the second and the byte.
func TestDPoPProofLimits(t *testing.T) {
	s := signer(t, jose.P256)
	good := map[string]any{"jti": "j", "htm": "GET", "htu": "https://api.example/a", "iat": now.Unix()}
	for name, c := range map[string]struct {
		change map[string]any
		at     time.Duration
		want   watchword.Code
	}{
		"as it should be":        {nil, 0, ""},
		"as old as it may be":    {nil, token.DPoPLifetime + token.Skew, ""},
		"older":                  {nil, token.DPoPLifetime + token.Skew + 1, watchword.DPoPInvalid},
		"as early as it may be":  {nil, -token.Skew, ""},
		"earlier":                {nil, -token.Skew - 1, watchword.DPoPInvalid},
		"without a time":         {map[string]any{"iat": nil}, 0, watchword.DPoPInvalid},
		"without jti":            {map[string]any{"jti": nil}, 0, watchword.DPoPInvalid},
		"a jti of 128 bytes":     {map[string]any{"jti": strings.Repeat("j", 128)}, 0, ""},
		"of 129":                 {map[string]any{"jti": strings.Repeat("j", 129)}, 0, watchword.DPoPInvalid},
		"a nonce of 128 bytes":   {map[string]any{"nonce": strings.Repeat("n", 128)}, 0, ""},
		"of 129 too":             {map[string]any{"nonce": strings.Repeat("n", 129)}, 0, watchword.DPoPInvalid},
		"another method":         {map[string]any{"htm": "get"}, 0, watchword.DPoPInvalid},
		"an address with a name": {map[string]any{"htu": "https://u@api.example/a"}, 0, watchword.DPoPInvalid},
		"an address of a port":   {map[string]any{"htu": "https://api.example:444/a"}, 0, watchword.DPoPInvalid},
		"its own port":           {map[string]any{"htu": "https://api.example:443/a"}, 0, ""},
		"the port of http":       {map[string]any{"htu": "https://api.example:80/a"}, 0, watchword.DPoPInvalid},
		"over http":              {map[string]any{"htu": "http://api.example/a"}, 0, watchword.DPoPInvalid},
	} {
		b, err := json.Marshal(with(good, c.change))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := s.SignProof(token.TypDPoP, b)
		if err != nil {
			t.Fatal(err)
		}
		_, err = token.VerifyDPoP(raw, "GET", "https://api.example/a", "", now.Add(c.at))
		wantCode(t, name, err, c.want)
	}
	for typ, want := range map[string]watchword.Code{"dpop+jwt": "", "at+jwt": watchword.DPoPInvalid} {
		b, err := json.Marshal(good)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := s.SignProof(typ, b)
		if err != nil {
			t.Fatal(err)
		}
		_, err = token.VerifyDPoP(raw, "GET", "https://api.example/a", "", now)
		wantCode(t, typ, err, want)
	}
}

func TestNonceAndExpiryLimits(t *testing.T) {
	for n, good := range map[string]bool{
		strings.Repeat("0", 22): true, strings.Repeat("9", 22): true, strings.Repeat("A", 22): true, strings.Repeat("Z", 22): true, strings.Repeat("a", 22): true, strings.Repeat("z", 22): true,
		strings.Repeat("_", 22): true, strings.Repeat("/", 22): false, strings.Repeat(":", 22): false, strings.Repeat("@", 22): false, strings.Repeat("[", 22): false,
		strings.Repeat("`", 22): false, strings.Repeat("{", 22): false, strings.Repeat("a", 64): true, "/" + strings.Repeat("a", 22): false, strings.Repeat("a", 22) + "/": false,
	} {
		if err := token.CheckTimeNonce(n); (err == nil) != good {
			t.Errorf("nonce %q: %v", n, err)
		}
	}
	for ttl, want := range map[time.Duration]time.Duration{time.Second: time.Second, token.CommandLifetime: token.CommandLifetime, token.CommandLifetime - time.Second: token.CommandLifetime - time.Second} {
		if got := token.CommandExpiry(now, ttl).Sub(now); got != want {
			t.Errorf("ordered at a whole second for %s it ends after %s", ttl, got)
		}
	}
}

func TestThePinOfABundle(t *testing.T) {
	old, next := signer(t, jose.P256), signer(t, jose.P256)
	bundle := token.Trust{
		Issuer: issuer, Version: 1, Epoch: 1, Roots: []*jose.PublicKey{old.Public(), next.Public()}, Command: []*jose.PublicKey{old.Public()}, Issued: now, Expires: now.Add(token.TrustLifetime),
	}
	raw, err := token.SignTrust(bundle, old, next)
	if err != nil {
		t.Fatal(err)
	}
	if pin, err := token.TrustPinOfBundle(raw); err != nil || pin != token.TrustPin(next.Public()) {
		t.Errorf("got %s, %v, want the newest root's", pin, err)
	}
	bundle.Roots = nil
	_, err = token.TrustPinOfBundle(signedAnyway(t, bundle, old))
	wantCode(t, "a bundle without a root", err, watchword.BundleInvalid)
	_, err = token.TrustPinOfBundle("x")
	wantCode(t, "what is no bundle", err, watchword.TokenMalformed)
}

// The issuer answers for its tokens of every audience; elsewhere one of them counts.
func TestIssuerVerifiesTokensOfEveryAudience(t *testing.T) {
	s := signer(t, jose.P256)
	keys := token.NewKeySet(s.Public())
	make := func(audience string) string {
		raw, err := token.SignAccess(s, token.Grant{
			Issuer: issuer, Audience: audience, Subject: watchword.Subject{ID: dev, Kind: watchword.Device}, Key: "k", JTI: "tok_1", Issued: now, Expires: now.Add(time.Minute),
		})
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	for audience, here := range map[string]watchword.Code{"": "", "https://api.example": watchword.AudienceMismatch} {
		raw := make(audience)
		a, err := token.VerifyIssued(raw, keys, issuer, now)
		if err != nil || a.JTI != "tok_1" {
			t.Errorf("audience %q: %+v, %v", audience, a, err)
		}
		_, err = token.VerifyAccess(raw, keys, issuer, issuer, now, 0)
		wantCode(t, "at the issuer's own endpoint, "+audience, err, here)
		_, err = token.VerifyIssued(raw, keys, issuer, now.Add(time.Minute))
		wantCode(t, "at its end, "+audience, err, watchword.TokenExpired)
		_, err = token.VerifyIssued(raw, token.NewKeySet(signer(t, jose.P256).Public()), issuer, now)
		wantCode(t, "by another key, "+audience, err, watchword.KeyUnknown)
	}
	_, err := token.VerifyIssued("x", keys, issuer, now)
	wantCode(t, "what is no token", err, watchword.TokenMalformed)
	_, err = token.VerifyRekey(`["`+strings.Repeat("x", watchword.MaxToken)+`"]`, s.Public(), s.Public(), dev, issuer, now)
	wantCode(t, "a large key change", err, watchword.TooLarge)
}

// What a token gives is bound to its record by one hash, in which no part can become another's.
func TestClaimsDigestIsUnambiguous(t *testing.T) {
	perm := func(rs ...string) (out []watchword.Permission) {
		for _, r := range rs {
			out = append(out, watchword.Permission{Resource: r, Actions: []string{"pub"}})
		}
		return out
	}
	seen := map[[32]byte]int{}
	for i, g := range []token.Grant{
		{Issuer: "a"},
		{Issuer: "a", Bound: "bc"},
		{Issuer: "ab", Bound: "c"},
		{Issuer: "abc"},
		{Issuer: "x", Audience: "z"},
		{Issuer: "a", Perm: perm("topic:a")},
		{Issuer: "a", Deny: perm("topic:a")},
		{Issuer: "a", Perm: perm("topic:a"), Deny: perm("topic:a")},
		{Issuer: "a", Perm: perm("topic:a", "topic:b")},
		{Issuer: "a", Perm: perm("topic:a"), Deny: perm("topic:b")},
	} {
		says := g.ClaimsDigest()
		if other, twice := seen[says]; twice {
			t.Errorf("grants %d and %d say the same", other, i)
		}
		seen[says] = i
	}
	if (token.Grant{Issuer: "x", Audience: "a"}).ClaimsDigest() != (token.Grant{Issuer: "a"}).ClaimsDigest() {
		t.Error("the audience is the issuer where none is said, and says something else")
	}
	s := signer(t, jose.P256)
	g := token.Grant{
		Issuer: issuer, Subject: watchword.Subject{ID: dev, Kind: watchword.Device}, Key: "k", JTI: "tok_1", Bound: "b", Issued: now, Expires: now.Add(time.Minute),
		Perm: perm("topic:a/#"), Deny: perm("topic:a/b"),
	}
	raw, err := token.SignAccess(s, g)
	if err != nil {
		t.Fatal(err)
	}
	if a, err := token.VerifyAccess(raw, token.NewKeySet(s.Public()), issuer, issuer, now, 0); err != nil || a.ClaimsDigest() != g.ClaimsDigest() {
		t.Errorf("the token says something else than its grant: %v", err)
	}
}

// A grant that fits gives a token within the bound, whatever else it contains; one that does not would have been longer but
// for a few bytes.
func TestCheckSizeMatchesTheBound(t *testing.T) {
	s := signer(t, jose.P256)
	g := token.Grant{Issuer: issuer, Subject: watchword.Subject{ID: dev, Kind: watchword.Device}}
	longest := func() string {
		full := g
		full.JTI, full.Key, full.Bound = watchword.NewID("tok_", now), s.Public().ID(), s.Public().ID()
		full.Issued, full.Expires = now, now.Add(time.Minute)
		raw, err := token.SignAccess(s, full)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	last := 0
	for i := 1; i < 5000; i++ {
		g.Perm = []watchword.Permission{{Resource: "topic:" + strings.Repeat("x", i), Actions: []string{"pub"}}}
		err := g.CheckSize()
		n := len(longest())
		if err == nil {
			if last = n; n > watchword.MaxToken {
				t.Fatalf("what fits has %d bytes", n)
			}
			continue
		}
		if watchword.CodeOf(err) != watchword.TokenTooLarge || !strings.Contains(err.Error(), string(dev)) {
			t.Errorf("got %v", err)
		}
		break
	}
	if last < watchword.MaxToken-16 {
		t.Errorf("a token of %d bytes fits, and the next one does not", last)
	}
}

// A claim that nearly always says the same is compared whole: another text of the same
// length, of another length, or with an escape in it, is what it is.
func TestSimilarClaimNamesAreIgnored(t *testing.T) {
	s := signer(t, jose.P256)
	keys := token.NewKeySet(s.Public())
	accessToken := map[string]any{
		"iss": issuer, "sub": dev, "aud": issuer, "client_id": dev, "jti": "tok_1", "iat": now.Unix(), "exp": now.Unix() + 60, "key": "k",
		"dev": map[string]any{"id": dev}, "perm": []any{},
	}
	near := strings.Replace(issuer, "8443", "8444", 1)
	for name, c := range map[string]struct {
		change map[string]any
		want   watchword.Code
	}{
		"as it should be":              {nil, ""},
		"an issuer of the same length": {map[string]any{"iss": near}, watchword.IssuerMismatch},
		"a longer issuer":              {map[string]any{"iss": issuer + "/"}, watchword.IssuerMismatch},
		"a shorter issuer":             {map[string]any{"iss": issuer[:len(issuer)-1]}, watchword.IssuerMismatch},
		"no issuer":                    {map[string]any{"iss": nil}, watchword.IssuerMismatch},
		"an audience of that length":   {map[string]any{"aud": near}, watchword.AudienceMismatch},
		"no audience":                  {map[string]any{"aud": nil}, watchword.AudienceMismatch},
		"an issuer that is a number":   {map[string]any{"iss": 7}, watchword.TokenMalformed},
	} {
		_, err := token.VerifyAccess(signed(t, s, token.TypAccess, with(accessToken, c.change)), keys, issuer, issuer, now, 0)
		wantCode(t, name, err, c.want)
	}
	a, err := token.VerifyAccess(signed(t, s, token.TypAccess, with(accessToken, map[string]any{"client_id": "lamp-2"})), keys, issuer, issuer, now, 0)
	if err != nil || a.Subject != dev || a.ClientID != "lamp-2" {
		t.Errorf("a client id of the subject's length is read as %+v, %v", a, err)
	}
	assertion := map[string]any{"iss": dev, "sub": dev, "aud": issuer, "jti": "j", "iat": now.Unix(), "exp": now.Unix() + 60}
	for name, c := range map[string]struct {
		change map[string]any
		good   bool
	}{
		"as it should be":               {nil, true},
		"a subject of the same length":  {map[string]any{"sub": "lamp-2"}, false},
		"an issuer of the same length":  {map[string]any{"iss": "lamp-2"}, false},
		"a longer subject":              {map[string]any{"sub": "lamp-11"}, false},
		"an audience of that length":    {map[string]any{"aud": near}, false},
		"neither issuer nor subject":    {map[string]any{"iss": nil, "sub": nil}, false},
		"an empty issuer and a subject": {map[string]any{"iss": ""}, false},
	} {
		p, err := token.ParseAssertion(signed(t, s, token.TypAssertion, with(assertion, c.change)), false)
		if err == nil {
			err = p.CheckClaims(issuer, now)
		}
		if err == nil {
			_, err = p.Verify(keys)
		}
		if (err == nil) != c.good {
			t.Errorf("an assertion, %s: %v", name, err)
		}
	}
}
