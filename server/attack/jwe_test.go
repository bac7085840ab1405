package attack_test

import (
	"bytes"
	"compress/flate"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math/big"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/token"
)

// craftedJWE is a compact JWE whose parts can be anything; what it was sealed to can open it.
type craftedJWE struct {
	head          map[string]json.RawMessage
	key, iv, cut  []byte // cut is what is shown of the tag
	plain         []byte
	apu, apv, alg string
}

// seal encrypts as a sender would that manipulates the header, but knows the recipient's key.
func (j craftedJWE) seal(t testing.TB, to *ecdh.PublicKey) string {
	t.Helper()
	ephemeral, err := to.Curve().GenerateKey(rand.Reader)
	must(t, err)
	if j.head["epk"] == nil {
		j.head["epk"] = json.RawMessage(epk(t, ephemeral.PublicKey()))
	}
	z, err := ephemeral.ECDH(to)
	must(t, err)
	h := sha256.New()
	word := func(n int) { must(t, binary.Write(h, binary.BigEndian, uint32(n))) }
	word(1)
	h.Write(z)
	for _, s := range []string{j.alg, j.apu, j.apv} {
		word(len(s))
		h.Write([]byte(s))
	}
	word(256)
	block, err := aes.NewCipher(h.Sum(nil))
	must(t, err)
	gcm, err := cipher.NewGCM(block)
	must(t, err)
	iv := make([]byte, 12)
	_, err = rand.Read(iv)
	must(t, err)
	b, err := json.Marshal(j.head)
	must(t, err)
	head := b64(b)
	sealed := gcm.Seal(nil, iv, j.plain, []byte(head))
	if j.iv != nil {
		iv = j.iv
	}
	n := len(sealed) - 16
	tag := sealed[n:]
	if j.cut != nil {
		tag = tag[:len(j.cut)]
	}
	return head + "." + b64(j.key) + "." + b64(iv) + "." + b64(sealed[:n]) + "." + b64(tag)
}

func epk(t testing.TB, k *ecdh.PublicKey) string {
	t.Helper()
	b := k.Bytes()
	if k.Curve() == ecdh.X25519() {
		return `{"kty":"OKP","crv":"X25519","x":"` + b64(b) + `"}`
	}
	return `{"kty":"EC","crv":"P-256","x":"` + b64(b[1:33]) + `","y":"` + b64(b[33:]) + `"}`
}

// The seal of a command: whatever a sender writes around what is inside, a device
// opens what is sealed to it in the one way, and nothing else.
func TestDeviceOpensSealedCommands(t *testing.T) {
	srv := serve(t, nil)
	ring := srv.stealKeys()
	for _, curve := range []string{"P-256", "X25519"} {
		t.Run(curve, func(t *testing.T) {
			id := watchword.SubjectID("lamp-" + strings.ToLower(curve))
			v := counting(srv.enroll(id, device.Options{SealCurve: curve}, nil))
			_, public := v.Keys()
			to := ecdhOf(t, public)
			unknown, err := to.Curve().GenerateKey(rand.Reader)
			must(t, err)
			other := map[ecdh.Curve]ecdh.Curve{ecdh.P256(): ecdh.X25519(), ecdh.X25519(): ecdh.P256()}[to.Curve()]
			foreign, err := other.GenerateKey(rand.Reader)
			must(t, err)
			seq := int64(10)
			command := func() []byte {
				seq++
				raw, err := token.SignCommand(ring.CommandSigner(), token.Command{
					Issuer: ring.Issuer(), Device: id, ID: watchword.CommandID(watchword.NewID("cmd_", time.Now())), Epoch: 1, Seq: seq,
					Function: "lamp.set", Args: []byte(`{}`), By: "operator", Issued: time.Now(), Expires: time.Now().Add(time.Minute),
				})
				must(t, err)
				return []byte(raw)
			}
			good := func() craftedJWE {
				return craftedJWE{plain: command(), alg: "A256GCM", head: map[string]json.RawMessage{
					"alg": json.RawMessage(`"ECDH-ES"`), "enc": json.RawMessage(`"A256GCM"`), "cty": json.RawMessage(`"JWT"`), "kid": json.RawMessage(`"` + string(public.ID()) + `"`),
				}}
			}
			edit := func(f func(*craftedJWE)) string { j := good(); f(&j); return j.seal(t, to) }
			member := func(name, value string) string {
				return edit(func(j *craftedJWE) { j.head[name] = json.RawMessage(value) })
			}
			point := func(x, y *big.Int) string {
				return `{"kty":"EC","crv":"P-256","x":"` + b64(x.FillBytes(make([]byte, 32))) + `","y":"` + b64(y.FillBytes(make([]byte, 32))) + `"}`
			}
			x25519 := func(b []byte) string { return `{"kty":"OKP","crv":"X25519","x":"` + b64(b) + `"}` }
			one, p := big.NewInt(1), mustInt(t, "ffffffff00000001000000000000000000000000ffffffffffffffffffffffff")
			low := make([]byte, 32)
			low[0] = 1
			order8, err := base64.RawURLEncoding.DecodeString("4Ot6fDtBuK4WVuP68Z_EatoJjeucMrH9hmIFFl9JuAA")
			must(t, err)
			var bomb bytes.Buffer
			w, err := flate.NewWriter(&bomb, 9)
			must(t, err)
			_, err = w.Write(make([]byte, 64<<20))
			must(t, err)
			must(t, w.Close())
			twice := func(n int) string {
				inner := string(command())
				for range n {
					var err error
					inner, err = jose.Encrypt(public, "JWT", []byte(inner))
					must(t, err)
				}
				return inner
			}
			sealed, second := good().seal(t, to), good().seal(t, to)
			a, b := strings.Split(sealed, "."), strings.Split(second, ".")
			swap := func(i int) string {
				x := append([]string{}, a...)
				x[i] = b[i]
				return strings.Join(x, ".")
			}
			cases := []struct {
				name, raw string
				want      watchword.Code
			}{
				{"a point that is on no curve", member("epk", point(one, one)), watchword.CommandUnsealed},
				{"the point at infinity", member("epk", point(new(big.Int), new(big.Int))), watchword.CommandUnsealed},
				{"a point beyond the field", member("epk", point(p, p)), watchword.CommandUnsealed},
				{"a point of another curve by this one's name", member("epk", strings.Replace(epk(t, to), `"crv":"`+curve, `"crv":"P-384`, 1)), watchword.CommandUnsealed},
				{"no point", member("epk", `{}`), watchword.CommandUnsealed},
				{"a point of zeros", member("epk", x25519(make([]byte, 32))), watchword.CommandUnsealed},
				{"a point of low order", member("epk", x25519(low)), watchword.CommandUnsealed},
				{"a point of order 8", member("epk", x25519(order8)), watchword.CommandUnsealed},
				{"a short point", member("epk", x25519(low[:31])), watchword.CommandUnsealed},
				{"a key of the other curve", member("epk", epk(t, foreign.PublicKey())), watchword.CommandUnsealed},
				{"a private key", member("epk", strings.TrimSuffix(epk(t, unknown.PublicKey()), "}")+`,"d":"`+b64(unknown.Bytes())+`"}`), watchword.CommandUnsealed},
				{"a secret as epk", member("epk", `{"kty":"oct","k":"AAAA"}`), watchword.CommandUnsealed},
				{"epk as text", member("epk", `"AAAA"`), watchword.CommandUnsealed},
				{"another epk", member("epk", epk(t, unknown.PublicKey())), watchword.CommandUnsealed},
				{"its own key as epk", member("epk", epk(t, to)), watchword.CommandUnsealed},
				{"apu that counts", edit(func(j *craftedJWE) { j.head["apu"] = json.RawMessage(`"QWxpY2U"`); j.apu = "Alice" }), watchword.CommandUnsealed},
				{"apv that counts", edit(func(j *craftedJWE) { j.head["apv"] = json.RawMessage(`"Qm9i"`); j.apv = "Bob" }), watchword.CommandUnsealed},
				{"apu that is not said", edit(func(j *craftedJWE) { j.apu = "Alice" }), watchword.CommandUnsealed},
				{"empty apu and apv", edit(func(j *craftedJWE) { j.head["apu"], j.head["apv"] = json.RawMessage(`""`), json.RawMessage(`""`) }), watchword.CommandUnsealed},
				{"zip, with a bomb", edit(func(j *craftedJWE) {
					j.head["zip"] = json.RawMessage(`"DEF"`)
					j.plain = bomb.Bytes()[:min(bomb.Len(), 16<<10)]
				}), watchword.CommandUnsealed},
				{"zip, with a command", edit(func(j *craftedJWE) { j.head["zip"] = json.RawMessage(`"DEF"`) }), watchword.CommandUnsealed},
				{"no zip, and a bomb", edit(func(j *craftedJWE) { j.plain = bomb.Bytes()[:min(bomb.Len(), 16<<10)] }), watchword.TokenMalformed},
				{"enc A128GCM", member("enc", `"A128GCM"`), watchword.CommandUnsealed},
				{"enc A256CBC-HS512", member("enc", `"A256CBC-HS512"`), watchword.CommandUnsealed},
				{"enc in small letters", member("enc", `"a256gcm"`), watchword.CommandUnsealed},
				{"no enc", edit(func(j *craftedJWE) { delete(j.head, "enc") }), watchword.CommandUnsealed},
				{"alg dir", member("alg", `"dir"`), watchword.CommandUnsealed},
				{"alg ECDH-ES+A256KW", member("alg", `"ECDH-ES+A256KW"`), watchword.CommandUnsealed},
				{"alg RSA1_5", member("alg", `"RSA1_5"`), watchword.CommandUnsealed},
				{"alg PBES2", edit(func(j *craftedJWE) {
					j.head["alg"], j.head["p2c"], j.head["p2s"] = json.RawMessage(`"PBES2-HS512+A256KW"`), json.RawMessage(`2000000000`), json.RawMessage(`"AAAA"`)
				}), watchword.CommandUnsealed},
				{"alg in the key derivation", edit(func(j *craftedJWE) { j.alg = "ECDH-ES" }), watchword.CommandUnsealed},
				{"crit", member("crit", `["exp"]`), watchword.CommandUnsealed},
				{"a key in the header", member("jwk", epk(t, to)), watchword.CommandUnsealed},
				{"a key from afar", member("jku", `"https://evil.example"`), watchword.CommandUnsealed},
				{"kid of another", member("kid", `"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"`), watchword.CommandUnsealed},
				{"for another key, by this one's kid", good().seal(t, unknown.PublicKey()), watchword.CommandUnsealed},
				{"an encrypted key", edit(func(j *craftedJWE) { j.key = make([]byte, 40) }), watchword.CommandUnsealed},
				{"an empty iv", edit(func(j *craftedJWE) { j.iv = []byte{} }), watchword.CommandUnsealed},
				{"a long iv", edit(func(j *craftedJWE) { j.iv = make([]byte, 16) }), watchword.CommandUnsealed},
				{"another iv", edit(func(j *craftedJWE) { j.iv = make([]byte, 12) }), watchword.CommandUnsealed},
				{"no tag", edit(func(j *craftedJWE) { j.cut = []byte{} }), watchword.CommandUnsealed},
				{"a cut tag", edit(func(j *craftedJWE) { j.cut = make([]byte, 12) }), watchword.CommandUnsealed},
				{"a tag of one byte", edit(func(j *craftedJWE) { j.cut = make([]byte, 1) }), watchword.CommandUnsealed},
				{"another header", swap(0), watchword.CommandUnsealed},
				{"another iv of the same sender", swap(2), watchword.CommandUnsealed},
				{"another text", swap(3), watchword.CommandUnsealed},
				{"another tag", swap(4), watchword.CommandUnsealed},
				{"loose bits in the tag", sealed[:len(sealed)-1] + string(alphabet[strings.IndexByte(alphabet, sealed[len(sealed)-1])|1]), watchword.CommandUnsealed},
				{"six parts", sealed + ".AAAA", watchword.CommandUnsealed},
				{"four parts", strings.Join(a[:4], "."), watchword.CommandUnsealed},
				{"the JSON serialization", `{"ciphertext":"` + a[3] + `","iv":"` + a[2] + `","tag":"` + a[4] + `","protected":"` + a[0] + `"}`, watchword.CommandUnsealed},
				{"a seal in a seal", twice(2), watchword.TokenMalformed},
				{"a seal in a seal in a seal", twice(3), watchword.TokenMalformed},
				{"a seal in many", twice(9), watchword.TokenMalformed},
				{"nothing under the seal", edit(func(j *craftedJWE) { j.plain = nil }), watchword.TokenMalformed},
				{"too much", strings.Join(a[:3], ".") + "." + strings.Repeat("A", 40<<10) + "." + a[4], watchword.CommandUnsealed},
				{"megabytes", strings.Repeat("A", 8<<20), watchword.CommandUnsealed},
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for _, tc := range cases {
				r, err := v.Execute(t.Context(), tc.raw)
				if r != "" || watchword.CodeOf(err) != tc.want {
					t.Errorf("%s: got %q %q (%v), want %q", tc.name, r, watchword.CodeOf(err), err, tc.want)
				}
			}
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
				t.Errorf("it cost %d bytes to refuse them", n)
			}
			if v.acts.Load() != 0 {
				t.Fatalf("the device acted %d times", v.acts.Load())
			}
			if _, err := v.Execute(t.Context(), good().seal(t, to)); err != nil || v.acts.Load() != 1 {
				t.Errorf("a seal of our own making, with nothing wrong: %v", err)
			}
		})
	}
}

func mustInt(t testing.TB, hex string) *big.Int {
	t.Helper()
	n, ok := new(big.Int).SetString(hex, 16)
	if !ok {
		t.Fatal(hex)
	}
	return n
}

// ecdhOf reads a public key of either curve from its JWK.
func ecdhOf(t testing.TB, k *jose.PublicKey) *ecdh.PublicKey {
	t.Helper()
	var m struct{ Crv, X, Y string }
	must(t, json.Unmarshal(k.JWK(), &m))
	x, err := base64.RawURLEncoding.DecodeString(m.X)
	must(t, err)
	y, err := base64.RawURLEncoding.DecodeString(m.Y)
	must(t, err)
	if m.Crv == "X25519" {
		return mustValue(ecdh.X25519().NewPublicKey(x))(t)
	}
	return mustValue(ecdh.P256().NewPublicKey(append(append([]byte{4}, x...), y...)))(t)
}
