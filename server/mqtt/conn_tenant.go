package mqtt

import (
	"crypto/tls"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/token"
)

// resolveTenant finds the tenant whose keys may authenticate the client: by the requested host, by the path of its
// WebSocket request, and otherwise by the issuer that its token names. It is called while CONNECT or AUTH is handled, after
// the TLS handshake. Codes: rate_limited; denied if there is no such tenant.
func (c *conn) resolveTenant(presented string, now time.Time) (watchword.TenantID, error) {
	if t := c.tenant.Load(); t != nil && *t != "" {
		return *t, nil
	}
	var host string
	var path, named watchword.TenantID
	switch nc := c.nc.(type) {
	case *tls.Conn:
		host = nc.ConnectionState().ServerName
	case *webSocketConn:
		host, path = nc.host, nc.tenant
	}
	if named = path; named == "" && c.broker.options.Issuers != nil {
		named = c.broker.options.Issuers().Tenant(token.UnverifiedIssuer(presented), now)
	}
	t, ok := c.broker.options.Tenant(host, named)
	ok = ok && (path == "" || path == t)
	if ok {
		c.tenant.Store(&t)
		return t, nil
	}
	c.tenant.Store(new(watchword.TenantID)) // no tenant's log has an entry about it
	if err := c.broker.unknownHosts.Take(struct{}{}, now); err != nil {
		return "", err
	}
	return "", watchword.Refuse(watchword.Denied, "no tenant has this host name")
}

// tenantOfRefusal is the tenant that has the log entry of a refused connection without a session: that of a client that
// requested no host, before CONNECT. It is empty if there is none.
func (c *conn) tenantOfRefusal() watchword.TenantID {
	if t := c.tenant.Load(); t != nil {
		return *t
	}
	t, _ := c.broker.options.Tenant("", "")
	return t
}
