package verify

import (
	"context"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/authz"
	"github.com/watchword-iot/watchword/token"
)

// Token is a verified access token: by [Verifier.Check], or with its proof of possession by [Verifier.CheckRequest].
// Requests share it, so it must not be modified.
type Token struct {
	ID       string              // jti
	Subject  watchword.SubjectID // device, operator or service
	Labels   watchword.Labels    // of the subject, when the token was issued
	Key      watchword.KeyID     // thumbprint of the key with which the subject authenticated
	Bound    watchword.KeyID     // cnf.jkt: the key that each request must prove; empty for a bearer token
	SignedBy watchword.KeyID     // the issuer's key
	Issuer   string
	Audience []string
	Issued   time.Time
	Expires  time.Time // this service accepts it for [token.Skew] longer

	grant *grant
}

type grant = authz.Grant[struct{}] // a token carries no constraints on arguments

// Decision is the result of an authorization check: Allowed, and Err with code denied if it is not allowed.
type Decision = authz.Decision

// Allows decides whether the token allows an action on a resource. The claim deny takes precedence:
//
//	topic:plant/1/lux      pub          one topic
//	topic:plant/+/lux      sub          one filter: all of it must be allowed
//	api:/readings/lamp-7   get          one path; also put, post, patch, delete; HEAD is get
//	fn:lamp-7/lamp.set     call         one function of one device
//
// Any other resource is denied, and so is one with control characters or invalid UTF-8. A path is the decoded one. For a
// call the device's labels are not known here: permissions by label do not allow the call, and denials by label deny it;
// use [Token.AllowsCall] if the labels are known. Constraints on a call's arguments are in policy only; the token does not
// carry them.
func (t *Token) Allows(resource, action string) Decision {
	if !authz.Printable(resource) {
		return Decision{}
	}
	if topic, ok := strings.CutPrefix(resource, watchword.TopicPrefix); ok {
		switch {
		case action == "pub" && authz.CheckTopic(topic) == nil:
			return t.grant.Publish(topic)
		case action == "sub" && authz.CheckFilter(topic) == nil:
			return t.grant.Subscribe(topic)
		}
		return Decision{}
	}
	if path, ok := strings.CutPrefix(resource, watchword.APIPrefix); ok {
		return t.grant.Request(action, path)
	}
	if call, ok := strings.CutPrefix(resource, watchword.FunctionPrefix); ok && action == "call" {
		device, function, _ := strings.Cut(call, "/")
		return t.call(authz.Target{ID: watchword.SubjectID(device), Unlabeled: true}, function)
	}
	return Decision{}
}

// AllowsCall decides on one function of one device with known labels.
func (t *Token) AllowsCall(device watchword.SubjectID, labels watchword.Labels, function string) Decision {
	return t.call(authz.Target{ID: device, Labels: labels}, function)
}

func (t *Token) call(target authz.Target, function string) Decision {
	if !watchword.ValidName(string(target.ID)) || !watchword.ValidName(function) {
		return Decision{}
	}
	return t.grant.Call(target, function, nil)
}

// stillValid reports whether a token that was valid before still is: its key is valid and it has not expired.
func (t *Token) stillValid(s *keySet, now time.Time) bool {
	_, counts := s.keys[t.SignedBy]
	return counts && now.Before(t.Expires.Add(token.Skew)) && !t.Issued.After(now.Add(token.Skew))
}

// newToken checks the claims that [token.VerifyAccess] leaves to the caller. Code: token_malformed.
func newToken(a *token.Access, raw string) (*Token, error) {
	labels, err := a.Labels(raw)
	if err != nil {
		return nil, err
	}
	perm, deny, err := a.Permissions()
	if err != nil {
		return nil, err
	}
	g, err := authz.FromPermissions[struct{}](perm, deny)
	if err != nil {
		return nil, err
	}
	return &Token{
		ID: a.JTI, Subject: a.Subject, Labels: labels, Key: a.Key, Bound: a.Bound, SignedBy: a.SignedBy,
		Issuer: a.Issuer, Audience: append([]string(nil), a.Audience...), Issued: a.Issued, Expires: a.Expires, grant: g,
	}, nil
}

type contextKey struct{}

// NewContext returns a context that carries a verified token, as [Verifier.Require] passes it to its handler.
func NewContext(ctx context.Context, t *Token) context.Context {
	return context.WithValue(ctx, contextKey{}, t)
}

// FromContext returns the token of a request that passed [Verifier.Require]; nil if there is none.
func FromContext(ctx context.Context) *Token {
	t, _ := ctx.Value(contextKey{}).(*Token)
	return t
}
