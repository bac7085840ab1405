package verify

import (
	"context"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/permit"
	"github.com/watchword-iot/watchword/token"
)

// Token is an access token that was checked: by [Verifier.Check], or with its proof
// of possession by [Verifier.CheckRequest]. Requests share it, so it must not be
// changed.
type Token struct {
	ID       string              // jti
	Subject  watchword.SubjectID // device, operator or service
	Labels   watchword.Labels    // of the subject, when the token was issued
	Key      watchword.KeyID     // that the subject proved itself with
	Bound    watchword.KeyID     // cnf.jkt: the key that each request must prove; empty for a bearer token
	SignedBy watchword.KeyID     // the issuer's key
	Issuer   string
	Audience []string
	Issued   time.Time
	Expires  time.Time // this service takes it for [token.Skew] longer

	grant *grant
}

type grant = permit.Grant[struct{}] // a token carries no bounds on arguments

// Decision is the answer to one question: Allowed, and Err with code denied where it
// is not.
type Decision = permit.Decision

// Allows decides on one thing that the subject wants to do, denied lines first:
//
//	topic:plant/1/lux      pub          one topic
//	topic:plant/+/lux      sub          one filter: all of it must be allowed
//	api:/readings/lamp-7   get          one path; put, post, patch, delete beside; HEAD is get
//	fn:lamp-7/lamp.set     call         one function of one device
//
// What is none of these is nobody's, nor what has control characters or no UTF-8. A path is
// one that was decoded. For a call the device's labels are not known here:
// what the token allows by labels is then not allowed, and what it denies by labels is
// denied; [Token.AllowsCall] takes them. Bounds on a call's arguments stand in policy
// alone; the token does not carry them.
func (t *Token) Allows(resource, action string) Decision {
	if !permit.Printable(resource) {
		return Decision{}
	}
	if topic, ok := strings.CutPrefix(resource, watchword.TopicPrefix); ok {
		switch {
		case action == "pub" && permit.CheckTopic(topic) == nil:
			return t.grant.Publish(topic)
		case action == "sub" && permit.CheckFilter(topic) == nil:
			return t.grant.Subscribe(topic)
		}
		return Decision{}
	}
	if path, ok := strings.CutPrefix(resource, watchword.APIPrefix); ok {
		return t.grant.Request(action, path)
	}
	if call, ok := strings.CutPrefix(resource, watchword.FunctionPrefix); ok && action == "call" {
		device, function, _ := strings.Cut(call, "/")
		return t.call(permit.Target{ID: watchword.SubjectID(device), Unlabeled: true}, function)
	}
	return Decision{}
}

// AllowsCall decides on one function of one device whose labels are known.
func (t *Token) AllowsCall(device watchword.SubjectID, labels watchword.Labels, function string) Decision {
	return t.call(permit.Target{ID: device, Labels: labels}, function)
}

func (t *Token) call(target permit.Target, function string) Decision {
	if !watchword.ValidName(string(target.ID)) || !watchword.ValidName(function) {
		return Decision{}
	}
	return t.grant.Call(target, function, nil)
}

// stillValid reports whether a token that was good once still is: its key counts and its
// time has not expired.
func (t *Token) stillValid(s *keySet, now time.Time) bool {
	_, counts := s.keys[t.SignedBy]
	return counts && now.Before(t.Expires.Add(token.Skew)) && !t.Issued.After(now.Add(token.Skew))
}

// newToken reads what [token.VerifyAccess] leaves to the caller. Code: token_malformed.
func newToken(a *token.Access, raw string) (*Token, error) {
	labels, err := a.Labels(raw)
	if err != nil {
		return nil, err
	}
	perm, deny, err := a.Permissions()
	if err != nil {
		return nil, err
	}
	g, err := permit.FromPermissions[struct{}](perm, deny)
	if err != nil {
		return nil, err
	}
	return &Token{
		ID: a.JTI, Subject: a.Subject, Labels: labels, Key: a.Key, Bound: a.Bound, SignedBy: a.SignedBy,
		Issuer: a.Issuer, Audience: append([]string(nil), a.Audience...), Issued: a.Issued, Expires: a.Expires, grant: g,
	}, nil
}

type contextKey struct{}

// NewContext returns a context that carries a checked token, as [Verifier.Require]
// gives it to its handler.
func NewContext(ctx context.Context, t *Token) context.Context {
	return context.WithValue(ctx, contextKey{}, t)
}

// FromContext returns the token of a request that passed [Verifier.Require]; nil
// where none did.
func FromContext(ctx context.Context) *Token {
	t, _ := ctx.Value(contextKey{}).(*Token)
	return t
}
