package jose

import (
	"crypto/ecdh"
	"encoding/base64"
	"testing"

	"github.com/watchword-iot/watchword"
)

func jwk(t testing.TB, s string) *PublicKey {
	t.Helper()
	k, err := ParseJWK([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func verify(raw string, k *PublicKey) ([]byte, error) {
	u, err := ParseJWS(raw, 1<<20)
	if err != nil {
		return nil, err
	}
	return u.Verify(k)
}

func TestTheStandardsOwnSignatures(t *testing.T) {
	for _, tc := range []struct{ name, key, raw, payload string }{
		{
			"RFC 7515 A.3, ES256",
			`{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}`,
			"eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
			"{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}",
		},
		{
			"RFC 8037 A.4 and A.5, Ed25519 by its old name",
			`{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`,
			"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
			"Example of Ed25519 signing",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := verify(tc.raw, jwk(t, tc.key))
			if err != nil || string(got) != tc.payload {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestTheStandardsOwnThumbprints(t *testing.T) {
	for want, key := range map[watchword.KeyID]string{
		"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k": `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`,                                                // RFC 8037 A.3
		"oKIywvGUpTVTyxMQ3bwIIeQUudfr_CkLMjCE19ECD-U": `{"crv":"P-256","kty":"EC","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}`, // of RFC 7515 A.3's key
	} {
		if got := jwk(t, key).ID(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestTheStandardsOwnKeyAgreement(t *testing.T) { // RFC 7518 C
	bytes := func(s string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	alice, err := ecdh.P256().NewPrivateKey(bytes("0_NxaRPUMQoAJt50Gz8YiTr8gRTwyEaCumd-MToTmIo"))
	if err != nil {
		t.Fatal(err)
	}
	bob := jwk(t, `{"kty":"EC","crv":"P-256","x":"weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_PxMQ","y":"e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOyck"}`)
	z, err := alice.ECDH(bob.dh)
	if err != nil {
		t.Fatal(err)
	}
	if got := base64.RawURLEncoding.EncodeToString(concatKDF(z, "A128GCM", "Alice", "Bob", 16)); got != "VqqN6vgjbSBcIijNcacQGg" {
		t.Errorf("got %s", got)
	}
}
