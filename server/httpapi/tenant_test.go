package httpapi

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/authn"
)

const tenant = watchword.DefaultTenant

// A request is for the tenant of its host. Hosts that are of none share one rate and have no log, and are answered as an
// address that there is not.
func TestARequestIsForTheTenantOfItsHost(t *testing.T) {
	auth, err := authn.New("https://hub.example", nil, nil, nil, nil, authn.Options{})
	if err != nil {
		t.Fatal(err)
	}
	log := audit.NewRecorder(nil)
	now := time.Now()
	a := New(Dependencies{Auth: auth, Recorder: log, Options: Options{
		PublicURL: "https://hub.example", TokenRate: 1, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now },
		Tenant: func(host string, _ watchword.TenantID) (watchword.TenantID, bool) {
			t, ok := map[string]watchword.TenantID{"one.example": "one", "two.example": "two"}[host]
			return t, ok
		},
	}})
	status := func(host string) int {
		t.Helper()
		r := httptest.NewRequest(http.MethodGet, "https://"+host+"/v1/self", nil)
		w := httptest.NewRecorder()
		a.ServeHTTP(w, r)
		return w.Code
	}
	for range 50 { // a tenant has no part in the rate of unknown hosts
		if got := status("one.example"); got != http.StatusUnauthorized {
			t.Fatalf("a known host: %d", got)
		}
	}
	if got := status("none-0.example"); got != http.StatusNotFound {
		t.Errorf("an unknown host: %d", got)
	}
	limited := false
	for i := range 100 {
		limited = limited || status("none-"+string(rune('a'+i%26))+".example") == http.StatusTooManyRequests
	}
	if !limited {
		t.Error("100 unknown hosts have a rate of their own each")
	}
	if got := status("two.example"); got != http.StatusUnauthorized {
		t.Errorf("a known host after many unknown ones: %d", got)
	}
}

// Subjects of two tenants with the same id have a rate each.
func TestRatesAreOfATenant(t *testing.T) {
	r := newSubjectRates(1)
	now := time.Now()
	one, two := quota.Key{Tenant: "one", Subject: "lamp"}, quota.Key{Tenant: "two", Subject: "lamp"}
	for r.take("GET /v1/devices", one, now) == nil { // until its burst is used
	}
	if err := r.take("GET /v1/devices", two, now); err != nil {
		t.Errorf("the rate of another tenant's subject was used up: %v", err)
	}
}
