package session

import (
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/policy"
)

// Credentials is what a checked access token, on record, says. The doors fill it in.
type Credentials struct {
	Tenant      watchword.TenantID
	Subject     watchword.SubjectID
	Incarnation int64
	Key         watchword.KeyID
	JTI         string
	IssuerKey   watchword.KeyID // the issuer key behind the token
	Issued      time.Time
	Expires     time.Time
	// KeyProved says that the holder proved the key on this request or connection, beyond showing the token.
	KeyProved bool
	// Permissions is the token's perm and deny, compiled.
	Permissions *policy.Grant

	offline bool // nobody shows a token: its end does not count, see [Guard.OpenOffline] and [ByKey]
}

// ByKey is the papers of a subject that proved a key by a client assertion, for one request: there is
// no token, and policy alone counts.
func ByKey(t watchword.TenantID, subject watchword.SubjectID, incarnation int64, key watchword.KeyID) Credentials {
	return Credentials{Tenant: t, Subject: subject, Incarnation: incarnation, Key: key, KeyProved: true, offline: true}
}

// ByKey reports whether the papers are those of [ByKey].
func (p *Credentials) ByKey() bool { return p.offline && p.Key != "" }

// Authority is what a session may do: what the token says and what today's
// policy says, of which both must allow. It is immutable and safe for concurrent
// use; a change of authority is another value.
type Authority struct {
	credentials    Credentials
	subject        policy.Subject
	subjectVersion int64 // the subject's
	policy         *policy.Grant
}

// Versions returns what acts under this authority are decided on, for the store to compare.
func (a *Authority) Versions() watchword.AuthorityVersions {
	return watchword.AuthorityVersions{Subject: a.credentials.Subject, SubjectVersion: a.subjectVersion, Policies: a.policy.Version()}
}

// authorize is the one place that decides whether papers still count.
//
// Codes: token_expired, subject_new, subject_suspended, subject_revoked, token_revoked,
// proof_required.
func authorize(p Credentials, s *watchword.Subject, today *policy.Grant, now time.Time) (*Authority, error) {
	if !p.offline && !now.Before(p.Expires) {
		return nil, watchword.Refuse(watchword.TokenExpired, "the token is over")
	}
	if err := s.CheckActive(); err != nil {
		return nil, err
	}
	if s.Incarnation != p.Incarnation {
		return nil, watchword.Refuse(watchword.TokenRevoked, "the token is of an earlier life of %q", s.ID)
	}
	a := &Authority{credentials: p, subject: policy.Subject{ID: s.ID, Kind: s.Kind, Labels: s.Labels}, subjectVersion: s.AuthorityVersion, policy: today}
	if p.offline && p.Key == "" { // what a subject left behind stands whatever becomes of its keys
		return a, nil
	}
	if _, ok := s.SignKey(p.Key); !ok {
		return nil, watchword.Refuse(watchword.TokenRevoked, "the key that got this token no longer counts")
	}
	if !p.KeyProved {
		if err := RequireProof(s, today); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// Tenant returns the subject's tenant.
func (a *Authority) Tenant() watchword.TenantID { return a.credentials.Tenant }

// Subject returns whose authority it is.
func (a *Authority) Subject() watchword.SubjectID { return a.credentials.Subject }

// PolicySubject returns the subject as policies see it.
func (a *Authority) PolicySubject() policy.Subject { return a.subject }

// Key returns the key with which the subject proved itself.
func (a *Authority) Key() watchword.KeyID { return a.credentials.Key }

// JTI returns the id of the token behind this authority.
func (a *Authority) JTI() string { return a.credentials.JTI }

// Expires returns when it ends by itself.
func (a *Authority) Expires() time.Time { return a.credentials.Expires }

// KeyProved reports whether the key was proved on this request or connection.
func (a *Authority) KeyProved() bool { return a.credentials.KeyProved }

// Token returns the token's own permissions, Today what policy says now.
func (a *Authority) Token() *policy.Grant { return a.credentials.Permissions }

// Policy returns what policy says now.
func (a *Authority) Policy() *policy.Grant { return a.policy }

// Credentials returns what the authority stands on.
func (a *Authority) Credentials() Credentials { return a.credentials }

// Publish decides on one topic. It allocates nothing.
func (a *Authority) Publish(topic string) policy.Decision {
	if d := a.policy.Publish(topic); !d.Allowed || a.credentials.Permissions == nil && a.credentials.offline {
		return d
	}
	return a.credentials.Permissions.Publish(topic)
}

// Subscribe decides on one filter.
func (a *Authority) Subscribe(filter string) policy.Decision {
	if d := a.policy.Subscribe(filter); !d.Allowed || a.credentials.Permissions == nil && a.credentials.offline {
		return d
	}
	return a.credentials.Permissions.Subscribe(filter)
}

// CoversPolicy reports whether the token states all that today's policy gives its subject: it is
// not narrowed, nor of before an edit that gave more.
func (a *Authority) CoversPolicy() bool {
	return a.credentials.offline || a.credentials.Permissions.Covers(a.policy.Perm(), a.policy.Deny())
}

// CoversPolicyTopics is [Authority.CoversPolicy] of the rights to topics alone.
func (a *Authority) CoversPolicyTopics() bool {
	if a.credentials.offline {
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
	return a.credentials.Permissions.Covers(topics(a.policy.Perm()), a.policy.Deny())
}

// AnyTopic reports whether there is a topic that may be published or subscribed to.
func (a *Authority) AnyTopic() bool {
	if a.credentials.offline {
		return policy.AnyTopic(a.policy, a.policy)
	}
	return policy.AnyTopic(a.policy, a.credentials.Permissions)
}

// WithholdsSubscription reports whether policy gives a subscription to filter today and
// the token does not: the token is narrower than what its subject may have.
func (a *Authority) WithholdsSubscription(filter string) bool {
	return !a.credentials.offline && a.policy.Subscribe(filter).Allowed && !a.credentials.Permissions.Subscribe(filter).Allowed
}

// WithholdsPublish is [Authority.WithholdsSubscription] for publishing to a topic.
func (a *Authority) WithholdsPublish(topic string) bool {
	return !a.credentials.offline && a.policy.Publish(topic).Allowed && !a.credentials.Permissions.Publish(topic).Allowed
}

// Call decides on one function of one device with these arguments.
func (a *Authority) Call(t policy.Target, function string, args []byte) policy.Decision {
	if d := a.policy.Call(t, function, args); !d.Allowed || a.credentials.Permissions == nil && a.credentials.offline {
		return d
	}
	return a.credentials.Permissions.Call(t, function, nil)
}

// Request decides on one HTTP method and path.
func (a *Authority) Request(method, path string) policy.Decision {
	if d := a.policy.Request(method, path); !d.Allowed || a.credentials.Permissions == nil && a.credentials.offline {
		return d
	}
	return a.credentials.Permissions.Request(method, path)
}
