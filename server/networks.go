package server

import (
	"net"
	"net/netip"
)

// networks is the networks that a key of the configuration names.
type networks []netip.Prefix

// parseNetworks returns networks of addresses and prefixes. ok is false if one is neither.
func parseNetworks(texts []string) (out networks, ok bool) {
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if a, aerr := netip.ParseAddr(text); aerr == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), nil
		}
		if a := p.Addr(); err == nil && a.Is4In6() { // as contain compares it
			if p.Bits() < 96 {
				return nil, false
			}
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		if err != nil {
			return nil, false
		}
		out = append(out, p.Masked())
	}
	return out, true
}

// contain reports whether an address is in one of the networks. An IPv4 address in IPv6 form is that IPv4 address.
func (n networks) contain(a netip.Addr) bool {
	a = a.Unmap()
	for _, p := range n {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// containPeer reports whether the peer's address is in one of the networks.
func (n networks) containPeer(nc net.Conn) bool {
	a, ok := nc.RemoteAddr().(*net.TCPAddr)
	return ok && n.contain(a.AddrPort().Addr())
}
