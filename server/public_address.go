package server

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/watchword-iot/watchword"
)

// Addresses by which clients reach the server are written in many ways. Tokens, certificates and proofs are compared byte by byte,
// so every one is brought into one form where it is read: lower case, IP addresses as RFC 5952 has them, no final dot, no
// default port. What no client on another machine could use is refused.

// canonicalName returns a host name or an IP address, without brackets, in its one form. The error is a text behind the name of a
// key: what must be otherwise.
func canonicalName(name string) (string, error) {
	if bare, ok := strings.CutPrefix(name, "["); ok && strings.HasSuffix(bare, "]") {
		name = strings.TrimSuffix(bare, "]")
	}
	if a, err := netip.ParseAddr(strings.Replace(name, "%25", "%", 1)); err == nil {
		return canonicalIP(a)
	}
	lower := strings.ToLower(strings.TrimSuffix(name, "."))
	labels := strings.Split(lower, ".")
	for _, r := range lower {
		if r > 127 {
			return "", fmt.Errorf("must be in ASCII, and %q is not: write its xn--… form", name)
		}
	}
	if strings.Contains(name, "://") || strings.ContainsAny(name, "/:@?#*") {
		return "", fmt.Errorf("must be host names or IP addresses alone, without scheme, port, path or *, and not %q", name)
	}
	if lower == "" || len(lower) > 253 {
		return "", fmt.Errorf("must be host names of 1 to 253 bytes or IP addresses, and not %q", name)
	}
	for _, l := range labels {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return "", fmt.Errorf("must be host names or IP addresses, and not %q", name)
		}
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return "", fmt.Errorf("must be host names or IP addresses: %q ends in a number and is not an IPv4 address", name)
	}
	return lower, nil
}

func canonicalIP(a netip.Addr) (string, error) {
	a = a.Unmap()
	switch {
	case a.Zone() != "":
		return "", fmt.Errorf("must not have a zone: %%%s names an interface of one machine alone, and no certificate contains it; use a name such as hub.local, or another address", a.Zone())
	case a.IsUnspecified(), a.IsMulticast():
		return "", fmt.Errorf("must be addresses that a client can connect to, and not %s", a)
	case a.Is6() && a.IsLinkLocalUnicast():
		return "", fmt.Errorf("must not be link-local IPv6 addresses: clients cannot reach %s without naming an interface of their own; use a name such as hub.local, or another address", a)
	}
	return a.String(), nil
}

// canonicalURL returns the public URL of a server in its one form: https://HOST[:PORT].
func canonicalURL(text string) (string, error) {
	const form = "must be https://HOST[:PORT]"
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok || !strings.EqualFold(scheme, "https") {
		return "", fmt.Errorf(form+": %q does not begin with https://", text)
	}
	authority := strings.TrimRight(rest, "/")
	if i := strings.IndexAny(authority, "/?#"); i >= 0 {
		return "", fmt.Errorf(form+", without path, query or fragment: %q has %q; tenants have their own paths, /t/NAME, below it", text, authority[i:])
	}
	if strings.Contains(authority, "@") {
		return "", fmt.Errorf(form+", without a user: %q has one", text)
	}
	host, port, err := splitPort(authority)
	if err != nil {
		return "", fmt.Errorf(form+": %w", err)
	}
	if host, err = canonicalName(host); err != nil {
		return "", err
	}
	if port == "443" {
		port = ""
	}
	return "https://" + joinPort(host, port), nil
}

// canonicalHostPort returns HOST:PORT in its one form.
func canonicalHostPort(text string) (string, error) {
	host, port, err := splitPort(text)
	if err == nil && port == "" {
		err = fmt.Errorf("%q has no port", text)
	}
	if err != nil {
		return "", fmt.Errorf("must be HOST:PORT: %w", err)
	}
	if host, err = canonicalName(host); err != nil {
		return "", err
	}
	return net.JoinHostPort(host, port), nil
}

// splitPort cuts a port, which is empty if there is none, off a host. An IPv6 address needs brackets.
func splitPort(authority string) (host, port string, err error) {
	colons := strings.Count(authority, ":")
	if i := strings.LastIndexByte(authority, ']'); strings.HasPrefix(authority, "[") && i >= 0 {
		host, port = authority[:i+1], authority[i+1:]
		if a, err := netip.ParseAddr(strings.Replace(authority[1:i], "%25", "%", 1)); err != nil || !a.Is6() {
			return "", "", fmt.Errorf("%q is not an IPv6 address", host)
		}
		if port == "" {
			return host, "", nil
		}
		if port[0] != ':' {
			return "", "", fmt.Errorf("%q is not a port", port)
		}
		port = port[1:]
	} else if colons > 1 {
		return "", "", fmt.Errorf("an IPv6 address needs brackets, [%s]", authority)
	} else if colons == 0 {
		return authority, "", nil
	} else {
		host, port, _ = strings.Cut(authority, ":")
	}
	n, perr := strconv.ParseUint(port, 10, 16)
	if perr != nil || n == 0 {
		return "", "", fmt.Errorf("the port must be from 1 to 65535, and is %q", port)
	}
	return host, strconv.FormatUint(n, 10), nil
}

// joinPort puts brackets around an IPv6 address, also where there is no port.
func joinPort(host, port string) string {
	if port != "" {
		return net.JoinHostPort(host, port)
	}
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

// sameURL reports whether two public URLs are spellings of one. A server of an earlier build may have an issuer in another form
// than the canonical one, which stays as it is.
func sameURL(a, b string) bool {
	ca, errA := canonicalURL(a)
	cb, errB := canonicalURL(b)
	return a == b || errA == nil && errB == nil && ca == cb
}

func (s ServerConfig) checkAddresses() error {
	for _, n := range s.Names {
		if _, err := canonicalName(n); err != nil {
			return configError("server.names", "%s", err)
		}
	}
	if s.PublicURL != "" {
		if _, err := canonicalURL(s.PublicURL); err != nil {
			return configError("server.public_url", "%s", err)
		}
	}
	if s.PublicMQTTS != "" {
		if _, err := canonicalHostPort(s.PublicMQTTS); err != nil {
			return configError("server.public_mqtts", "%s", err)
		}
		if s.MQTTS == "" {
			return configError("server.public_mqtts", "must not be set while server.mqtts is empty: the server does not listen for MQTT over TLS")
		}
	}
	return nil
}

// names returns the names and addresses that clients use, in their canonical form, without duplicates: server.names first, and those of
// server.acme_domain last. Invalid
// ones are left out.
func (s ServerConfig) names() (out []string) {
	all := slices.Clone(s.Names)
	if u, err := canonicalURL(s.PublicURL); err == nil {
		all = append(all, hostOf(u))
	}
	if a, err := canonicalHostPort(s.PublicMQTTS); err == nil {
		host, _, _ := net.SplitHostPort(a) // canonical
		all = append(all, host)
	}
	all = append(all, s.AcmeDomain...)
	for _, n := range all {
		if n, err := canonicalName(n); err == nil && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// hostOf returns the host of a URL, without brackets; empty if it has none.
func hostOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// PublicURL returns the URL of the server for its clients, in its canonical form.
func (c Config) PublicURL() string {
	if u, err := canonicalURL(c.Server.PublicURL); err == nil {
		return u
	}
	name := "localhost"
	if names := c.Server.names(); len(names) > 0 {
		name = names[0]
	}
	_, port, err := net.SplitHostPort(c.Server.HTTPS)
	if err != nil || port == "443" {
		port = ""
	}
	return "https://" + joinPort(name, port)
}

// checkTenants refuses tenants and host names that no client could name. Code: config_invalid.
func (o Options) checkTenants(own []string) error {
	seen := map[string]watchword.TenantID{}
	for t, hosts := range o.Tenants {
		if !watchword.ValidName(string(t)) || t == watchword.DefaultTenant {
			return configError("tenants", "must have valid names, other than %q, and not %q", watchword.DefaultTenant, t)
		}
		for _, h := range hosts {
			name, err := canonicalName(h)
			if err != nil {
				return configError("tenants", "host names of tenant %s %s", t, err)
			}
			if other, ok := seen[name]; ok || slices.Contains(own, name) {
				if !ok {
					other = watchword.DefaultTenant
				}
				return configError("tenants", "must have host names of their own: %s is also of tenant %s", name, other)
			}
			seen[name] = t
		}
	}
	return nil
}
