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
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/verify"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/enroll"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/sqlite"
	"github.com/watchword-iot/watchword/token"
)

// addOwner makes a tenant in the store: an operator of the same id as the first one's, with the key k.
func addOwner(t *testing.T, dir string, tenant watchword.TenantID, k *jose.PrivateKey) *jose.Signer {
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
	seal, err := jose.GenerateKey(jose.X25519)
	must(err)
	now, hash := time.Now(), sha256.Sum256([]byte("code"))
	entry := func(kind string) audit.Entry {
		return audit.Entry{Tenant: tenant, At: now, Kind: kind, Object: "operator", Outcome: audit.Done}
	}
	must(st.CreateSubject(t.Context(), watchword.Subject{
		Tenant: tenant, ID: "operator", Kind: watchword.Operator, State: watchword.New, Role: policy.RoleOwner, Created: now, Changed: now,
	}, &enroll.Code{Tenant: tenant, Hash: hash, Subject: "operator", Expires: now.Add(time.Hour)}, entry(audit.KindFor(watchword.Operator, audit.DeviceCreate))))
	key := func(p *jose.PublicKey, of watchword.Purpose) watchword.Key {
		return watchword.Key{ID: p.ID(), Purpose: of, JWK: p.JWK(), State: watchword.KeyActive, Added: now}
	}
	_, _, err = st.RedeemCode(t.Context(), enroll.Redemption{Tenant: tenant, Hash: hash, Sign: key(k.Public(), watchword.Sign), Seal: key(seal.Public(), watchword.Seal)},
		watchword.AuthorityVersions{}, now, audit.FixedEntry[watchword.Subject](entry(audit.DeviceEnroll)))
	must(err)
	s, err := k.Signer()
	must(err)
	return s
}

// tenantClient is an owner that speaks to one tenant, by its host or by the path of its issuer.
type tenantClient struct {
	t      *testing.T
	info   server.Info
	http   *http.Client
	host   string
	prefix string // of the path: /t/TENANT, or nothing
	issuer string
	key    *jose.Signer
}

func (c *tenantClient) do(method, path, access, contentType, body string, header ...string) (int, string) {
	c.t.Helper()
	r, err := http.NewRequestWithContext(c.t.Context(), method, "https://"+c.info.HTTPS+c.prefix+path, strings.NewReader(body))
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

// login returns the answer to an assertion for an issuer, and the token in it.
func (c *tenantClient) login(by *jose.Signer, issuer string) (status int, access, answer string) {
	c.t.Helper()
	assertion, err := token.SignAssertion(by, "operator", issuer, time.Now(), time.Minute)
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

// startTenants starts a server with the tenant "other" beside the default one, whose host is other.example, and returns owners of
// both. The second owner of the other tenant speaks to the default tenant's host, under the path of its issuer.
func startTenants(t *testing.T) (first, byHost, byPath *tenantClient) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	c := config(t, dir)
	c.Server.HTTPS = once(t, c).HTTPS // the issuer names the port
	own, err := jose.GenerateKey(jose.P256)
	if err != nil {
		t.Fatal(err)
	}
	otherKey := addOwner(t, dir, "other", own)
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
	o.Tenants = map[watchword.TenantID][]string{"other": {"other.example"}}
	s, err := server.New(t.Context(), c, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := testwait.For(t, "the end of the server", ended); err != nil {
			t.Error(err)
		}
	})
	testwait.For(t, "the start of the server", s.Ready())
	pem, err := os.ReadFile(s.Info().CAFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	client := &http.Client{Timeout: testwait.Limit, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "localhost"}}}
	t.Cleanup(client.CloseIdleConnections)
	i := s.Info()
	return &tenantClient{t, i, client, "localhost", "", i.Issuer, firstKey},
		&tenantClient{t, i, client, "other.example", "", i.Issuer + "/t/other", otherKey},
		&tenantClient{t, i, client, "localhost", "/t/other", i.Issuer + "/t/other", otherKey}
}

// Two tenants on one server, each with an operator of the same id, share neither proofs nor tokens, subjects, policies nor
// entries of the log, whether the request names its tenant by host or by path.
func TestTenantsOfOneServerShareNothing(t *testing.T) {
	first, byHost, byPath := startTenants(t)
	for name, other := range map[string]*tenantClient{"by host": byHost, "by path": byPath} {
		t.Run(name, func(t *testing.T) { sharesNothing(t, first, other) })
	}
}

func sharesNothing(t *testing.T, first, other *tenantClient) {
	tokens := map[*tenantClient]string{}
	for _, x := range []struct{ at, not *tenantClient }{{first, other}, {other, first}} {
		status, access, answer := x.at.login(x.at.key, x.at.issuer)
		if status != http.StatusOK {
			t.Fatalf("%s: %d %s", x.at.issuer, status, answer)
		}
		tokens[x.at] = access
		for _, issuer := range []string{x.at.issuer, x.not.issuer} { // the key is not enrolled there, whatever its holder signs
			if status, _, answer := x.not.login(x.at.key, issuer); status != http.StatusUnauthorized {
				t.Errorf("the key of %s at %s, for %s: %d %s", x.at.issuer, x.not.issuer, issuer, status, answer)
			}
		}
		if status, _, answer := x.at.login(x.at.key, x.not.issuer); status != http.StatusUnauthorized || !strings.Contains(answer, "audience_mismatch") {
			t.Errorf("an assertion for %s at %s: %d %s", x.not.issuer, x.at.issuer, status, answer)
		}
		if status, answer := x.not.do(http.MethodGet, "/v1/self", access, "", ""); status != http.StatusUnauthorized || !strings.Contains(answer, "issuer_mismatch") {
			t.Errorf("the token of %s at %s: %d %s", x.at.issuer, x.not.issuer, status, answer)
		}
	}
	lamp := "lamp-" + strings.ReplaceAll(path.Base(t.Name()), "_", "-")
	// Each has a device and a policy of the same name; neither sees the other's.
	for _, x := range []struct {
		at     *tenantClient
		site   string
		status int
	}{{first, "plant-1", http.StatusCreated}, {other, "plant-2", http.StatusCreated}} {
		if status, answer := x.at.do(http.MethodPost, "/v1/devices", tokens[x.at], "application/json", `{"id":"`+lamp+`","labels":{"site":"`+x.site+`"}}`); status != x.status {
			t.Fatalf("%s: %d %s", x.at.issuer, status, answer)
		}
		if status, answer := x.at.do(http.MethodPut, "/v1/policies/"+lamp, tokens[x.at], "application/toml", "for = {}\n[[allow]]\npublish = [\""+x.site+"\"]\n"); status >= 300 {
			t.Fatalf("%s: %d %s", x.at.issuer, status, answer)
		}
	}
	for _, x := range []struct {
		at       *tenantClient
		has, not string
	}{{first, "plant-1", "plant-2"}, {other, "plant-2", "plant-1"}} {
		for _, at := range []string{"/v1/devices", "/v1/devices/" + lamp, "/v1/policies/" + lamp, "/v1/audit?limit=1000", "/v1/audit/export"} {
			status, answer := x.at.do(http.MethodGet, at, tokens[x.at], "", "")
			if status != http.StatusOK || !strings.Contains(answer, x.has) || strings.Contains(answer, x.not) {
				t.Errorf("%s%s: %d, want %s and not %s: %s", x.at.issuer, at, status, x.has, x.not, answer)
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
	for _, at := range []string{"/v1/audit/%d", "/v1/audit/%d/proof"} {
		at = fmt.Sprintf(at, page.Entries[0].Seq)
		if status, answer := other.do(http.MethodGet, at, tokens[other], "", ""); status != http.StatusNotFound {
			t.Errorf("other %s: %d %s", at, status, answer)
		}
		if status, answer := first.do(http.MethodGet, at, tokens[first], "", ""); status != http.StatusOK {
			t.Errorf("own %s: %d %s", at, status, answer)
		}
	}
	// The end of one tenant's device is nothing to the other's.
	if status, answer := first.do(http.MethodPost, "/v1/devices/"+lamp+"/suspend", tokens[first], "application/json", `{}`); status >= 300 {
		t.Fatalf("%d %s", status, answer)
	}
	if _, answer := other.do(http.MethodGet, "/v1/devices/"+lamp, tokens[other], "", ""); strings.Contains(answer, "suspended") {
		t.Errorf("the device of another tenant was suspended: %s", answer)
	}
}

// The documents of a tenant's issuer name it and its addresses, and lie where RFC 8414 §3 and RFC 9728 §3.1 look for them.
func TestAnIssuerWithAPathDescribesItself(t *testing.T) {
	first, byHost, byPath := startTenants(t)
	for _, x := range []struct {
		at         *tenantClient
		path, says string
	}{
		{first, "", first.issuer},
		{first, "/t/other", byPath.issuer},
		{byHost, "", byPath.issuer},
		{byHost, "/t/other", byPath.issuer},
	} {
		for document, members := range map[string]map[string]string{
			"/.well-known/oauth-authorization-server": {"issuer": "", "token_endpoint": "/oauth/token", "jwks_uri": "/.well-known/jwks.json", "revocation_endpoint": "/oauth/revoke"},
			"/.well-known/oauth-protected-resource":   {"resource": ""},
		} {
			status, answer := x.at.do(http.MethodGet, document+x.path, "", "", "")
			var got map[string]any
			if err := json.Unmarshal([]byte(answer), &got); err != nil || status != http.StatusOK {
				t.Fatalf("%s%s at %s: %d %s", document, x.path, x.at.host, status, answer)
			}
			for name, at := range members {
				if got[name] != x.says+at {
					t.Errorf("%s%s at %s: %s is %q, want %q", document, x.path, x.at.host, name, got[name], x.says+at)
				}
			}
		}
	}
	// A program elsewhere finds the tenant's keys by its issuer, and takes its tokens alone.
	_, own, _ := byPath.login(byPath.key, byPath.issuer)
	_, foreign, _ := first.login(first.key, first.issuer)
	v, err := verify.New(t.Context(), byPath.issuer, verify.CAFile(first.info.CAFile), verify.Log(quiet.Log))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if _, err := v.Check(t.Context(), own); err != nil {
		t.Errorf("its own token: %v", err)
	}
	if _, err := v.Check(t.Context(), foreign); watchword.CodeOf(err) != watchword.IssuerMismatch {
		t.Errorf("the default tenant's token: %v", err)
	}
	// No request leads to a tenant that there is not, or to one tenant over the host of another; nor to the server's keys from
	// another tenant than the default one.
	_, access, _ := byPath.login(byPath.key, byPath.issuer)
	for _, x := range []struct {
		at   *tenantClient
		path string
	}{
		{first, "/t/none/v1/self"},
		{first, "/.well-known/oauth-authorization-server/t/none"},
		{first, "/t/default/v1/self"},
		{byHost, "/t/none/v1/self"},
		{first, "/t/other/t/other/v1/self"},
		{first, "/t/%6fther/v1/self"},
		{first, "/t/other/.well-known/oauth-authorization-server/t/other"},
		{byPath, "/v1/keys"},
		{byHost, "/v1/keys"},
	} {
		if status, answer := x.at.do(http.MethodGet, x.path, access, "", ""); status != http.StatusNotFound || !strings.Contains(answer, `"not_found"`) {
			t.Errorf("%s at %s: %d %s", x.path, x.at.issuer, status, answer)
		}
	}
}

// A policy that cannot be read stops the start, whichever tenant it is of.
func TestAnUnreadablePolicyOfAnyTenantStopsTheStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	c := config(t, dir)
	once(t, c)
	st, err := sqlite.Open(t.Context(), filepath.Join(dir, "watchword.db"), sqlite.Options{})
	check(t, err)
	by := audit.Actor{Tenant: "other", Versions: watchword.AuthorityVersions{Local: true}}
	_, _, err = st.PutPolicy(t.Context(), by, "lamps", []byte("no policy"), -1, time.Now(), audit.FixedEntry[policy.Stored](by.DoneEntry(audit.PolicyApply, "lamps", time.Now(), nil)))
	check(t, err)
	check(t, st.Close())
	once(t, c) // without that tenant it is not read
	o := quiet
	o.Tenants = map[watchword.TenantID][]string{"other": nil}
	if _, err := server.New(t.Context(), c, o); err == nil || !strings.Contains(err.Error(), "stored policy lamps") {
		t.Errorf("the start: %v", err)
	}
}
