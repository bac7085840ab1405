package token

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// IssuerPeriod is an issuer identifier that a server has or had.
type IssuerPeriod struct {
	Issuer string
	Until  time.Time // until when the server accepts what names this issuer; zero: it is the current one
}

// Limits of a bundle's issuer history.
const (
	MaxIssuers = 16  // issuers
	maxAddress = 512 // bytes of an issuer, or of an MQTT address
)

// HasIssuer reports whether the server of the bundle has or had this issuer identifier.
func (t Trust) HasIssuer(issuer string) bool {
	return issuer == t.Issuer || slices.ContainsFunc(t.History, func(p IssuerPeriod) bool { return p.Issuer == issuer })
}

// FirstIssuer returns the issuer identifier of the server's first start.
func (t Trust) FirstIssuer() string {
	if len(t.History) > 0 {
		return t.History[0].Issuer
	}
	return t.Issuer
}

// IssuerNames returns every issuer identifier that the server of the bundle has or had, the current one first. What it signed may
// name any of them: see [ClaimedIssuer].
func (t Trust) IssuerNames() []string {
	names := []string{t.Issuer}
	for _, p := range t.History {
		if p.Issuer != t.Issuer {
			names = append(names, p.Issuer)
		}
	}
	return names
}

// HasHost reports whether a host name or an IP address is that of an issuer which the server accepts at a time: of the current one, or
// of a former one before its end. After that the name may belong to another party. The port does not count, since a certificate has none.
func (t Trust) HasHost(host string, now time.Time) bool {
	if sameHost(t.Issuer, host) {
		return true
	}
	return slices.ContainsFunc(t.History, func(p IssuerPeriod) bool { return now.Before(p.Until) && sameHost(p.Issuer, host) })
}

// sameHost reports whether the host of an issuer is this one: names without regard to case or a final dot, IP addresses in any form.
func sameHost(issuer, host string) bool {
	u, err := url.Parse(issuer)
	if err != nil || u.Hostname() == "" {
		return false
	}
	a, aerr := netip.ParseAddr(u.Hostname())
	b, berr := netip.ParseAddr(host)
	if aerr == nil && berr == nil {
		return a.Unmap() == b.Unmap()
	}
	return strings.EqualFold(strings.TrimSuffix(u.Hostname(), "."), strings.TrimSuffix(host, "."))
}

type issuerClaim struct {
	Issuer string `json:"iss"`
	Until  int64  `json:"until,omitempty"`
}

func issuerClaims(history []IssuerPeriod) (out []issuerClaim) {
	for _, p := range history {
		c := issuerClaim{Issuer: p.Issuer}
		if !p.Until.IsZero() {
			c.Until = p.Until.Unix()
		}
		out = append(out, c)
	}
	return out
}

// readIssuer parses one of the issuers.
func (t *Trust) readIssuer(item jsontext.Value) error {
	var p IssuerPeriod
	var until numericDate
	err := jose.Walk(item, func(name string, v jsontext.Value) error {
		switch name {
		case "iss":
			return readString(&p.Issuer, v)
		case "until":
			return readInt(&until, v)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if until != 0 {
		p.Until = until.time()
	}
	t.History = append(t.History, p)
	if len(t.History) > MaxIssuers {
		return refuse(watchword.TokenMalformed, "issuers must be at most %d", MaxIssuers)
	}
	return nil
}

// checkHistory refuses a history that contradicts itself or iss.
func (t Trust) checkHistory() error {
	current, seen := 0, map[string]bool{}
	for _, p := range t.History {
		if p.Issuer == "" || len(p.Issuer) > maxAddress || seen[p.Issuer] || (p.Issuer == t.Issuer) != p.Until.IsZero() {
			return refuse(watchword.TokenMalformed, "issuers must be distinct, each but iss with its until")
		}
		seen[p.Issuer] = true
		if p.Issuer == t.Issuer {
			current++
		}
	}
	if len(t.History) > 0 && current != 1 || len(t.MQTTS) > maxAddress {
		return refuse(watchword.TokenMalformed, "issuers must contain iss, and mqtts must have at most %d bytes", maxAddress)
	}
	return nil
}
