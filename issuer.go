package watchword

import (
	"strconv"
	"strings"
)

// Issuers names the issuers of a server's tenants (RFC 8414 §2). Its value is the issuer identifier of the default tenant, a URL
// without a path; the identifier of each other tenant has the path /t/TENANT behind it.
type Issuers string

// Of returns the issuer identifier of a tenant.
func (i Issuers) Of(t TenantID) string { return string(i) + TenantPath(t) }

// Tenant returns the tenant that an issuer identifier names; empty if it is not one of these issuers. It does not check
// that the tenant exists.
func (i Issuers) Tenant(issuer string) TenantID {
	path, ok := strings.CutPrefix(issuer, string(i))
	if !ok {
		return ""
	}
	if path == "" {
		return DefaultTenant
	}
	t, rest := CutTenantPath(path)
	if rest != "" {
		return ""
	}
	return t
}

const tenantPrefix = "/t/"

// TenantPath returns the path of a tenant's issuer identifier: empty for the default tenant.
func TenantPath(t TenantID) string {
	if t == DefaultTenant {
		return ""
	}
	return tenantPrefix + string(t)
}

// CutTenantPath cuts the path of a tenant's issuer off the front of a URL path. Where there is none, t is empty and rest is path.
func CutTenantPath(path string) (t TenantID, rest string) {
	name, ok := strings.CutPrefix(path, tenantPrefix)
	if !ok {
		return "", path
	}
	if i := strings.IndexByte(name, '/'); i >= 0 {
		name, rest = name[:i], name[i:]
	}
	if !ValidName(name) || TenantID(name) == DefaultTenant {
		return "", path
	}
	return TenantID(name), rest
}

// LogOrigin returns the origin of an issuer's audit log (C2SP tlog-checkpoint) before the server was ever restored from a
// backup: the issuer's address without the scheme and without the path of a tenant, since the tenants of a server share one
// log. A restored log has the origin of [RestoredLogOrigin]; a trust bundle names it.
func LogOrigin(issuer string) string {
	_, rest, ok := strings.Cut(issuer, "://")
	if !ok {
		rest = issuer
	}
	if i := strings.LastIndex(rest, tenantPrefix); i >= 0 {
		if t, more := CutTenantPath(rest[i:]); t != "" && more == "" {
			rest = rest[:i]
		}
	}
	return rest + "/log"
}

// RestoredLogOrigin returns the beginning of the origin of an issuer's audit log from the restore with this epoch on. A random part
// follows, after a hyphen.
func RestoredLogOrigin(issuer string, epoch int64) string {
	return LogOrigin(issuer) + "/" + strconv.FormatInt(epoch, 10)
}
