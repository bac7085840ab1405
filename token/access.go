package token

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// Access is the claims of an access token (RFC 9068).
type Access struct {
	Issuer   string
	Subject  watchword.SubjectID
	Audience []string
	ClientID watchword.SubjectID
	JTI      string
	Issued   time.Time
	Expires  time.Time
	Key      watchword.KeyID // the key that authenticated the subject
	Bound    watchword.KeyID // cnf.jkt; empty for a bearer token
	SignedBy watchword.KeyID // the issuer key

	// perm and deny are the claims as they stand in the token. They are read by
	// Permissions, so that a token seen before costs no second parse.
	perm, deny jsontext.Value
	audience   [1]string // what Audience is made of where it is one
}

// Grant is what an access token says: the device information and permissions
// that SignAccess puts into it.
type Grant struct {
	Issuer  string
	Subject watchword.Subject // ID, Kind and Labels are used
	Key     watchword.KeyID
	JTI     string
	Issued  time.Time
	Expires time.Time
	Perm    []watchword.Permission
	Deny    []watchword.Permission
	// Audience is who shall read it (RFC 8707); empty means the issuer.
	Audience string
	// Bound is the key without whose proof it does not pass (cnf.jkt); empty for a bearer token.
	Bound watchword.KeyID
}

type accessClaims struct {
	Iss      string                 `json:"iss"`
	Sub      watchword.SubjectID    `json:"sub"`
	Aud      string                 `json:"aud"`
	ClientID watchword.SubjectID    `json:"client_id"`
	JTI      string                 `json:"jti"`
	IAT      unix                   `json:"iat"`
	EXP      unix                   `json:"exp"`
	Key      watchword.KeyID        `json:"key"`
	Cnf      *confirmation          `json:"cnf,omitempty"`
	Dev      device                 `json:"dev"`
	Perm     []watchword.Permission `json:"perm"`
	Deny     []watchword.Permission `json:"deny,omitempty"`
}

// confirmation is the cnf claim (RFC 7800 §3.1, RFC 9449 §6.1).
type confirmation struct {
	JKT watchword.KeyID `json:"jkt"`
}

type device struct {
	ID     watchword.SubjectID `json:"id"`
	Labels watchword.Labels    `json:"labels,omitempty"`
}

// claims returns the payload of g's token.
func (g Grant) claims() ([]byte, error) {
	if g.Perm == nil {
		g.Perm = []watchword.Permission{}
	}
	c := accessClaims{
		Iss: g.Issuer, Sub: g.Subject.ID, Aud: g.Issuer, ClientID: g.Subject.ID, JTI: g.JTI,
		IAT: seconds(g.Issued), EXP: seconds(g.Expires), Key: g.Key,
		Dev: device{ID: g.Subject.ID, Labels: g.Subject.Labels}, Perm: g.Perm, Deny: g.Deny,
	}
	if g.Audience != "" {
		c.Aud = g.Audience
	}
	if g.Bound != "" {
		c.Cnf = &confirmation{g.Bound}
	}
	return json.Marshal(c)
}

// Fits refuses a grant whose token would be longer than [watchword.MaxToken].
// Code: token_too_large, naming the subject.
func (g Grant) Fits() error {
	// The longest header and signature that an issuer key makes, and the longest jti, key and times.
	const around = 200 + 2
	g.JTI, g.Key = "tok_01JD0000000000000000000000", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	g.Bound = g.Key
	g.Issued, g.Expires = time.Unix(9999999999, 0), time.Unix(9999999999, 0)
	b, err := g.claims()
	if err != nil {
		return err
	}
	if n := around + (len(b)*4+2)/3; n > watchword.MaxToken {
		return &watchword.Error{Code: watchword.TokenTooLarge, Detail: "the permissions of " + string(g.Subject.ID) +
			" would not fit a token of 4 KiB; give it fewer or wider filters"}
	}
	return nil
}

// SignAccess signs g with the issuer key. Code: token_too_large.
func SignAccess(s *jose.Signer, g Grant) (string, error) {
	b, err := g.claims()
	if err != nil {
		return "", err
	}
	raw, err := s.Sign(TypAccess, b)
	if err == nil && len(raw) > watchword.MaxToken {
		return "", watchword.Refuse(watchword.TokenTooLarge, "the permissions of %s would not fit a token of 4 KiB", g.Subject.ID)
	}
	return raw, err
}

// VerifyAccess checks an access token under the issuer's keys: shape, kind, key,
// issuer, audience and time, and then, because it costs ten times as much as all that,
// the signature. late is how long after exp it still counts: 0 at our own doors,
// [Skew] elsewhere. That it is on record and not revoked is for the caller to see.
//
// Codes: too_large, token_malformed, algorithm_invalid, token_kind, key_unknown,
// issuer_mismatch, audience_mismatch, token_expired, token_early, token_lifetime,
// signature_invalid. Safe for concurrent use.
func VerifyAccess(raw string, keys KeySet, issuer, aud string, now time.Time, late time.Duration) (*Access, error) {
	u, k, err := parse(raw, watchword.MaxToken, TypAccess, keys)
	if err != nil {
		return nil, err
	}
	a := &Access{SignedBy: k.ID()}
	r := accessReader{Access: a, issuer: issuer}
	if err := jose.Walk(u.UnverifiedPayload(), r.member); err != nil {
		return nil, err
	}
	if err := checkIssuer(a.Issuer, issuer); err != nil {
		return nil, err
	}
	if !slices.Contains(a.Audience, aud) {
		return nil, watchword.Refuse(watchword.AudienceMismatch, "the token is for another audience")
	}
	if err := r.check(now, 0, late, Skew); err != nil {
		return nil, err
	}
	if !watchword.ValidName(string(a.Subject)) || a.Key == "" || a.perm == nil {
		return nil, watchword.Refuse(watchword.TokenMalformed, "sub, key and perm are mandatory")
	}
	if err := checkJTI(a.JTI); err != nil {
		return nil, err
	}
	if _, err := u.Verify(k); err != nil {
		return nil, err
	}
	a.Issued, a.Expires = r.iat.time(), r.exp.time()
	return a, nil
}

// accessReader reads the claims of an access token. What is nearly always the
// same (iss and aud the issuer, client_id the sub) costs no allocation.
type accessReader struct {
	*Access
	window
	issuer string
}

func (r *accessReader) member(name string, v jsontext.Value) error {
	switch name {
	case "iss":
		return same(&r.Issuer, v, r.issuer)
	case "sub":
		return text(&r.Subject, v)
	case "aud":
		if v.Kind() == '[' {
			var err error
			r.Audience, err = jose.Strings(v)
			return err
		}
		r.Audience = r.audience[:]
		return same(&r.audience[0], v, r.issuer)
	case "client_id":
		return same(&r.ClientID, v, r.Subject)
	case "jti":
		return text(&r.JTI, v)
	case "key":
		return text(&r.Key, v)
	case "perm":
		r.perm = v
		return isArray(v)
	case "deny":
		r.deny = v
		return isArray(v)
	case "cnf":
		return r.confirmation(v)
	}
	return r.window.member(name, v)
}

// isArray refuses what [Access.Permissions] would: a session is not opened first.
func isArray(v jsontext.Value) error {
	if v.Kind() != '[' {
		return watchword.Refuse(watchword.TokenMalformed, "perm and deny are arrays")
	}
	return nil
}

// confirmation reads cnf (RFC 7800 §3). A token that is bound in a way that we do
// not know is refused: taken without its proof it would be a bearer's.
func (r *accessReader) confirmation(v jsontext.Value) error {
	err := jose.Walk(v, func(name string, v jsontext.Value) error {
		if name != "jkt" {
			return watchword.Refuse(watchword.TokenMalformed, "cnf has jkt alone")
		}
		return text(&r.Bound, v)
	})
	if err == nil && r.Bound == "" {
		err = watchword.Refuse(watchword.TokenMalformed, "cnf names no key")
	}
	return err
}

// Permissions reads the perm and deny claims. perm is never nil. Code: token_malformed.
func (a *Access) Permissions() (perm, deny []watchword.Permission, err error) {
	if perm, err = permissions(a.perm); err != nil || a.deny == nil {
		return perm, nil, err
	}
	deny, err = permissions(a.deny)
	return perm, deny, err
}

// permissions reads an array of [resource, [action…]].
func permissions(v jsontext.Value) ([]watchword.Permission, error) {
	r := permissionReader{out: make([]watchword.Permission, 0, 8), actions: make([]string, 0, 16)}
	r.part, r.action = r.readPart, r.readAction
	if err := jose.Each(v, r.item); err != nil {
		return nil, err
	}
	return r.out, nil
}

// permissionReader reads permission after permission into few allocations.
type permissionReader struct {
	out          []watchword.Permission
	actions      []string // of all
	now          watchword.Permission
	parts        int // of now that were read
	part, action func(jsontext.Value) error
}

func (r *permissionReader) item(v jsontext.Value) error {
	r.now, r.parts = watchword.Permission{}, 0
	begin := len(r.actions)
	if err := jose.Each(v, r.part); err != nil {
		return err
	}
	r.now.Actions = r.actions[begin:len(r.actions):len(r.actions)]
	r.out = append(r.out, r.now)
	return r.now.Check()
}

func (r *permissionReader) readPart(v jsontext.Value) (err error) {
	switch r.parts++; r.parts {
	case 1:
		r.now.Resource, err = jose.String(v)
	case 2:
		err = jose.Each(v, r.action)
	default:
		err = watchword.Refuse(watchword.TokenMalformed, "a permission is [resource, [action…]]")
	}
	return err
}

func (r *permissionReader) readAction(v jsontext.Value) error {
	s, err := jose.String(v)
	r.actions = append(r.actions, s)
	return err
}
