package mqtt

import (
	"crypto/tls"
	"time"

	"github.com/watchword-iot/watchword"
)

// resolveTenant finds the tenant whose keys may prove the client, by the host that it named. It is called while CONNECT or
// AUTH is handled: the TLS handshake is over. Codes: rate_limited; denied for a host that is of no tenant.
func (c *conn) resolveTenant(now time.Time) (watchword.TenantID, error) {
	if t := c.tenant.Load(); t != nil {
		return *t, nil
	}
	host := ""
	switch nc := c.nc.(type) {
	case *tls.Conn:
		host = nc.ConnectionState().ServerName
	case *webSocketConn:
		host = nc.host
	}
	t, ok := c.broker.options.Tenant(host)
	if ok {
		c.tenant.Store(&t)
		return t, nil
	}
	if err := c.broker.unknownHosts.Take(struct{}{}, now); err != nil {
		return "", err
	}
	return "", watchword.Refuse(watchword.Denied, "this host is of no tenant")
}

// refusedTenant is the tenant in whose log the refusal of a connection without a session stands: that of a client that named
// no host, before CONNECT. It is empty where there is none.
func (c *conn) refusedTenant() watchword.TenantID {
	if t := c.tenant.Load(); t != nil {
		return *t
	}
	t, _ := c.broker.options.Tenant("")
	return t
}
