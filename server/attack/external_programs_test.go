package attack_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/admin"
)

// outside finds a program that others wrote. Under make test it must be there.
func outside(t *testing.T, name string) string {
	t.Helper()
	// Programs that make test built are preferred: other programs may have the same names.
	path, err := exec.LookPath(filepath.Join("..", "..", "bin", "outside", name))
	if err == nil {
		return path
	}
	if path, err = exec.LookPath(name); err == nil {
		return path
	}
	if os.Getenv("WATCHWORD_OUTSIDE") == "required" {
		t.Fatalf("%s is missing", name)
	}
	t.Skipf("%s is not installed; make test installs it", name)
	return ""
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	c := exec.CommandContext(t.Context(), outside(t, name), args...)
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", name, err, out.String(), errs.String())
	}
	return out.String()
}

// A device without our SDK: its token by the agent, its requests by curl; npm's
// jose checks the token from the JWKS, openssl the authority.
func TestThirdPartyClients(t *testing.T) {
	dir := t.TempDir()
	data, lamp := filepath.Join(dir, "data"), filepath.Join(dir, "lamp-7")
	s := start(t, data, "serve")
	s.until("next ")
	link, _ := command(t, data, "", "device", "create", "lamp-7", "-l", "site=plant-1")
	if _, status := command(t, data, link, "agent", "enroll", "-", "--dir", lamp); status != 0 {
		t.Fatal("agent enroll")
	}
	tok, status := command(t, data, "", "agent", "token", "--dir", lamp)
	if status != 0 {
		t.Fatal("agent token")
	}
	tok = strings.TrimSpace(tok)
	url := "https://localhost:" + port(t, data)
	ca := filepath.Join(lamp, "ca.pem")
	curl := func(args ...string) string {
		return tool(t, "curl", append([]string{"-sS", "--cacert", ca, "-H", "Authorization: Bearer " + tok}, args...)...)
	}

	t.Run("curl publishes an event, and an operator sees it", func(t *testing.T) {
		w := start(t, data, "event", "watch", "lamp-7", "--count", "1")
		w.until("watching")
		if got := curl("-H", "Content-Type: application/json", "-d", "42", "-w", "%{http_code}", url+"/v1/self/events/lux"); !strings.HasSuffix(got, "202") {
			t.Errorf("got %s", got)
		}
		if err := w.Wait(); err != nil {
			t.Errorf("event watch: %v", err)
		}
	})
	t.Run("curl reads its commands", func(t *testing.T) {
		cl, err := admin.Local(data)
		must(t, err)
		_, err = cl.Send(t.Context(), admin.CommandOrder{Device: "lamp-7", Function: "lamp.set"})
		must(t, err)
		var out struct {
			Commands []struct {
				JWE string `json:"jwe"`
				Seq int64  `json:"seq"`
			} `json:"commands"`
		}
		must(t, json.Unmarshal([]byte(curl(url+"/v1/self/commands?wait=10s")), &out))
		if len(out.Commands) != 1 || out.Commands[0].Seq != 1 || strings.Count(out.Commands[0].JWE, ".") != 4 {
			t.Errorf("got %+v", out)
		}
	})
	t.Run("curl is refused elsewhere, with a problem that says why", func(t *testing.T) {
		var p struct {
			Status int
			Code   watchword.Code
			Detail string
			Trace  string `json:"trace_id"`
		}
		must(t, json.Unmarshal([]byte(curl(url+"/v1/devices")), &p))
		if p.Status != 403 || p.Code != watchword.Denied || p.Detail == "" || p.Trace == "" {
			t.Errorf("got %+v", p)
		}
	})
	t.Run("the API describes itself", func(t *testing.T) {
		var doc struct {
			OpenAPI string                    `json:"openapi"`
			Paths   map[string]map[string]any `json:"paths"`
		}
		must(t, json.Unmarshal([]byte(curl(url+"/openapi.json")), &doc))
		if !strings.HasPrefix(doc.OpenAPI, "3.1") || doc.Paths["/v1/devices/{id}"]["get"] == nil || doc.Paths["/v1/self/commands"]["get"] == nil {
			t.Errorf("openapi %q, %d paths", doc.OpenAPI, len(doc.Paths))
		}
		for _, free := range []string{"/oauth/token", "/oauth/introspect", "/oauth/revoke", "/oauth/device_authorization", "/v1/enroll", "/v1/time"} {
			if op, _ := doc.Paths[free]["post"].(map[string]any); op == nil || op["security"] != nil {
				t.Errorf("%s is %v; it must be there, and ask for no access token", free, op)
			}
		}
	})
	t.Run("npm's jose verifies the token from the JWKS", func(t *testing.T) {
		if _, err := os.Stat("npm/node_modules/jose"); err != nil {
			if os.Getenv("WATCHWORD_OUTSIDE") == "required" {
				t.Fatal("npm's jose is missing")
			}
			t.Skip("npm's jose is not installed; make test installs it")
		}
		jwks := filepath.Join(dir, "jwks.json")
		must(t, os.WriteFile(jwks, []byte(curl(url+"/.well-known/jwks.json")), 0o600))
		const script = `
import { readFileSync } from 'node:fs'
import { webcrypto } from 'node:crypto'
globalThis.crypto ??= webcrypto // Debian's node 18 has it there alone
const { createLocalJWKSet, jwtVerify } = await import('jose')
const [jwks, issuer, token] = process.argv.slice(-3)
const keys = createLocalJWKSet(JSON.parse(readFileSync(jwks)))
const { payload } = await jwtVerify(token, keys, { issuer, audience: issuer, typ: 'at+jwt', algorithms: ['ES256'] })
console.log(JSON.stringify(payload))
try {
  await jwtVerify(token, keys, { issuer, audience: 'https://other.example', typ: 'at+jwt' })
  process.exit(9)
} catch {}
`
		f := filepath.Join("npm", "verify-test.mjs")
		must(t, os.WriteFile(f, []byte(script), 0o600))
		defer os.Remove(f)
		var c struct {
			Sub string
			Dev struct{ Labels map[string]string }
		}
		must(t, json.Unmarshal([]byte(tool(t, "node", f, jwks, url, tok)), &c))
		if c.Sub != "lamp-7" || c.Dev.Labels["site"] != "plant-1" {
			t.Errorf("got %+v", c)
		}
	})
	t.Run("openssl takes the authority's certificate", func(t *testing.T) {
		out := tool(t, "openssl", "x509", "-in", ca, "-noout", "-text")
		if !strings.Contains(out, "CA:TRUE") || !strings.Contains(out, "prime256v1") {
			t.Errorf("got %s", out)
		}
	})
}
