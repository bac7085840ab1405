package keyring

import (
	"context"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/token"
)

// The overlap of a move: for how long what names the former issuer is accepted.
const (
	DefaultOverlap = 30 * 24 * time.Hour
	MinOverlap     = time.Hour
	MaxOverlap     = 2 * 365 * 24 * time.Hour
)

// addresses is the issuers of a server, and the trust bundle's members about them.
type addresses struct {
	history []token.IssuerPeriod // empty before the first move
	set     *watchword.IssuerSet
}

func newAddresses(first string, history []token.IssuerPeriod) addresses {
	a := addresses{history: history}
	if len(history) == 0 {
		a.set = watchword.NewIssuerSet(watchword.AcceptedIssuer{Issuer: watchword.Issuers(first)})
		return a
	}
	var all []watchword.AcceptedIssuer
	for _, p := range history {
		all = append(all, watchword.AcceptedIssuer{Issuer: watchword.Issuers(p.Issuer), Until: p.Until})
	}
	a.set = watchword.NewIssuerSet(all...)
	return a
}

// readAddresses reads the issuers into k.
func (r *Ring) readAddresses(ctx context.Context, k *keyState) error {
	history, err := r.store.IssuerHistory(ctx)
	k.addresses = newAddresses(r.instance.Issuer, history)
	return err
}

// ofTenant returns a bundle of the default tenant with the issuers of another one.
func ofTenant(trust token.Trust, t watchword.TenantID) token.Trust {
	trust.Issuer = watchword.Issuers(trust.Issuer).Of(t)
	history := trust.History
	trust.History = nil
	for _, p := range history {
		trust.History = append(trust.History, token.IssuerPeriod{Issuer: watchword.Issuers(p.Issuer).Of(t), Until: p.Until})
	}
	return trust
}

// sameHistory reports whether two bundles of one issuer say the same of its address. Neither says where MQTT is before the first move.
func sameHistory(a, b token.Trust) bool {
	return (len(a.History) == 0 && len(b.History) == 0) || a.MQTTS == b.MQTTS && slices.EqualFunc(a.History, b.History, func(p, q token.IssuerPeriod) bool {
		return p.Issuer == q.Issuer && p.Until.Equal(q.Until)
	})
}

// Issuers returns the issuers of the server as they are now. It is a [watchword.IssuerSource].
func (r *Ring) Issuers() *watchword.IssuerSet { return r.state.Load().addresses.set }

// Issuer returns the issuer identifier of the default tenant.
func (r *Ring) Issuer() string { return r.Issuers().URL() }

// MoveIssuer makes issuer, a public URL in its canonical form, the issuer of the server, at once: new tokens carry it, and a new trust
// bundle tells devices. The issuer of before is accepted for overlap more. The former issuers stay in the bundle, so that
// a device that comes back later still follows. Moving back to a former issuer is a move like any other.
//
// Codes: conflict if it is the current one; key_missing if the root is offline; bad_request for an overlap outside of its limits or
// for more than [token.MaxIssuers] issuers; clock_untrusted, unavailable.
func (r *Rotator) MoveIssuer(ctx context.Context, by audit.Actor, issuer string, overlap time.Duration, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	ks := r.ring.state.Load()
	before := r.ring.Issuer()
	switch {
	case overlap < MinOverlap || overlap > MaxOverlap:
		return watchword.RefuseField("overlap", "must be from %s to %s", MinOverlap, MaxOverlap)
	case issuer == before:
		return watchword.Refuse(watchword.Conflict, "the address is %s already", issuer)
	case ks.rootOffline():
		return watchword.Refuse(watchword.KeyMissing, "the root is offline, and must sign the move: bring it back with watchword key root online, move, and take it offline again")
	}
	history := slices.Clone(ks.addresses.history)
	if len(history) == 0 {
		history = []token.IssuerPeriod{{Issuer: before}}
	}
	known := false
	until := now.Add(overlap).Truncate(time.Second) // the precision of a bundle
	for i, p := range history {
		switch p.Issuer {
		case before:
			history[i].Until = until
		case issuer:
			history[i].Until, known = time.Time{}, true
		}
	}
	if !known {
		history = append(history, token.IssuerPeriod{Issuer: issuer})
	}
	if len(history) > token.MaxIssuers {
		return watchword.RefuseField("url", "must be one of the former addresses: a server has at most %d in its life", token.MaxIssuers)
	}
	return r.apply(ctx, by, KeyUpdate{Issuers: history}, "", now)
}

// auditMove returns the entry of a move; nil if t is none.
func auditMove(by audit.Actor, t KeyUpdate, before string, now time.Time) []audit.Entry {
	if t.Issuers == nil {
		return nil
	}
	data := map[string]string{"before": before}
	for _, p := range t.Issuers {
		if p.Issuer == before {
			data["until"] = p.Until.UTC().Format(time.RFC3339)
		}
		if p.Until.IsZero() {
			data["after"] = p.Issuer
		}
	}
	return []audit.Entry{by.DoneEntry(audit.AddressMove, data["after"], now, data)}
}
