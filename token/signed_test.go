package token_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// resultSeeds is what a function may print as its result.
var resultSeeds = []string{
	`{}`, `null`, `1`, `"x"`, `[1,2]`, `{"a":{"b":[true]}}`, `{"a":1,"a":2}`, `{"a":{"b":1,"b":2}}`, `{"a":1,"\u0061":2}`,
	strings.Repeat("[", 7) + strings.Repeat("]", 7), strings.Repeat("[", 8) + strings.Repeat("]", 8), strings.Repeat("[", 12) + strings.Repeat("]", 12),
	strings.Repeat(`{"a":`, 12) + "1" + strings.Repeat("}", 12), `"\ud800"`, `"\udc00\ud800"`, `{"\ud800":1}`, `"\u0000"`, "\"\x00\"", "\"\xff\"", "\"\xed\xa0\x80\"",
	`1e400`, `-0`, `01`, `1.`, `+1`, `NaN`, `9007199254740993`, `"<>&\u2028"`, ``, ` `, `{`, `{} {}`, `{}x`, "\ufeff{}", `"` + strings.Repeat("x", 20_000) + `"`,
	`"` + strings.Repeat("<", 5_000) + `"`, `"` + strings.Repeat("x", 40_000) + `"`, `"},"st":"done`, `1,"st":"failed"`, `{}},"x":{`,
}

// FuzzSignReceipt: a receipt that is signed is one that the server takes, with the same result.
func FuzzSignReceipt(f *testing.F) {
	for _, s := range resultSeeds {
		f.Add([]byte(s))
	}
	s := signer(f, jose.P256)
	f.Fuzz(func(t *testing.T, result []byte) {
		r := token.Receipt{
			Device: dev, Issuer: issuer, Epoch: 1, Seq: 2, Command: "cmd_1", Hash: strings.Repeat("h", 43), Status: watchword.StatusDone, Result: result, At: now,
		}
		raw, err := token.SignReceipt(s, r)
		if err != nil {
			if code := watchword.CodeOf(err); code != watchword.BadRequest && code != watchword.TooLarge {
				t.Errorf("%q: %v", result, err)
			}
			return
		}
		got, _, err := token.VerifyReceipt(raw, token.NewKeySet(s.Public()), dev, issuer)
		if err != nil {
			t.Fatalf("%q is signed, and refused: %v", result, err)
		}
		if got.Status != r.Status || got.Seq != r.Seq || got.Command != r.Command {
			t.Fatalf("%q makes a receipt that says %+v", result, got)
		}
		var said, heard any
		if json.Unmarshal(result, &said) == nil && (json.Unmarshal(got.Result, &heard) != nil || fmt.Sprint(said) != fmt.Sprint(heard)) {
			t.Fatalf("%q is read as %q", result, got.Result)
		}
	})
}

// Whatever the arguments of a function that signs, its output is accepted by the verifier, or there is an error.
func TestSignedTokensVerify(t *testing.T) {
	s, other := signer(t, jose.P256), signer(t, jose.Ed)
	keys := token.NewKeySet(s.Public())
	texts := []string{"", "lamp-1", "a b", "\xff", "\ud7ff", "x\x00y", strings.Repeat("x", 129), strings.Repeat("x", 5000), `"`, "https://hub.example"}
	times := []time.Time{{}, time.Unix(0, 0), now, now.Add(token.TrustLifetime + time.Hour), time.Unix(1<<53, 0), time.Unix(-5, 0)}
	numbers := []int64{-1, 0, 1, 1<<53 - 1, 1 << 53}
	documents := append([]string{`{"a":1}`}, resultSeeds...)
	signed, refused := 0, 0
	holds := func(what string, err, verified error) {
		t.Helper()
		if err != nil {
			refused++
			return
		}
		signed++
		if verified != nil {
			t.Errorf("%s is signed, and refused: %v", what, verified)
		}
	}
	each := func(f func(text string, at time.Time, n int64, doc string)) {
		for i := range 200 {
			f(texts[i%len(texts)], now, 1, documents[0])
			f("lamp-1", times[i%len(times)], 1, documents[0])
			f("lamp-1", now, numbers[i%len(numbers)], documents[0])
			f("lamp-1", now, 1, documents[i%len(documents)])
			f(texts[i%len(texts)], times[i/2%len(times)], numbers[i/3%len(numbers)], documents[i/5%len(documents)])
		}
	}
	each(func(text string, at time.Time, n int64, doc string) {
		what := fmt.Sprintf("%.20q %d %d %.20q", text, at.Unix(), n, doc)
		id, k := watchword.SubjectID(text), watchword.KeyID(text)
		c := token.Command{Issuer: issuer, Device: id, ID: watchword.CommandID(text), Epoch: n, Seq: n, Function: text, Args: []byte(doc), By: id, Order: text, Issued: at, Expires: at.Add(time.Minute)}
		raw, err := token.SignCommand(s, c)
		_, verr := token.VerifyCommand(raw, keys, issuer, id, at, "")
		holds("command "+what, err, verr)

		raw, err = token.SignConfig(s, token.Config{Issuer: text, Device: id, Epoch: n, Version: n, Document: json.RawMessage(doc), Issued: at})
		_, verr = token.VerifyConfig(raw, keys, text, id, at)
		holds("config "+what, err, verr)

		raw, err = token.SignOrder(s, token.Order{By: id, Server: issuer, Device: id, Function: text, ArgsHash: text, Issued: at, Expires: at.Add(time.Minute)})
		_, verr = token.VerifyOrder(raw, keys, hasIssuer, id, at)
		holds("order "+what, err, verr)

		raw, err = token.SignReceipt(s, token.Receipt{Device: id, Issuer: text, Epoch: n, Seq: n, Command: watchword.CommandID(text), Hash: strings.Repeat("h", 43), Status: watchword.StatusFailed, Result: json.RawMessage(doc), At: at})
		_, _, verr = token.VerifyReceipt(raw, keys, id, text)
		holds("receipt "+what, err, verr)

		raw, err = token.SignAssertion(s, id, text, at, time.Duration(n)*time.Minute)
		_, verr = checkAssertion(raw, text, at, keys)
		holds("assertion "+what, err, verr)

		raw, err = token.SignEnrollment(s, text, text, k, at)
		holds("enrollment "+what, err, token.VerifyEnrollment(raw, s.Public(), text, text, k, at))

		raw, err = token.SignDPoP(s, text, "https://hub.example/"+text, text, text, at)
		_, verr = token.VerifyDPoP(raw, text, "https://hub.example/"+text, text, at)
		holds("proof "+what, err, verr)

		raw, err = token.SignTime(s, text, text, at)
		_, verr = token.VerifyTime(raw, keys, text, text)
		holds("time "+what, err, verr)

		raw, err = token.SignAccess(s, token.Grant{
			Issuer: text, Subject: watchword.Subject{ID: id, Labels: watchword.Labels{text: text}}, Key: k, JTI: text, Issued: at, Expires: at.Add(time.Minute),
			Perm: []watchword.Permission{{Resource: text, Actions: []string{text}}}, Audience: text, Bound: k,
		})
		a, verr := token.VerifyAccess(raw, keys, text, text, at, 0)
		if verr == nil {
			_, _, verr = a.Permissions()
		}
		holds("access token "+what, err, verr)

		for _, to := range []*jose.Signer{s, other} {
			raw, err = token.SignRekey(s, to, id, text, k, at)
			_, verr = token.VerifyRekey(raw, s.Public(), to.Public(), id, text, at)
			holds("key change "+what, err, verr)
		}

		b := token.Trust{Issuer: text, Version: n, Epoch: n, Roots: []*jose.PublicKey{s.Public()}, Witnesses: []string{text}, Quorum: n, Issued: at, Expires: at.Add(time.Hour)}
		raw, err = token.SignTrust(b, s)
		_, verr = token.VerifyTrust(raw, token.TrustPin(s.Public()), at)
		holds("bundle "+what, err, verr)
	})
	if signed < 1000 || refused < 1000 {
		t.Errorf("%d were signed, %d refused: the cases show little", signed, refused)
	}
}

func checkAssertion(raw, iss string, at time.Time, keys token.KeySet) (token.Assertion, error) {
	p, err := token.ParseAssertion(raw, false)
	if err != nil {
		return token.Assertion{}, err
	}
	if err := p.CheckClaims(iss, at); err != nil {
		return token.Assertion{}, err
	}
	return p.Verify(keys)
}
