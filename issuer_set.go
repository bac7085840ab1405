package watchword

import "time"

// AcceptedIssuer is an issuer of a server, of its default tenant, and until when it is accepted. Until is zero for the current one.
type AcceptedIssuer struct {
	Issuer Issuers
	Until  time.Time
}

// IssuerSet is the issuers of a server: the one that it has now, and those that it had before its address moved. Every check of an
// issuer or of an audience asks it. It must not be modified, and is safe for concurrent use.
type IssuerSet struct {
	all     []AcceptedIssuer // in the order of their first use
	current Issuers
	alone   []string // the current issuer of the default tenant
}

// NewIssuerSet returns a set. all is in the order of their first use, and exactly one has no end.
func NewIssuerSet(all ...AcceptedIssuer) *IssuerSet {
	s := &IssuerSet{all: all}
	for _, a := range all {
		if a.Until.IsZero() {
			s.current = a.Issuer
		}
	}
	s.alone = []string{string(s.current)}
	return s
}

// IssuerSource returns the set of a server as it is now.
type IssuerSource func() *IssuerSet

// FixedIssuer is the source of a server that never had another issuer.
func FixedIssuer(issuer string) IssuerSource {
	s := NewIssuerSet(AcceptedIssuer{Issuer: Issuers(issuer)})
	return func() *IssuerSet { return s }
}

// Current returns the issuer of a tenant, which new tokens carry.
func (s *IssuerSet) Current(t TenantID) string { return s.current.Of(t) }

// URL returns the current issuer without the path of a tenant: the public URL.
func (s *IssuerSet) URL() string { return string(s.current) }

// URLs returns what [IssuerSet.Accepted] does without the path of a tenant.
func (s *IssuerSet) URLs(now time.Time) []string { return s.Accepted(DefaultTenant, now) }

// Moved reports whether the server ever had another issuer.
func (s *IssuerSet) Moved() bool { return len(s.all) > 1 }

// Accepted returns the issuers of a tenant that a credential may name at a time, the current one first.
func (s *IssuerSet) Accepted(t TenantID, now time.Time) []string {
	if len(s.all) < 2 && t == DefaultTenant {
		return s.alone
	}
	out := []string{s.current.Of(t)}
	for _, a := range s.all {
		if now.Before(a.Until) {
			out = append(out, a.Issuer.Of(t))
		}
	}
	return out
}

// Known returns the issuer of a tenant that every device knows which the server still supports: the first one that is accepted. What
// the server signs for devices names it, since a device may not have the bundle yet that names a later one, and a device that
// has it accepts all of them.
func (s *IssuerSet) Known(t TenantID, now time.Time) string {
	for _, a := range s.all {
		if a.Until.IsZero() || now.Before(a.Until) {
			return a.Issuer.Of(t)
		}
	}
	return s.current.Of(t)
}

// Tenant returns the tenant that an accepted issuer identifier names, and empty if it is not one of them. It does not check that the
// tenant exists.
func (s *IssuerSet) Tenant(issuer string, now time.Time) TenantID {
	for _, a := range s.all {
		if a.Until.IsZero() || now.Before(a.Until) {
			if t := a.Issuer.Tenant(issuer); t != "" {
				return t
			}
		}
	}
	return ""
}

// Past returns every issuer of the default tenant that the server had beside the current one, accepted or not.
func (s *IssuerSet) Past() (out []AcceptedIssuer) {
	for _, a := range s.all {
		if !a.Until.IsZero() {
			out = append(out, a)
		}
	}
	return out
}

// Former returns the issuers of the default tenant that are accepted at a time beside the current one.
func (s *IssuerSet) Former(now time.Time) (out []AcceptedIssuer) {
	for _, a := range s.all {
		if now.Before(a.Until) {
			out = append(out, a)
		}
	}
	return out
}
