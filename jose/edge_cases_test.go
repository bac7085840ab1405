package jose_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// hardware is a key that gives the signatures that a test says.
type hardware struct {
	public crypto.PublicKey
	gives  []byte
	err    error
}

func (h *hardware) Public() crypto.PublicKey { return h.public }

func (h *hardware) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return h.gives, h.err }

// A key of hardware gives an ECDSA signature in ASN.1. What is no SEQUENCE of two INTEGERs of
// at most 32 bytes each makes no token; what is, becomes 64 bytes.
func TestSignaturesThatAKeyOfHardwareGives(t *testing.T) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h := &hardware{public: &k.PublicKey}
	s, err := jose.NewSigner(h)
	if err != nil {
		t.Fatal(err)
	}
	b := func(n int, first byte) string { return hex.EncodeToString([]byte{first}) + strings.Repeat("11", n-1) }
	seq := func(body string) string { return "30" + hex.EncodeToString([]byte{byte(len(body) / 2)}) + body }
	num := func(n int, first byte) string { return "02" + hex.EncodeToString([]byte{byte(n)}) + b(n, first) }
	for name, c := range map[string]struct {
		der  string
		want string // r||s, empty where there is none
	}{
		"two of 32 bytes":                {seq(num(32, 0x11) + num(32, 0x11)), b(32, 0x11) + b(32, 0x11)},
		"two of 33 with a zero":          {seq(num(33, 0) + num(33, 0)), b(32, 0x11) + b(32, 0x11)},
		"two of one byte":                {seq(num(1, 0x7f) + num(1, 1)), strings.Repeat("00", 31) + "7f" + strings.Repeat("00", 31) + "01"},
		"a zero":                         {seq("020100" + num(1, 1)), strings.Repeat("00", 63) + "01"},
		"a short one with a zero":        {seq(num(2, 0) + num(32, 0x7f)), strings.Repeat("00", 31) + "11" + b(32, 0x7f)},
		"the largest that is positive":   {seq(num(32, 0x7f) + num(32, 0x7f)), b(32, 0x7f) + b(32, 0x7f)},
		"one of 33 without a zero":       {seq(num(33, 0x11) + num(32, 0x11)), ""},
		"a second of 33 without a zero":  {seq(num(32, 0x11) + num(33, 0x11)), ""},
		"one of 34":                      {seq(num(34, 0) + num(32, 0x11)), ""},
		"a negative one":                 {seq(num(32, 0x80) + num(32, 0x11)), ""},
		"a negative second":              {seq(num(32, 0x11) + num(32, 0xff)), ""},
		"an empty one":                   {seq("0200" + num(32, 0x11)), ""},
		"one alone":                      {seq(num(32, 0x11)), ""},
		"three":                          {seq(num(1, 1) + num(1, 1) + num(1, 1)), ""},
		"a byte behind them":             {seq(num(1, 1)+num(1, 1)) + "00", ""},
		"a byte within, behind them":     {seq(num(1, 1) + num(1, 1) + "00"), ""},
		"a length that is too large":     {"3007" + num(1, 1) + num(1, 1), ""},
		"a length that is too small":     {"3005" + num(1, 1) + num(1, 1), ""},
		"a length in the long form":      {"3081" + "06" + num(1, 1) + num(1, 1), ""},
		"a set":                          {"3106" + num(1, 1) + num(1, 1), ""},
		"an octet string among them":     {seq("040101" + num(1, 1)), ""},
		"a length beyond the end":        {seq(num(1, 1) + "022101"), ""},
		"half a header":                  {"30", ""},
		"nothing":                        {"", ""},
		"a number without a length":      {seq(num(1, 1) + "02"), ""},
		"a number of one byte too many":  {seq(num(1, 1) + "020211"), ""},
		"numbers whose zero is not used": {seq(num(33, 0) + num(1, 0)), b(32, 0x11) + strings.Repeat("00", 32)},
	} {
		if h.gives, err = hex.DecodeString(c.der); err != nil {
			t.Fatal(err)
		}
		sig, err := s.Raw([]byte("message"))
		if (err == nil) != (c.want != "") || err == nil && hex.EncodeToString(sig) != c.want {
			t.Errorf("%s: got %x, %v, want %s", name, sig, err, c.want)
		}
		// None of them is a signature by this key: a card that gives it makes no token.
		if raw, err := s.Sign("JWT", []byte("{}")); err == nil {
			t.Errorf("%s: a token: %s", name, raw)
		}
		if sig, err := s.SignBytes([]byte("{}")); err == nil {
			t.Errorf("%s: a proof: %x", name, sig)
		}
	}
	h.err = errors.New("the card is gone")
	for name, f := range map[string]func() error{
		"Sign":      func() error { _, err := s.Sign("JWT", []byte("{}")); return err },
		"SignProof": func() error { _, err := s.SignProof("JWT", []byte("{}")); return err },
		"Prove":     func() error { _, err := s.SignBytes([]byte("m")); return err },
	} {
		if err := f(); watchword.CodeOf(err) != watchword.Unavailable || !errors.Is(err, h.err) {
			t.Errorf("%s without its card: %v", name, err)
		}
	}
}

// Numbers of a signature that begin with zeros are as good as others: one of 128 signatures
// has such a number.
func TestSignaturesWhoseNumbersAreShort(t *testing.T) {
	k, err := jose.GenerateKey(jose.P256)
	if err != nil {
		t.Fatal(err)
	}
	s, err := k.Signer()
	if err != nil {
		t.Fatal(err)
	}
	short := [2]int{}
	for range 5000 {
		sig, err := s.SignBytes([]byte("m"))
		if err != nil {
			t.Fatal(err)
		}
		for i := range short {
			if sig[32*i] == 0 {
				short[i]++
			}
		}
		if err := k.Public().VerifyBytes([]byte("m"), sig); err != nil {
			t.Fatalf("%x: %v", sig, err)
		}
		if short[0] > 1 && short[1] > 1 {
			return
		}
	}
	t.Errorf("of 5,000 signatures %v have a short number", short)
}

// Eight levels are the most, of objects and of lists; values side by side count once,
// and brackets in a string do not.
func TestNesting(t *testing.T) {
	nest := func(n int, open, closes string) string {
		return strings.Repeat(open, n) + "1" + strings.Repeat(closes, n)
	}
	for name, c := range map[string]struct {
		text string
		good bool
	}{
		"objects":                      {`{"a":` + nest(7, `{"a":`, "}") + "}", true},
		"one object more":              {`{"a":` + nest(8, `{"a":`, "}") + "}", false},
		"lists":                        {`{"a":` + nest(7, "[", "]") + "}", true},
		"one list more":                {`{"a":` + nest(8, "[", "]") + "}", false},
		"both":                         {`{"a":` + nest(3, `[{"a":`, "}]") + "}", true},
		"both, one more":               {`{"a":` + nest(4, `[{"a":`, "}]") + "}", false},
		"many side by side":            {`{"a":[` + strings.Repeat("[],{},", 50) + `1]}`, true},
		"brackets in a string":         {`{"a":"` + strings.Repeat("[{", 50) + `"}`, true},
		"behind a quote in a string":   {`{"a":"\"` + strings.Repeat("[", 50) + `"}`, true},
		"behind a string that ends so": {`{"a":"\\","b":` + nest(8, "[", "]") + `}`, false},
	} {
		err := jose.Walk([]byte(c.text), func(string, jsontext.Value) error { return nil })
		if (err == nil) != c.good || err != nil && watchword.CodeOf(err) != watchword.TokenMalformed {
			t.Errorf("%s: %v", name, err)
		}
		var into map[string]any
		if err := jose.Decode([]byte(c.text), &into); (err == nil) != c.good {
			t.Errorf("%s, decoded: %v", name, err)
		}
	}
}

// DecodeExact takes what the struct has, and names what it has not.
func TestMembersThatAreNotThere(t *testing.T) {
	type inner struct {
		B int `json:"b"`
	}
	type outer struct {
		A inner `json:"a"`
	}
	for text, field := range map[string]string{
		`{"a":{"b":1}}`: "ok", `{}`: "ok", `{"c":1}`: "c", `{"a":{"c":1}}`: "a/c", `{"a":{"b":"x"}}`: "a/b", `{"a":{"b":1},"a":{"b":2}}`: "", `[]`: "", `null`: "", `{`: "", `{} x`: "",
	} {
		var into outer
		err := jose.DecodeExact([]byte(text), &into)
		if field == "ok" {
			if err != nil {
				t.Errorf("%s: %v", text, err)
			}
			continue
		}
		e, ok := errors.AsType[*watchword.Error](err)
		if !ok || e.Code != watchword.TokenMalformed || e.Field != field {
			t.Errorf("%s: got %+v, want the field %q", text, err, field)
		}
		var plain outer
		if err := jose.Decode([]byte(text), &plain); (err == nil) != (field == "c" || field == "a/c") {
			t.Errorf("%s: Decode passes over what it does not know, and nothing else: %v", text, err)
		}
	}
}

func TestInvalidEncryptionKeys(t *testing.T) {
	k, err := jose.GenerateKey(jose.Ed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jose.Encrypt(k.Public(), "JWT", []byte("x")); watchword.CodeOf(err) != watchword.BadRequest {
		t.Errorf("to a key that signs: %v", err)
	}
	x, err := jose.GenerateKey(jose.X25519)
	if err != nil {
		t.Fatal(err)
	}
	o, err := x.Decrypter()
	if err != nil {
		t.Fatal(err)
	}
	ok, err := jose.Encrypt(x.Public(), "JWT", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(ok, ".")
	if plain, cty, err := o.Decrypt(ok, len(ok)); err != nil || string(plain) != "x" || cty != "JWT" {
		t.Errorf("got %s, %s, %v", plain, cty, err)
	}
	for name, c := range map[string]struct {
		raw  string
		most int
		want watchword.Code
	}{
		"a byte too long":    {ok, len(ok) - 1, watchword.TooLarge},
		"one part":           {parts[0], 4096, watchword.TokenMalformed},
		"two parts":          {parts[0] + ".", 4096, watchword.TokenMalformed},
		"three parts":        {parts[0] + ".." + parts[2], 4096, watchword.TokenMalformed},
		"four parts":         {parts[0] + ".." + parts[2] + "." + parts[3], 4096, watchword.TokenMalformed},
		"six parts":          {ok + ".", 4096, watchword.TokenMalformed},
		"a key in its place": {parts[0] + ".AAAA." + strings.Join(parts[2:], "."), 4096, watchword.TokenMalformed},
		"another tag":        {strings.Join(parts[:4], ".") + "." + strings.Repeat("A", 22), 4096, watchword.SignatureInvalid},
		"a short vector":     {parts[0] + "..AAAA." + strings.Join(parts[3:], "."), 4096, watchword.TokenMalformed},
		"a short tag":        {strings.Join(parts[:4], ".") + ".AAAA", 4096, watchword.TokenMalformed},
	} {
		if _, _, err := o.Decrypt(c.raw, c.most); watchword.CodeOf(err) != c.want {
			t.Errorf("%s: got %v, want %s", name, err, c.want)
		}
	}
}
