package token

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"strconv"
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

	// perm and deny are the unparsed claims. Permissions parses them, so that a token that was seen before needs no second
	// parse.
	perm, deny jsontext.Value
	audience   [1]string // storage of Audience if there is one
}

// Grant is the content of an access token: the device information and permissions that SignAccess writes.
type Grant struct {
	Issuer  string
	Subject watchword.Subject // ID, Kind and Labels are used
	Key     watchword.KeyID
	JTI     string
	Issued  time.Time
	Expires time.Time
	Perm    []watchword.Permission
	Deny    []watchword.Permission
	// Audience is the intended recipient (RFC 8707); empty means the issuer.
	Audience string
	// Bound is the key of which each request must have a proof (cnf.jkt); empty for a bearer token.
	Bound watchword.KeyID
}

// claims returns the payload of g's token. It is written without an encoder for speed; tests read it back with VerifyAccess
// and encoding/json.
func (g Grant) claims() ([]byte, error) {
	aud := g.Issuer
	if g.Audience != "" {
		aud = g.Audience
	}
	w := jsonWriter{b: make([]byte, 0, 1024)}
	w.text(`{"iss":`, g.Issuer)
	w.text(`,"sub":`, string(g.Subject.ID))
	w.text(`,"aud":`, aud)
	w.text(`,"client_id":`, string(g.Subject.ID))
	w.text(`,"jti":`, g.JTI)
	w.b = strconv.AppendInt(append(w.b, `,"iat":`...), g.Issued.Unix(), 10)
	w.b = strconv.AppendInt(append(w.b, `,"exp":`...), g.Expires.Unix(), 10)
	w.text(`,"key":`, string(g.Key))
	if g.Bound != "" { // RFC 9449 §6.1
		w.text(`,"cnf":{"jkt":`, string(g.Bound))
		w.b = append(w.b, '}')
	}
	w.text(`,"dev":{"id":`, string(g.Subject.ID))
	if len(g.Subject.Labels) > 0 {
		comma := `,"labels":{`
		for _, k := range slices.Sorted(maps.Keys(g.Subject.Labels)) {
			w.text(comma, k)
			w.text(`:`, g.Subject.Labels[k])
			comma = `,`
		}
		w.b = append(w.b, '}')
	}
	w.permissions(`},"perm":`, g.Perm)
	if len(g.Deny) > 0 {
		w.permissions(`,"deny":`, g.Deny)
	}
	return append(w.b, '}'), w.err
}

// ClaimsDigest returns a hash over the audience, the binding and the permissions. It is in the token's record, so that a
// stolen issuer key is not enough to change the claims of an issued token.
func (g Grant) ClaimsDigest() [32]byte {
	aud := g.Issuer
	if g.Audience != "" {
		aud = g.Audience
	}
	var perm, deny jsonWriter
	perm.permissions("", g.Perm)
	if len(g.Deny) > 0 {
		deny.permissions("", g.Deny)
	}
	return claimsDigest([]string{aud}, g.Bound, perm.b, deny.b)
}

// ClaimsDigest is [Grant.ClaimsDigest] of the grant of a.
func (a *Access) ClaimsDigest() [32]byte { return claimsDigest(a.Audience, a.Bound, a.perm, a.deny) }

func claimsDigest(aud []string, bound watchword.KeyID, perm, deny []byte) [32]byte {
	h := sha256.New()
	part := func(b []byte) { // with its length before it: different lists never have the same encoding
		var size [4]byte
		binary.BigEndian.PutUint32(size[:], uint32(len(b)))
		h.Write(size[:])
		h.Write(b)
	}
	for _, s := range aud {
		part([]byte(s))
	}
	part(nil)
	part([]byte(bound))
	part(perm)
	part(deny)
	return [32]byte(h.Sum(nil))
}

// jsonWriter appends JSON to a buffer.
type jsonWriter struct {
	b   []byte
	err error
}

func (w *jsonWriter) text(before, s string) {
	b, err := jsontext.AppendQuote(append(w.b, before...), s)
	w.b = b
	if w.err == nil {
		w.err = err
	}
}

// permissions writes [[resource,[action…]]…].
func (w *jsonWriter) permissions(before string, ps []watchword.Permission) {
	w.b = append(append(w.b, before...), '[')
	for i, p := range ps {
		if i > 0 {
			w.b = append(w.b, ',')
		}
		w.text(`[`, p.Resource)
		w.b = append(w.b, `,[`...)
		for j, a := range p.Actions {
			comma := `,`
			if j == 0 {
				comma = ``
			}
			w.text(comma, a)
		}
		w.b = append(w.b, `]]`...)
	}
	w.b = append(w.b, ']')
}

// CheckSize returns an error if the token of the grant would be longer than [watchword.MaxToken]. Code: token_too_large,
// naming the subject.
func (g Grant) CheckSize() error {
	// Maximum size of the header and signature of an issuer key, and of jti, key and times.
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

// SignAccess signs g with the issuer key. Codes: token_too_large; bad_request if verifiers would refuse it; unavailable.
func SignAccess(s *jose.Signer, g Grant) (string, error) {
	b, err := g.claims()
	if err != nil {
		return "", err
	}
	raw, err := s.Sign(TypAccess, b)
	if err != nil {
		return "", err
	}
	if len(raw) > watchword.MaxToken {
		return "", refuse(watchword.TokenTooLarge, "the permissions of %s do not fit into a token of %d bytes", g.Subject.ID, watchword.MaxToken)
	}
	return raw, checkSigned(raw, TypAccess, watchword.MaxToken, func(payload []byte) error {
		aud := g.Issuer
		if g.Audience != "" {
			aud = g.Audience
		}
		a, err := readAccess(payload, &Access{}, g.Issuer, aud, g.Issued, 0)
		if err == nil {
			_, _, err = a.Permissions()
		}
		return err
	})
}

// VerifyAccess verifies an access token with the issuer's keys: form, typ, key, issuer, audience and time, and then the
// signature, which costs ten times as much as all the others. leeway is how long after exp it is still accepted: 0 by this
// server, [Skew] by others. The caller must check that it is on record and not revoked.
//
// Codes: too_large, token_malformed, algorithm_invalid, token_kind, key_unknown, issuer_mismatch, audience_mismatch,
// token_expired, token_early, token_lifetime, signature_invalid. Safe for concurrent use.
func VerifyAccess(raw string, keys KeySet, issuer, aud string, now time.Time, leeway time.Duration) (*Access, error) {
	u, k, err := parseTyped(raw, watchword.MaxToken, TypAccess, keys)
	if err != nil {
		return nil, err
	}
	a, err := readAccess(u.UnverifiedPayload(), &Access{SignedBy: k.ID()}, issuer, aud, now, leeway)
	if err != nil {
		return nil, err
	}
	if _, err := u.Verify(k); err != nil {
		return nil, err
	}
	return a, nil
}

func readAccess(payload []byte, a *Access, issuer, aud string, now time.Time, leeway time.Duration) (*Access, error) {
	r := accessReader{Access: a, issuer: issuer}
	if err := jose.Walk(payload, r.member); err != nil {
		return nil, err
	}
	if err := checkIssuer(a.Issuer, issuer); err != nil {
		return nil, err
	}
	if !slices.Contains(a.Audience, aud) {
		return nil, refuse(watchword.AudienceMismatch, "aud must contain %q", aud)
	}
	if err := r.check(now, 0, leeway, Skew); err != nil {
		return nil, err
	}
	if !watchword.ValidName(string(a.Subject)) || a.Key == "" || a.perm == nil {
		return nil, refuse(watchword.TokenMalformed, "sub, key and perm are required")
	}
	if err := checkJTI(a.JTI); err != nil {
		return nil, err
	}
	a.Issued, a.Expires = r.iat.time(), r.exp.time()
	return a, nil
}

// accessReader parses the claims of an access token. The usual values (iss and aud the issuer, client_id the sub) need no
// allocation.
type accessReader struct {
	*Access
	validity
	issuer string
}

func (r *accessReader) member(name string, v jsontext.Value) error {
	switch name {
	case "iss":
		return readExpected(&r.Issuer, v, r.issuer)
	case "sub":
		return readString(&r.Subject, v)
	case "aud":
		if v.Kind() == '[' {
			var err error
			r.Audience, err = jose.Strings(v)
			return err
		}
		r.Audience = r.audience[:]
		return readExpected(&r.audience[0], v, r.issuer)
	case "client_id":
		return readExpected(&r.ClientID, v, r.Subject)
	case "jti":
		return readString(&r.JTI, v)
	case "key":
		return readString(&r.Key, v)
	case "perm":
		r.perm = v
		return isArray(v)
	case "deny":
		r.deny = v
		return isArray(v)
	case "cnf":
		return r.confirmation(v)
	}
	return r.validity.member(name, v)
}

// isArray refuses what [Access.Permissions] would refuse, before a session is opened.
func isArray(v jsontext.Value) error {
	if v.Kind() != '[' {
		return refuse(watchword.TokenMalformed, "perm and deny must be arrays")
	}
	return nil
}

// confirmation parses cnf (RFC 7800 §3). A token with an unknown kind of binding is refused: otherwise it would be accepted
// as a bearer token, without its proof.
func (r *accessReader) confirmation(v jsontext.Value) error {
	err := jose.Walk(v, func(name string, v jsontext.Value) error {
		if name != "jkt" {
			return refuse(watchword.TokenMalformed, "cnf must contain jkt and nothing else")
		}
		return readString(&r.Bound, v)
	})
	if err == nil && r.Bound == "" {
		err = refuse(watchword.TokenMalformed, "cnf.jkt must be the thumbprint of a key (RFC 7638)")
	}
	return err
}

// Permissions parses the perm and deny claims. perm is never nil. Code: token_malformed.
func (a *Access) Permissions() (perm, deny []watchword.Permission, err error) {
	if perm, err = permissions(a.perm); err != nil || a.deny == nil {
		return perm, nil, err
	}
	deny, err = permissions(a.deny)
	return perm, deny, err
}

// permissions parses an array of [resource, [action…]].
func permissions(v jsontext.Value) ([]watchword.Permission, error) {
	r := permissionReader{out: make([]watchword.Permission, 0, 8), actions: make([]string, 0, 16)}
	r.part, r.action = r.readPart, r.readAction
	if err := jose.Each(v, r.item); err != nil {
		return nil, err
	}
	return r.out, nil
}

// permissionReader parses permissions with few allocations.
type permissionReader struct {
	out          []watchword.Permission
	actions      []string // of all permissions
	current      watchword.Permission
	parts        int // number of resources and actions read
	part, action func(jsontext.Value) error
}

func (r *permissionReader) item(v jsontext.Value) error {
	r.current, r.parts = watchword.Permission{}, 0
	issuedAt := len(r.actions)
	if err := jose.Each(v, r.part); err != nil {
		return err
	}
	r.current.Actions = r.actions[issuedAt:len(r.actions):len(r.actions)]
	r.out = append(r.out, r.current)
	return r.current.Check()
}

func (r *permissionReader) readPart(v jsontext.Value) (err error) {
	switch r.parts++; r.parts {
	case 1:
		r.current.Resource, err = jose.String(v)
	case 2:
		err = jose.Each(v, r.action)
	default:
		err = refuse(watchword.TokenMalformed, "each item of perm and deny must be [resource, [action…]]")
	}
	return err
}

func (r *permissionReader) readAction(v jsontext.Value) error {
	s, err := jose.String(v)
	r.actions = append(r.actions, s)
	return err
}
