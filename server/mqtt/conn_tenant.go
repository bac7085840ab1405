package mqtt

import (
	"crypto/tls"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/token"
)

// resolveTenant finds the tenant whose keys may prove the client: by the host that it named, by the path of its WebSocket
// request, and where these name none by the issuer that its token names. It is called while CONNECT or AUTH is handled: the TLS
// handshake is over. Codes: rate_limited; denied where there is no such tenant.
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
	if named = path; named == "" && c.broker.options.Issuers != "" {
		named = c.broker.options.Issuers.Tenant(token.UnverifiedIssuer(presented))
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

// tenantOfRefusal is the tenant in whose log the refusal of a connection without a session stands: that of a client that named
// no host, before CONNECT. It is empty where there is none.
func (c *conn) tenantOfRefusal() watchword.TenantID {
	if t := c.tenant.Load(); t != nil {
		return *t
	}
	t, _ := c.broker.options.Tenant("", "")
	return t
}
