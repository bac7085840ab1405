package attack_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/watchword-iot/watchword/sdk/device"
)

// stock is what a user of npm's openid-client writes, and nothing more: the client
// assertion, the proofs and the dance for their nonces are the library's.
const stock = `
import { readFileSync } from 'node:fs'
import { webcrypto } from 'node:crypto'
globalThis.crypto ??= webcrypto // Debian's node 18 has it there alone
const [url, id, file, gateFile] = process.argv.slice(-4)
async function read(file) {
  const { kid, ...jwk } = JSON.parse(readFileSync(file))
  const alg = jwk.kty === 'EC' ? { name: 'ECDSA', namedCurve: 'P-256' } : { name: 'Ed25519' }
  delete jwk.alg; delete jwk.use; delete jwk.key_ops
  return crypto.subtle.importKey('jwk', jwk, alg, false, ['sign'])
}
const key = await read(file)
globalThis.CryptoKey ??= key.constructor
const client = await import('openid-client')
const oauth = await import('oauth4webapi')
const { createRemoteJWKSet, jwtVerify } = await import('jose')
const out = {}
const config = await client.discovery(new URL(url), id, undefined, client.PrivateKeyJwt(key), { algorithm: 'oauth2' })
const as = config.serverMetadata()
const self = new URL(url + '/v1/self')

const plain = await client.clientCredentialsGrant(config, { scope: 'get:api:/v1/self/#' })
out.plain = { type: plain.token_type, scope: plain.scope }
out.plainSelf = await (await client.fetchProtectedResource(config, plain.access_token, self, 'GET')).json()

const pair = await client.randomDPoPKeyPair('ES256')
const DPoP = client.getDPoPHandle(config, pair)
const bound = await client.clientCredentialsGrant(config, undefined, { DPoP })
out.bound = { type: bound.token_type }
for (let i = 0; i < 3; i++) {
  out.boundSelf = await (await client.fetchProtectedResource(config, bound.access_token, self, 'GET', undefined, undefined, { DPoP })).json()
}
try {
  await client.fetchProtectedResource(config, bound.access_token, self, 'GET')
} catch (e) {
  out.boundAsBearer = { status: e.status ?? e.response?.status, challenges: e.cause?.map?.((c) => [c.scheme, c.parameters.error ?? '']) }
}

const jwks = createRemoteJWKSet(new URL(as.jwks_uri))
for (const t of [plain, bound]) {
  const { payload } = await jwtVerify(t.access_token, jwks, { issuer: url, audience: url, typ: 'at+jwt', algorithms: ['ES256'] })
  out.verified = payload.sub
  out.jkt = payload.cnf?.jkt
}

const gate = await client.discovery(new URL(url), 'gate-1', undefined, client.PrivateKeyJwt(await read(gateFile)), { algorithm: 'oauth2' })
out.introspected = await client.tokenIntrospection(gate, bound.access_token)
await client.tokenRevocation(config, bound.access_token)
out.afterwards = await client.tokenIntrospection(gate, bound.access_token)
try {
  await client.tokenIntrospection(config, plain.access_token)
} catch (e) {
  out.refused = e.error
}

// The layer beneath, where the nonce's refusal is the caller's to handle.
const c = { client_id: id }
const handle = oauth.DPoP(c, await oauth.generateKeyPair('ES256'))
const ask = () => oauth.clientCredentialsGrantRequest(as, c, oauth.PrivateKeyJwt(key), {}, { DPoP: handle })
let first
try {
  first = await oauth.processClientCredentialsResponse(as, c, await ask())
} catch (e) {
  out.dance = [oauth.isDPoPNonceError(e), e.error, e.status]
  first = await oauth.processClientCredentialsResponse(as, c, await ask())
}
out.beneath = first.token_type
out.resource = (await oauth.processResourceDiscoveryResponse(new URL(url), await oauth.resourceDiscoveryRequest(new URL(url)))).resource
console.log(JSON.stringify(out))
`

// Clients that others wrote speak OAuth with this server unchanged.
func TestStockOAuthClients(t *testing.T) {
	for _, name := range []string{"openid-client", "oauth4webapi", "jose"} {
		if _, err := os.Stat("npm/node_modules/" + name); err != nil {
			if os.Getenv("WATCHWORD_OUTSIDE") == "required" {
				t.Fatalf("npm's %s is missing", name)
			}
			t.Skipf("npm's %s is not installed; make test installs it", name)
		}
	}
	node := outside(t, "node")
	srv := serve(t, nil)
	gate := srv.enroll("gate-1", device.Options{SignCurve: "Ed25519"}, nil)
	d := srv.enroll("lamp-7", device.Options{}, nil)
	_, err := srv.admin.ApplyPolicy(t.Context(), "inspectors", []byte(inspectors), 0)
	must(t, err)
	file := filepath.Join("npm", "stock-test.mjs")
	must(t, os.WriteFile(file, []byte(stock), 0o600))
	defer os.Remove(file)
	key := func(d *device.Device) string { return filepath.Join(filepath.Dir(d.CAFile()), "sign.jwk") }
	var out, errs bytes.Buffer
	c := exec.CommandContext(t.Context(), node, "--dns-result-order=ipv4first", file, srv.url, "lamp-7", key(d), key(gate))
	c.Env = append(os.Environ(), "NODE_EXTRA_CA_CERTS="+d.CAFile())
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		t.Fatalf("%v\n%s%s", err, out.String(), errs.String())
	}
	var got struct {
		Plain, Bound         struct{ Type, Scope string }
		PlainSelf, BoundSelf struct{ ID string }
		BoundAsBearer        struct {
			Status     int
			Challenges [][]string
		}
		Verified, JKT            string
		Introspected, Afterwards struct {
			Active bool
			Sub    string
			Type   string `json:"token_type"`
			Cnf    struct{ JKT string }
		}
		Refused  string
		Dance    []any
		Beneath  string
		Resource string
	}
	must(t, json.Unmarshal(out.Bytes(), &got))
	switch {
	case got.Plain.Type != "bearer" || got.Plain.Scope != "get:api:/v1/self/#" || got.PlainSelf.ID != "lamp-7":
		t.Errorf("a bearer token: %+v %+v", got.Plain, got.PlainSelf)
	case got.Bound.Type != "dpop" || got.BoundSelf.ID != "lamp-7":
		t.Errorf("a bound token: %+v %+v", got.Bound, got.BoundSelf)
	case got.BoundAsBearer.Status != 401 || len(got.BoundAsBearer.Challenges) != 2 || got.BoundAsBearer.Challenges[0][1] != "invalid_token":
		t.Errorf("a bound token as Bearer: %+v", got.BoundAsBearer)
	case got.Verified != "lamp-7" || got.JKT == "":
		t.Errorf("verified %q, %q", got.Verified, got.JKT)
	case !got.Introspected.Active || got.Introspected.Sub != "lamp-7" || got.Introspected.Type != "DPoP" || got.Introspected.Cnf.JKT != got.JKT:
		t.Errorf("introspected as %+v", got.Introspected)
	case got.Afterwards.Active:
		t.Error("active after its revocation")
	case got.Refused != "unauthorized_client":
		t.Errorf("introspection without a permission: %q", got.Refused)
	case len(got.Dance) != 3 || got.Dance[0] != true || got.Dance[1] != "use_dpop_nonce" || got.Dance[2] != 400.0:
		t.Errorf("the dance: %v", got.Dance)
	case got.Beneath != "dpop" || got.Resource != srv.url+"/" && got.Resource != srv.url:
		t.Errorf("%q of %q", got.Beneath, got.Resource)
	}
}
