package watchword_test

import (
	"testing"

	"github.com/watchword-iot/watchword"
)

func TestAnIssuerNamesItsTenant(t *testing.T) {
	const issuers = watchword.Issuers("https://hub.example")
	for _, x := range []struct {
		tenant watchword.TenantID
		issuer string
	}{{watchword.DefaultTenant, "https://hub.example"}, {"other", "https://hub.example/t/other"}} {
		if got := issuers.Of(x.tenant); got != x.issuer {
			t.Errorf("the issuer of %s is %s", x.tenant, got)
		}
		if got := issuers.Tenant(x.issuer); got != x.tenant {
			t.Errorf("%s is the issuer of %q", x.issuer, got)
		}
	}
	for _, none := range []string{
		"", "hub.example", "https://hub.example/", "https://hub.example:8443", "https://hub.example.evil", "https://hub.example/t/", "https://hub.example/t/default", "https://hub.example/t/other/", "https://hub.example/t/other/v1",
		"https://hub.example/t/a%2Fb", "https://hub.example/t//other", "https://hub.exampl", "HTTPS://hub.example", "https://hub.example/t/o ther",
	} {
		if got := issuers.Tenant(none); got != "" {
			t.Errorf("%q is the issuer of %q", none, got)
		}
	}
}

func TestThePathOfATenantIsCutOff(t *testing.T) {
	for _, x := range []struct {
		path, rest string
		tenant     watchword.TenantID
	}{
		{"/t/other/v1/self", "/v1/self", "other"},
		{"/t/other", "", "other"},
		{"/t/other/", "/", "other"},
		{"/t/other//v1", "//v1", "other"},
		{"/t/other/t/third/v1", "/t/third/v1", "other"},
		{"/v1/self", "/v1/self", ""},
		{"/t/default/v1/self", "/t/default/v1/self", ""}, // it has one name
		{"/t//v1/self", "/t//v1/self", ""},
		{"/t/%6fther/v1", "/t/%6fther/v1", ""},
		{"/tt/other/v1", "/tt/other/v1", ""},
		{"", "", ""},
	} {
		if got, rest := watchword.CutTenantPath(x.path); got != x.tenant || rest != x.rest {
			t.Errorf("%q: %q, and %q of %q", x.path, rest, x.path, got)
		}
	}
}
