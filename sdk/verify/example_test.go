package verify_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/verify"
	"github.com/watchword-iot/watchword/token"
)

// A service that takes readings from devices. docs/resource-servers.md has it as a
// whole program, with the policy that lets devices in.
func Example() {
	ctx := context.Background() // the service's own, which ends with it
	v, err := verify.New(ctx, "https://watchword.example",
		verify.Audience("https://api.example"),
		verify.Cache("/var/lib/readings/watchword-keys.json"),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer v.Close()
	mux := http.NewServeMux()
	mux.Handle("POST /readings", v.Require("api:/readings", "post")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tok := verify.FromContext(r.Context())
		log.Printf("a reading from %s at %s", tok.Subject, tok.Labels["site"])
		w.WriteHeader(http.StatusNoContent)
	})))
	log.Fatal(http.ListenAndServeTLS(":443", "cert.pem", "key.pem", mux))
}

// Keys that are given need no network: for tests of a service, which sign tokens of
// their own.
func ExampleKeys() {
	key, _ := jose.GenerateKey(jose.P256)
	signer, _ := key.Signer()
	now := time.Now()
	raw, _ := token.SignAccess(signer, token.Grant{
		Issuer: "https://watchword.example", Subject: watchword.Subject{ID: "lamp-7"}, Key: "any", JTI: "1", Issued: now, Expires: now.Add(time.Minute),
		Perm: []watchword.Permission{{Resource: "api:/readings", Actions: []string{"post"}}},
	})
	jwk := key.Public().JWK()
	set := fmt.Appendf(nil, `{"keys":[%s,"kid":%q}]}`, jwk[:len(jwk)-1], key.Public().ID())

	v, err := verify.New(context.Background(), "https://watchword.example", verify.Keys(set))
	if err != nil {
		log.Fatal(err)
	}
	defer v.Close()
	h := v.Require("api:/readings", "post")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "hello,", verify.FromContext(r.Context()).Subject)
	}))
	r := httptest.NewRequest("POST", "/readings", nil)
	r.Header.Set("Authorization", "Bearer "+raw)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	fmt.Print(w.Body)
	// Output: hello, lamp-7
}
