package session

import (
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/policy"
)

// Papers is what a checked access token, on record, says. The doors fill it in.
type Papers struct {
	Tenant      watchword.TenantID
	Subject     watchword.SubjectID
	Incarnation int64
	Key         watchword.KeyID
	JTI         string
	SignedBy    watchword.KeyID // the issuer key behind the token
	Issued      time.Time
	Expires     time.Time
	// Proved says that the holder proved the key on this request or connection, beyond showing the token.
	Proved bool
	// Permissions is the token's perm and deny, compiled.
	Permissions *policy.Grant

	absent bool // nobody shows a token: its end does not count, see [Guard.Hold] and [ByKey]
}

// ByKey is the papers of a subject that proved a key by a client assertion, for one request: there is
// no token, and policy alone counts.
func ByKey(t watchword.TenantID, subject watchword.SubjectID, incarnation int64, key watchword.KeyID) Papers {
	return Papers{Tenant: t, Subject: subject, Incarnation: incarnation, Key: key, Proved: true, absent: true}
}

// ByKey reports whether the papers are those of [ByKey].
func (p *Papers) ByKey() bool { return p.absent && p.Key != "" }

// Authority is what a session may do: what the token says and what today's
// policy says, of which both must allow. It is immutable and safe for concurrent
// use; a change of authority is another value.
type Authority struct {
	papers Papers
	who    policy.Who
	basis  int64 // the subject's
	today  *policy.Grant
}

// Basis returns what acts under this authority are decided on, for the store to compare.
func (a *Authority) Basis() watchword.Basis {
	return watchword.Basis{Subject: a.papers.Subject, Version: a.basis, Policies: a.today.Version()}
}

// judge is the one place that decides whether papers still count.
//
// Codes: token_expired, subject_new, subject_suspended, subject_revoked, token_revoked,
// proof_required.
func judge(p Papers, s *watchword.Subject, today *policy.Grant, now time.Time) (*Authority, error) {
	if !p.absent && !now.Before(p.Expires) {
		return nil, watchword.Refuse(watchword.TokenExpired, "the token is over")
	}
	if err := s.Usable(); err != nil {
		return nil, err
	}
	if s.Incarnation != p.Incarnation {
		return nil, watchword.Refuse(watchword.TokenRevoked, "the token is of an earlier life of %q", s.ID)
	}
	a := &Authority{papers: p, who: policy.Who{ID: s.ID, Kind: s.Kind, Labels: s.Labels}, basis: s.Basis, today: today}
	if p.absent && p.Key == "" { // what a subject left behind stands whatever becomes of its keys
		return a, nil
	}
	if _, ok := s.SignKey(p.Key); !ok {
		return nil, watchword.Refuse(watchword.TokenRevoked, "the key that got this token no longer counts")
	}
	if !p.Proved {
		if err := NeedsProof(s, today); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// Tenant returns the subject's tenant.
func (a *Authority) Tenant() watchword.TenantID { return a.papers.Tenant }

// Subject returns whose authority it is.
func (a *Authority) Subject() watchword.SubjectID { return a.papers.Subject }

// Who returns the subject as policies see it.
func (a *Authority) Who() policy.Who { return a.who }

// Key returns the key with which the subject proved itself.
func (a *Authority) Key() watchword.KeyID { return a.papers.Key }

// JTI returns the id of the token behind this authority.
func (a *Authority) JTI() string { return a.papers.JTI }

// Expires returns when it ends by itself.
func (a *Authority) Expires() time.Time { return a.papers.Expires }

// Proved reports whether the key was proved on this request or connection.
func (a *Authority) Proved() bool { return a.papers.Proved }

// Token returns the token's own permissions, Today what policy says now.
func (a *Authority) Token() *policy.Grant { return a.papers.Permissions }

// Today returns what policy says now.
func (a *Authority) Today() *policy.Grant { return a.today }

// Papers returns what the authority stands on.
func (a *Authority) Papers() Papers { return a.papers }

// Publish decides on one topic. It allocates nothing.
func (a *Authority) Publish(topic string) policy.Decision {
	if d := a.today.Publish(topic); !d.Allowed || a.papers.Permissions == nil && a.papers.absent {
		return d
	}
	return a.papers.Permissions.Publish(topic)
}

// Subscribe decides on one filter.
func (a *Authority) Subscribe(filter string) policy.Decision {
	if d := a.today.Subscribe(filter); !d.Allowed || a.papers.Permissions == nil && a.papers.absent {
		return d
	}
	return a.papers.Permissions.Subscribe(filter)
}

// Whole reports whether the token states all that today's policy gives its subject: it is
// not narrowed, nor of before an edit that gave more.
func (a *Authority) Whole() bool {
	return a.papers.absent || a.papers.Permissions.Covers(a.today.Perm(), a.today.Deny())
}

// WholeTopics is [Authority.Whole] of the rights to topics alone.
func (a *Authority) WholeTopics() bool {
	if a.papers.absent {
		return true
	}
	topics := func(ps []watchword.Permission) (out []watchword.Permission) {
		for _, p := range ps {
			if strings.HasPrefix(p.Resource, watchword.TopicPrefix) {
				out = append(out, p)
			}
		}
		return out
	}
	return a.papers.Permissions.Covers(topics(a.today.Perm()), a.today.Deny())
}

// AnyTopic reports whether there is a topic that may be published or subscribed to.
func (a *Authority) AnyTopic() bool {
	if a.papers.absent {
		return policy.AnyTopic(a.today, a.today)
	}
	return policy.AnyTopic(a.today, a.papers.Permissions)
}

// WithholdsSubscription reports whether policy gives a subscription to filter today and
// the token does not: the token is narrower than what its subject may have.
func (a *Authority) WithholdsSubscription(filter string) bool {
	return !a.papers.absent && a.today.Subscribe(filter).Allowed && !a.papers.Permissions.Subscribe(filter).Allowed
}

// WithholdsPublish is [Authority.WithholdsSubscription] for publishing to a topic.
func (a *Authority) WithholdsPublish(topic string) bool {
	return !a.papers.absent && a.today.Publish(topic).Allowed && !a.papers.Permissions.Publish(topic).Allowed
}

// Call decides on one function of one device with these arguments.
func (a *Authority) Call(t policy.Target, function string, args []byte) policy.Decision {
	if d := a.today.Call(t, function, args); !d.Allowed || a.papers.Permissions == nil && a.papers.absent {
		return d
	}
	return a.papers.Permissions.Call(t, function, nil)
}

// Request decides on one HTTP method and path.
func (a *Authority) Request(method, path string) policy.Decision {
	if d := a.today.Request(method, path); !d.Allowed || a.papers.Permissions == nil && a.papers.absent {
		return d
	}
	return a.papers.Permissions.Request(method, path)
}
