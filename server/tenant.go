package server

import (
	"net"

	"github.com/watchword-iot/watchword"
)

// tenantOf returns the tenant of a host that a client named, with or without a port: one of [Options.Hosts], else the default
// tenant, whatever the host is: clients may reach the server by any name or address of the machine.
func (s *Server) tenantOf(host string) (watchword.TenantID, bool) {
	if len(s.o.Hosts) == 0 {
		return watchword.DefaultTenant, true
	}
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if t, ok := s.o.Hosts[canonicalHost(host)]; ok {
		return t, true
	}
	return watchword.DefaultTenant, true
}
