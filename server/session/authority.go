package session

import (
	"strings"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
)

// Credentials holds the verified claims of an access token that is on record. Transports fill it
// in.
type Credentials struct {
	Tenant      watchword.TenantID
	Subject     watchword.SubjectID
	Incarnation int64
	Key         watchword.KeyID
	JTI         string
	IssuerKey   watchword.KeyID // the issuer key that signed the token
	Issued      time.Time
	Expires     time.Time
	// KeyProved says that the client proved Key on this request or connection, beyond
	// presenting the token. The proof of another key, which the token is bound to, does not count.
	KeyProved bool
	// BindingProved says that the token is bound to a key, Key or another one, which was proved on this request (RFC 9449).
	BindingProved bool
	// Permissions is the compiled perm and deny claims of the token.
	Permissions *policy.Grant

	offline bool // no token is presented, so its expiry is not checked: see [Guard.OpenOffline] and [KeyCredentials]
}

// KeyCredentials returns the credentials of a subject that proved a key by a client assertion, for one
// request: there is no token, and policy alone decides.
func KeyCredentials(t watchword.TenantID, subject watchword.SubjectID, incarnation int64, key watchword.KeyID) Credentials {
	return Credentials{Tenant: t, Subject: subject, Incarnation: incarnation, Key: key, KeyProved: true, offline: true}
}

// WithoutToken reports whether the credentials were made by [KeyCredentials].
func (p *Credentials) WithoutToken() bool { return p.offline && p.Key != "" }

// Authority is what a session may do: an act is allowed if both the token and the current policy
// allow it. It is immutable and safe for concurrent use; a change makes a new value.
type Authority struct {
	credentials    Credentials
	subject        policy.Subject
	subjectVersion int64 // version of the subject
	policy         *policy.Grant
	ends           time.Time // of the token, or of the key where that comes first; zero without a token
	serial         uint64
}

// skew is how far in the future the issue time of a token may lie, as package token has it.
const skew = time.Minute

// errExpired is the end of what is as old as it may become.
var errExpired = watchword.Refuse(watchword.TokenExpired, "exp has passed")

// errEarly is the end of what was issued by a clock that was ahead and has gone back.
var errEarly = watchword.Refuse(watchword.TokenEarly, "iat is more than 60 seconds in the future")

// errKeyInvalid is the end of what a key was used for that is not valid any more.
var errKeyInvalid = watchword.Refuse(watchword.TokenRevoked, "the key that this token was issued for is retired, revoked or past its end")

// authoritySerial is the serial of the newest authority, less firstSerial.
var authoritySerial atomic.Uint64

// firstSerial is above the numbers that stand for no authority.
const firstSerial = 16

// Serial returns the number of the authority, which no other one of this process has: equal numbers decide equally.
func (a *Authority) Serial() uint64 { return a.serial }

// Versions returns the versions that decisions under this authority are based on; the store
// compares them.
func (a *Authority) Versions() watchword.AuthorityVersions {
	return watchword.AuthorityVersions{Subject: a.credentials.Subject, SubjectVersion: a.subjectVersion, Policies: a.policy.Version()}
}

// authorize decides whether credentials are valid now, for a subject and its current policy. No
// other function decides this.
//
// Codes: token_expired, token_early, subject_new, subject_suspended, subject_revoked, token_revoked,
// proof_required.
func authorize(p Credentials, s *watchword.Subject, today *policy.Grant, now time.Time) (*Authority, error) {
	if !p.offline && !now.Before(p.Expires) {
		return nil, errExpired
	}
	if !p.offline && p.Issued.After(now.Add(skew)) {
		return nil, errEarly
	}
	if err := s.CheckActive(); err != nil {
		return nil, err
	}
	if s.Incarnation != p.Incarnation {
		return nil, watchword.Refuse(watchword.TokenRevoked, "the token was issued before %q was enrolled again", s.ID)
	}
	a := &Authority{credentials: p, subject: PolicySubject(s), subjectVersion: s.AuthorityVersion, policy: today, ends: p.Expires, serial: firstSerial + authoritySerial.Add(1)}
	if p.offline && p.Key == "" { // an offline session without a key does not depend on the subject's keys
		return a, nil
	}
	k, ok := s.SignKey(p.Key, now)
	if !ok {
		return nil, errKeyInvalid
	}
	if !k.Ends.IsZero() && k.Ends.Before(a.ends) {
		a.ends = k.Ends
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

// Subject returns the subject's id.
func (a *Authority) Subject() watchword.SubjectID { return a.credentials.Subject }

// PolicySubject returns the subject as policies see it.
func (a *Authority) PolicySubject() policy.Subject { return a.subject }

// Key returns the key that the subject proved.
func (a *Authority) Key() watchword.KeyID { return a.credentials.Key }

// JTI returns the id of the token (RFC 7519 §4.1.7).
func (a *Authority) JTI() string { return a.credentials.JTI }

// Expires returns when the authority ends by itself: when the token expires, or at the end of its key where that comes first.
func (a *Authority) Expires() time.Time { return a.ends }

// KeyProved reports whether [Authority.Key] was proved on this request or connection.
func (a *Authority) KeyProved() bool { return a.credentials.KeyProved }

// Token returns the token's own permissions.
func (a *Authority) Token() *policy.Grant { return a.credentials.Permissions }

// Policy returns the permissions that policy gives now.
func (a *Authority) Policy() *policy.Grant { return a.policy }

// Credentials returns the credentials that the authority is based on.
func (a *Authority) Credentials() Credentials { return a.credentials }

// Publish decides on publishing to a topic. It does not allocate.
func (a *Authority) Publish(topic string) policy.Decision {
	if d := a.policy.Publish(topic); !d.Allowed || a.credentials.Permissions == nil && a.credentials.offline {
		return d
	}
	return a.credentials.Permissions.Publish(topic)
}

// Subscribe decides on subscribing to a filter.
func (a *Authority) Subscribe(filter string) policy.Decision {
	if d := a.policy.Subscribe(filter); !d.Allowed || a.credentials.Permissions == nil && a.credentials.offline {
		return d
	}
	return a.credentials.Permissions.Subscribe(filter)
}

// CoversPolicy reports whether the token has all permissions that policy gives its subject now. It
// is false for a narrowed token and for a token from before an edit that gave more.
func (a *Authority) CoversPolicy() bool {
	return a.credentials.offline || a.credentials.Permissions.Covers(a.policy.Perm(), a.policy.Deny())
}

// CoversPolicyTopics is [Authority.CoversPolicy] for permissions on topics only.
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

// AnyTopic reports whether publishing or subscribing is allowed on any topic.
func (a *Authority) AnyTopic() bool {
	if a.credentials.offline {
		return policy.AnyTopic(a.policy, a.policy)
	}
	return policy.AnyTopic(a.policy, a.credentials.Permissions)
}

// TokenLacksSubscribe reports whether policy allows a subscription to filter and the token does
// not.
func (a *Authority) TokenLacksSubscribe(filter string) bool {
	return !a.credentials.offline && a.policy.Subscribe(filter).Allowed && !a.credentials.Permissions.Subscribe(filter).Allowed
}

// TokenLacksPublish is [Authority.TokenLacksSubscribe] for publishing to a topic.
func (a *Authority) TokenLacksPublish(topic string) bool {
	return !a.credentials.offline && a.policy.Publish(topic).Allowed && !a.credentials.Permissions.Publish(topic).Allowed
}

// Call decides on calling one function of one device with these arguments.
func (a *Authority) Call(t policy.Target, function string, args []byte) policy.Decision {
	if d := a.policy.Call(t, function, args); !d.Allowed || a.credentials.Permissions == nil && a.credentials.offline {
		return d
	}
	return a.credentials.Permissions.Call(t, function, nil)
}

// Request decides on an HTTP method and path.
func (a *Authority) Request(method, path string) policy.Decision {
	if d := a.policy.Request(method, path); !d.Allowed || a.credentials.Permissions == nil && a.credentials.offline {
		return d
	}
	return a.credentials.Permissions.Request(method, path)
}
