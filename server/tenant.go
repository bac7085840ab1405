package server

import (
	"maps"
	"net"
	"slices"

	"github.com/watchword-iot/watchword"
)

// tenantOf returns the tenant that a client is for: that of the host that it named, with or without a port; at a host that is of
// no other tenant the named one, and where none is named (empty) the default tenant. Clients may reach the server by any name or
// address of the machine. ok is false where there is no such tenant.
func (s *Server) tenantOf(host string, named watchword.TenantID) (t watchword.TenantID, ok bool) {
	if len(s.hosts) > 0 {
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if t, ok = s.hosts[canonicalHost(host)]; ok {
			return t, true
		}
	}
	if named == "" || named == watchword.DefaultTenant {
		return watchword.DefaultTenant, true
	}
	_, ok = s.o.Tenants[named]
	return named, ok
}

// tenants returns all tenants of the server.
func (o Options) tenants() []watchword.TenantID {
	return slices.AppendSeq([]watchword.TenantID{watchword.DefaultTenant}, maps.Keys(o.Tenants))
}

// tenantHosts returns the tenants by their host names.
func (o Options) tenantHosts() map[string]watchword.TenantID {
	out := map[string]watchword.TenantID{}
	for t, hosts := range o.Tenants {
		for _, h := range hosts {
			out[canonicalHost(h)] = t // checkTenants refused what has no canonical form
		}
	}
	return out
}

// tokenIssuers returns the issuers by which tokens name their tenants; nil where there is the default tenant alone.
func (s *Server) tokenIssuers() watchword.IssuerSource {
	if len(s.o.Tenants) == 0 {
		return nil
	}
	return s.keys.Issuers
}
