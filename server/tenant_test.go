package server_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/enroll"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/sqlite"
	"github.com/watchword-iot/watchword/token"
)

// addOwner makes a tenant in the store: an operator of the same id as the first one's, with a key of its own.
func addOwner(t *testing.T, dir string, tenant watchword.TenantID) *jose.Signer {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	st, err := sqlite.Open(t.Context(), filepath.Join(dir, "watchword.db"), sqlite.Options{})
	must(err)
	defer func() { must(st.Close()) }()
	k, err := jose.GenerateKey(jose.P256)
	must(err)
	seal, err := jose.GenerateKey(jose.X25519)
	must(err)
	now, hash := time.Now(), sha256.Sum256([]byte("code"))
	entry := func(kind string) audit.Entry {
		return audit.Entry{Tenant: tenant, At: now, Kind: kind, Object: "operator", Outcome: audit.Done}
	}
	must(st.CreateSubject(t.Context(), watchword.Subject{
		Tenant: tenant, ID: "operator", Kind: watchword.Operator, State: watchword.New, Labels: watchword.Labels{"role": "owner"}, Created: now, Changed: now,
	}, &enroll.Code{Tenant: tenant, Hash: hash, Subject: "operator", Expires: now.Add(time.Hour)}, entry(audit.OperatorCreate)))
	key := func(p *jose.PublicKey, of watchword.Purpose) watchword.Key {
		return watchword.Key{ID: p.ID(), Purpose: of, JWK: p.JWK(), State: watchword.KeyActive, Added: now}
	}
	_, _, err = st.RedeemCode(t.Context(), enroll.Redemption{Tenant: tenant, Hash: hash, Sign: key(k.Public(), watchword.Sign), Seal: key(seal.Public(), watchword.Seal)},
		now, audit.Always[watchword.Subject](entry(audit.DeviceEnroll)))
	must(err)
	s, err := k.Signer()
	must(err)
	return s
}

// tenantClient is an owner who speaks to one host.
type tenantClient struct {
	t    *testing.T
	info server.Info
	http *http.Client
	host string
	key  *jose.Signer
}

func (c *tenantClient) do(method, path, access, contentType, body string, header ...string) (int, string) {
	c.t.Helper()
	r, err := http.NewRequestWithContext(c.t.Context(), method, "https://"+c.info.HTTPS+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	r.Host = c.host
	if access != "" {
		r.Header.Set("Authorization", "Bearer "+access)
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := c.http.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }() // it was read to its end
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// login returns the answer to an assertion, and the token in it.
func (c *tenantClient) login(by *jose.Signer) (status int, access, answer string) {
	c.t.Helper()
	assertion, err := token.SignAssertion(by, "operator", c.info.Issuer, time.Now(), time.Minute)
	if err != nil {
		c.t.Fatal(err)
	}
	form := url.Values{"grant_type": {"client_credentials"}, "client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}, "client_assertion": {assertion}}
	status, answer = c.do(http.MethodPost, "/oauth/token", "", "application/x-www-form-urlencoded", form.Encode())
	var out struct {
		Access string `json:"access_token"`
	}
	_ = json.Unmarshal([]byte(answer), &out) // a refusal has none
	return status, out.Access, answer
}

// Two tenants on one server, each with an operator of the same id, share neither proofs nor tokens, subjects, policies nor
// entries of the log.
func TestTenantsOfOneServerShareNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	c := config(t, dir)
	once(t, c)
	otherKey := addOwner(t, dir, "other")
	raw, err := os.ReadFile(filepath.Join(dir, "operator.jwk"))
	if err != nil {
		t.Fatal(err)
	}
	k, err := jose.ParsePrivateJWK([]byte(strings.TrimSpace(string(raw))), jose.ForSigning)
	if err != nil {
		t.Fatal(err)
	}
	firstKey, err := k.Signer()
	if err != nil {
		t.Fatal(err)
	}
	o := quiet
	o.Hosts = map[string]watchword.TenantID{"other.example": "other"}
	s, err := server.New(t.Context(), c, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	<-s.Ready()
	pem, err := os.ReadFile(s.Info().CAFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "localhost"}}}
	defer client.CloseIdleConnections()
	first := &tenantClient{t, s.Info(), client, "localhost", firstKey}
	other := &tenantClient{t, s.Info(), client, "other.example", otherKey}
	tokens := map[*tenantClient]string{}
	for _, x := range []struct{ at, not *tenantClient }{{first, other}, {other, first}} {
		status, access, answer := x.at.login(x.at.key)
		if status != http.StatusOK {
			t.Fatalf("%s: %d %s", x.at.host, status, answer)
		}
		tokens[x.at] = access
		if status, _, answer := x.not.login(x.at.key); status != http.StatusUnauthorized {
			t.Errorf("the key of %s at %s: %d %s", x.at.host, x.not.host, status, answer)
		}
		if status, answer := x.not.do(http.MethodGet, "/v1/self", access, "", ""); status != http.StatusUnauthorized || !strings.Contains(answer, "token_unrecorded") {
			t.Errorf("the token of %s at %s: %d %s", x.at.host, x.not.host, status, answer)
		}
	}
	// Each has a device and a policy of the same name; neither sees the other's.
	for _, x := range []struct {
		at     *tenantClient
		site   string
		status int
	}{{first, "plant-1", http.StatusCreated}, {other, "plant-2", http.StatusCreated}} {
		if status, answer := x.at.do(http.MethodPost, "/v1/devices", tokens[x.at], "application/json", `{"id":"lamp","labels":{"site":"`+x.site+`"}}`); status != x.status {
			t.Fatalf("%s: %d %s", x.at.host, status, answer)
		}
		if status, answer := x.at.do(http.MethodPut, "/v1/policies/lamps", tokens[x.at], "application/toml", "for = {}\n[[allow]]\npublish = [\""+x.site+"\"]\n"); status >= 300 {
			t.Fatalf("%s: %d %s", x.at.host, status, answer)
		}
	}
	for _, x := range []struct {
		at       *tenantClient
		has, not string
	}{{first, "plant-1", "plant-2"}, {other, "plant-2", "plant-1"}} {
		for _, path := range []string{"/v1/devices", "/v1/devices/lamp", "/v1/policies/lamps", "/v1/audit?limit=1000", "/v1/audit/export"} {
			status, answer := x.at.do(http.MethodGet, path, tokens[x.at], "", "")
			if status != http.StatusOK || !strings.Contains(answer, x.has) || strings.Contains(answer, x.not) {
				t.Errorf("%s%s: %d, want %s and not %s: %s", x.at.host, path, status, x.has, x.not, answer)
			}
		}
	}
	// An entry of one tenant is not there for the other, by number either.
	var page struct {
		Entries []struct {
			Seq int64 `json:"seq"`
		} `json:"entries"`
	}
	if _, answer := first.do(http.MethodGet, "/v1/audit?limit=1", tokens[first], "", ""); json.Unmarshal([]byte(answer), &page) != nil || len(page.Entries) != 1 {
		t.Fatalf("no entry: %s", answer)
	}
	for _, path := range []string{"/v1/audit/%d", "/v1/audit/%d/proof"} {
		path = fmt.Sprintf(path, page.Entries[0].Seq)
		if status, answer := other.do(http.MethodGet, path, tokens[other], "", ""); status != http.StatusNotFound {
			t.Errorf("other %s: %d %s", path, status, answer)
		}
		if status, answer := first.do(http.MethodGet, path, tokens[first], "", ""); status != http.StatusOK {
			t.Errorf("own %s: %d %s", path, status, answer)
		}
	}
	// The end of one tenant's device is nothing to the other's.
	if status, answer := first.do(http.MethodPost, "/v1/devices/lamp/suspend", tokens[first], "application/json", `{}`); status >= 300 {
		t.Fatalf("%d %s", status, answer)
	}
	if _, answer := other.do(http.MethodGet, "/v1/devices/lamp", tokens[other], "", ""); strings.Contains(answer, "suspended") {
		t.Errorf("the device of another tenant was suspended: %s", answer)
	}
}
