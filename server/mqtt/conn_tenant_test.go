package mqtt_test

import (
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqtt"
	"github.com/watchword-iot/watchword/token"
)

// A connection is for the tenant whose issuer its token names, or its assertion, unless the host says otherwise. Connections for
// tenants that do not exist are refused, and have one rate together, whatever addresses they come from and tenants they name.
func TestAConnectionIsForTheTenantOfItsToken(t *testing.T) {
	const issuers = watchword.Issuers("https://hub.example")
	k, err := jose.GenerateKey(jose.P256)
	if err != nil {
		t.Fatal(err)
	}
	by, err := k.Signer()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	access := func(issuer string) string {
		raw, err := token.SignAccess(by, token.Grant{
			Issuer: issuer, Subject: watchword.Subject{ID: "lamp-1", Kind: watchword.Device}, Key: by.Public().ID(), JTI: "tok_1", Issued: now, Expires: now.Add(time.Minute),
		})
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	assertion := func(issuer string) string {
		raw, err := token.SignAssertion(by, "lamp-1", issuer, now, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	var mu sync.Mutex
	var named []watchword.TenantID
	srv := newTestServer(t, mqtt.Options{
		Issuers: watchword.FixedIssuer(string(issuers)), ConnectRate: 1,
		Tenant: func(_ string, n watchword.TenantID) (watchword.TenantID, bool) {
			mu.Lock()
			defer mu.Unlock()
			named = append(named, n)
			return n, n == watchword.DefaultTenant || n == "other"
		},
	})
	defer srv.close()
	at, sources := srv.listen(), byte(0)
	connect := func(password string) packet.Reason { // each from an address of its own
		t.Helper()
		sources++
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, sources)}}
		nc, err := d.DialContext(t.Context(), "tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		c := srv.serveConn(nc, packet.V5)
		defer c.closeAbruptly()
		c.send(hello(packet.V5, "lamp-1", password))
		return want[*packet.Connack](c).Code
	}
	for _, x := range []struct {
		password string
		names    watchword.TenantID
	}{
		{access("https://hub.example"), watchword.DefaultTenant},
		{access("https://hub.example/t/other"), "other"},
		{assertion("https://hub.example"), watchword.DefaultTenant},
		{assertion("https://hub.example/t/other"), "other"},
		{access("https://evil.example/t/other"), ""},
		{"no token at all", ""},
	} {
		mu.Lock()
		named = nil
		mu.Unlock()
		if got := connect(x.password); got != packet.NotAuthorized {
			t.Errorf("CONNACK %#x", got)
		}
		mu.Lock()
		if !slices.Contains(named, x.names) || len(slices.Compact(slices.DeleteFunc(named, func(n watchword.TenantID) bool { return n == "" }))) > 1 {
			t.Errorf("asked for %q, want %q", named, x.names)
		}
		mu.Unlock()
	}
	limited := 0
	for i := range 20 {
		if got := connect(access("https://hub.example/t/none-" + string(rune('a'+i)))); got == packet.ConnectionRateExceeded {
			limited++
		} else if got != packet.NotAuthorized {
			t.Errorf("a tenant that does not exist: CONNACK %#x", got)
		}
	}
	if limited == 0 {
		t.Error("20 tenants that do not exist have a rate of their own each")
	}
	if got := connect(access("https://hub.example/t/other")); got != packet.NotAuthorized {
		t.Errorf("a tenant that exists, after many that do not: CONNACK %#x", got)
	}
}
