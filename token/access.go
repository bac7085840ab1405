package token

import (
	"encoding/json"
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

// VerifyAccess checks an access token under the issuer's keys: shape, kind,
// signature, issuer, audience and time. late is how long after exp it still
// counts: 0 at our own doors, [Skew] elsewhere. That it is on record and not
// revoked is for the caller to see.
//
// Codes: too_large, token_malformed, algorithm_invalid, token_kind, key_unknown,
// signature_invalid, issuer_mismatch, audience_mismatch, token_expired,
// token_early, token_lifetime. Safe for concurrent use.
func VerifyAccess(raw string, keys KeySet, issuer, aud string, now time.Time, late time.Duration) (*Access, error) {
	payload, by, err := open(raw, watchword.MaxToken, TypAccess, keys)
	if err != nil {
		return nil, err
	}
	a, w := &Access{SignedBy: by.ID()}, window{}
	if err := jose.Walk(payload, a.member(&w, issuer)); err != nil {
		return nil, err
	}
	if err := checkIssuer(a.Issuer, issuer); err != nil {
		return nil, err
	}
	if !contains(a.Audience, aud) {
		return nil, watchword.Refuse(watchword.AudienceMismatch, "the token is for another audience")
	}
	if err := w.check(now, 0, late, Skew); err != nil {
		return nil, err
	}
	a.Issued, a.Expires = w.iat.time(), w.exp.time()
	if a.Subject == "" || a.Key == "" || a.perm == nil {
		return nil, watchword.Refuse(watchword.TokenMalformed, "sub, key and perm are mandatory")
	}
	return a, checkJTI(a.JTI)
}

// member returns the function that reads one claim into a and w. Claims that we
// do not know are passed over (RFC 7519 §4).
//
// What is nearly always the same (iss and aud the issuer, client_id the sub) is
// taken from what is there already, and costs no allocation.
func (a *Access) member(w *window, issuer string) func(string, jsontext.Value) error {
	return func(name string, v jsontext.Value) (err error) {
		var s string
		var n int64
		switch name {
		case "iss":
			a.Issuer, err = same(v, issuer)
		case "sub":
			s, err = jose.String(v)
			a.Subject = watchword.SubjectID(s)
		case "aud":
			if v.Kind() == '[' {
				a.Audience, err = jose.Strings(v)
				break
			}
			s, err = same(v, issuer)
			a.audience = [1]string{s}
			a.Audience = a.audience[:]
		case "client_id":
			s, err = same(v, string(a.Subject))
			a.ClientID = watchword.SubjectID(s)
		case "jti":
			a.JTI, err = jose.String(v)
		case "iat":
			n, err = jose.Int(v)
			w.iat = unix(n)
		case "exp":
			n, err = jose.Int(v)
			w.exp = unix(n)
		case "nbf":
			n, err = jose.Int(v)
			w.nbf = unix(n)
		case "key":
			s, err = jose.String(v)
			a.Key = watchword.KeyID(s)
		case "perm":
			a.perm = v
		case "deny":
			a.deny = v
		case "cnf":
			err = jose.Walk(v, func(name string, v jsontext.Value) error {
				if name != "jkt" {
					return nil
				}
				s, err := jose.String(v)
				a.Bound = watchword.KeyID(s)
				return err
			})
		}
		return err
	}
}

// same is jose.String, but returns likely itself where that is what stands there.
func same(v jsontext.Value, likely string) (string, error) {
	if len(v) == len(likely)+2 && v[0] == '"' && string(v[1:len(v)-1]) == likely {
		return likely, nil
	}
	return jose.String(v)
}

// Permissions reads the perm and deny claims. Code: token_malformed.
func (a *Access) Permissions() (perm, deny []watchword.Permission, err error) {
	if err := json.Unmarshal(a.perm, &perm); err != nil || perm == nil {
		return nil, nil, watchword.Because(err, watchword.TokenMalformed, "perm is no list of permissions")
	}
	if a.deny == nil {
		return perm, nil, nil
	}
	if err := json.Unmarshal(a.deny, &deny); err != nil {
		return nil, nil, watchword.Because(err, watchword.TokenMalformed, "deny is no list of permissions")
	}
	return perm, deny, nil
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}
