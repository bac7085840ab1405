package httpapi

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/watchword-iot/watchword"
)

// resolveTenant finds the tenant of a request, by its host or by its path, and takes the tenant out of the path. Codes:
// not_found, rate_limited.
func (a *API) resolveTenant(r *http.Request, in *requestInfo) error {
	named, prefix, path := cutTenant(r.URL)
	t, ok := a.Tenant(r.Host, named)
	if ok && (named == "" || named == t) && (t == watchword.DefaultTenant || !isOfServer(path.Path)) {
		in.actor.Tenant, in.prefix, r.URL = t, prefix, path
		return nil
	}
	if err := a.unknownHosts.Take(struct{}{}, a.Now()); err != nil {
		return err
	}
	return watchword.Refuse(watchword.NotFound, "no resource has this path")
}

// cutTenant returns the tenant that a URL names by its path, what of the path names it, and the URL without that. A well-known
// path has the tenant behind it (RFC 8414 §3, RFC 9728 §3.1). Where no tenant is named, all is as it was.
func cutTenant(u *url.URL) (t watchword.TenantID, prefix string, without *url.URL) {
	t, rest := watchword.CutTenantPath(u.Path)
	prefix = watchword.TenantPath(t)
	if t == "" {
		for _, known := range []string{issuerMetadata, resourceMetadata} {
			behind, ok := strings.CutPrefix(u.Path, known)
			if !ok {
				continue
			}
			if t, rest = watchword.CutTenantPath(behind); t != "" && rest == "" {
				return t, "", &url.URL{Path: known, RawQuery: u.RawQuery}
			}
		}
		return "", "", u
	}
	out := *u
	out.Path = rest
	if u.RawPath != "" {
		if out.RawPath = strings.TrimPrefix(u.RawPath, prefix); out.RawPath == u.RawPath { // the tenant is percent-encoded
			return "", "", u
		}
	}
	return t, prefix, &out
}

// isOfServer reports whether a path is of what all tenants share, so that only the default tenant may change it: the server's keys
// and its address.
func isOfServer(path string) bool {
	for _, p := range []string{"/v1/keys", "/v1/address"} {
		if path == p || strings.HasPrefix(path, p+"/") {
			return true
		}
	}
	return false
}

// tenantOf returns the tenant that a request is for.
func tenantOf(r *http.Request) watchword.TenantID { return requestInfoOf(r.Context()).actor.Tenant }
