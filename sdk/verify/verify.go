package verify

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/cache"
	"github.com/watchword-iot/watchword/token"
)

// Verifier verifies the access tokens of one issuer for one audience. It is safe for concurrent use. Call Close at the end.
type Verifier struct {
	issuers     []string // the one of [New] first
	audience    string
	ownAudience bool     // no audience was given: it is the issuer that a token names
	bases       []string // addresses of this service, without a trailing slash
	proof       bool
	metadata    string
	now         func() time.Time
	log         *slog.Logger

	keys       issuerKeys
	nonces     *nonces // nil: not required
	usedProofs *usedProofs

	mu       sync.Mutex
	verified *cache.Map[[sha256.Size]byte, *Token] // by the hash of the whole token; nil: no cache
}

// New fetches the issuer's keys by its metadata (RFC 8414) and refreshes them until ctx ends or [Verifier.Close] is called:
// ctx must be the service's own context, not one with a deadline. issuer is the identifier exactly as the issuer states it,
// including the presence or absence of a trailing slash.
//
// If the issuer is unreachable New fails, unless [Cache] has keys that are not too old; later the verifier continues
// without the issuer (see [MaxAge]). Codes: config_invalid, unavailable, issuer_mismatch, key_damaged.
func New(ctx context.Context, issuer string, opts ...Option) (*Verifier, error) {
	o := defaults()
	for _, set := range opts {
		set(&o)
	}
	if err := o.check(issuer); err != nil {
		return nil, err
	}
	v := &Verifier{
		issuers: append([]string{issuer}, o.also...), audience: o.audience, ownAudience: o.audience == issuer, bases: o.public, proof: o.proof, metadata: o.metadata, now: o.now, log: o.log,
		keys:       issuerKeys{cache: o.cache, refresh: o.refresh, now: o.now, log: o.log},
		usedProofs: newUsedProofs(o.proofs),
	}
	if o.nonces {
		v.nonces = &nonces{o.secret()}
	}
	if o.remembered > 0 {
		v.verified = cache.New[[sha256.Size]byte, *Token](o.remembered)
	}
	if o.keysGiven {
		set, err := parseJWKS(o.jwks)
		if err != nil {
			return nil, err
		}
		v.keys.set.Store(&keySet{keys: set})
		return v, nil
	}
	pool, err := o.trust()
	if err != nil {
		return nil, err
	}
	transport := newTransport(o.http, pool, o.tls())
	for _, i := range slices.Backward(v.issuers) {
		s, err := newSource(i, o.loopback, transport)
		if err != nil {
			return nil, err
		}
		s.next, v.keys.source = v.keys.source, s
	}
	v.keys.maxAge = o.maxAge
	if err := v.keys.start(ctx); err != nil {
		return nil, err
	}
	return v, nil
}

// Close ends the fetching of keys and waits for its end. The last keys stay valid, up to [MaxAge].
func (v *Verifier) Close() { v.keys.close() }

// Check verifies a token that was presented as a bearer token: signature, typ, issuer, audience and time. A token that is
// bound to a key is refused (RFC 9449 §7.2). The caller must check the permissions of the result.
//
// Codes: token_malformed, algorithm_invalid, token_kind, key_unknown, signature_invalid, issuer_mismatch,
// audience_mismatch, token_expired, token_early, token_lifetime, proof_required; unavailable if the issuer's keys are too
// old.
func (v *Verifier) Check(ctx context.Context, raw string) (*Token, error) {
	t, err := v.check(ctx, raw, v.now())
	if err != nil {
		return nil, err
	}
	if err := v.checkBearerAllowed(t); err != nil {
		return nil, err
	}
	return t, nil
}

func (v *Verifier) checkBearerAllowed(t *Token) error {
	if t.Bound != "" {
		return watchword.Refuse(watchword.ProofRequired, "the token is bound to a key (cnf.jkt): send it as DPoP, with a DPoP header")
	}
	if v.proof {
		return watchword.Refuse(watchword.ProofRequired, "this service requires tokens that are bound to a key (cnf.jkt), with a DPoP header")
	}
	return nil
}

// CheckRequest verifies the token of a request, and its proof if it was sent as DPoP, for services that do not use
// [Verifier.Require]. [Verifier.Refuse] writes the response for its errors.
//
// Codes: unauthenticated, bad_request, those of Check, dpop_invalid, dpop_nonce, busy.
func (v *Verifier) CheckRequest(r *http.Request) (*Token, error) {
	t, _, err := v.checkRequest(r, v.now())
	return t, err
}

// checkRequest also returns the nonce of the request's proof; empty if there is none.
func (v *Verifier) checkRequest(r *http.Request, now time.Time) (t *Token, nonce string, err error) {
	bound, raw, err := credentials(r)
	if err != nil {
		return nil, "", err
	}
	if t, err = v.check(r.Context(), raw, now); err != nil {
		return nil, "", err
	}
	if bound {
		nonce, err = v.verifyProof(r, raw, t, now)
	} else {
		err = v.checkBearerAllowed(t)
	}
	if err != nil {
		return nil, nonce, err
	}
	return t, nonce, nil
}

// credentials returns the token of the Authorization header; no other place is read (RFC 6750 §2.1). bound reports that the
// scheme is DPoP. Codes: unauthenticated, bad_request.
func credentials(r *http.Request) (bound bool, raw string, err error) {
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		return false, "", watchword.Refuse(watchword.Unauthenticated, "an access token is required: Authorization: Bearer TOKEN, or DPoP TOKEN with a DPoP header")
	}
	scheme, raw, _ := strings.Cut(values[0], " ")
	bound = strings.EqualFold(scheme, "DPoP")
	switch {
	case len(values) > 1:
		return false, "", watchword.RefuseField("authorization", "must be given once")
	case !bound && !strings.EqualFold(scheme, "Bearer"):
		return false, "", watchword.Refuse(watchword.Unauthenticated, "an access token is required: Authorization: Bearer TOKEN, or DPoP TOKEN with a DPoP header")
	case raw == "" || strings.ContainsAny(raw, " \t,"):
		return false, "", watchword.RefuseField("authorization", "must be Bearer or DPoP, one space and the access token")
	}
	return bound, raw, nil
}

// check makes all checks except the proof of possession. A token that was verified before, byte for byte, is still valid
// while its key is valid and it has not expired: the results of the other checks cannot change.
func (v *Verifier) check(ctx context.Context, raw string, now time.Time) (*Token, error) {
	if len(raw) > watchword.MaxToken {
		return nil, watchword.Refuse(watchword.TokenMalformed, "an access token must have at most %d bytes", watchword.MaxToken)
	}
	set, err := v.keys.at(now)
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256([]byte(raw))
	if t := v.cachedToken(id); t != nil && t.stillValid(set, now) {
		return t, nil
	}
	issuer, audience := token.ClaimedIssuer(raw, v.issuers), v.audience
	if v.ownAudience {
		audience = issuer
	}
	a, err := token.VerifyAccess(raw, set.keys, issuer, audience, now, token.Skew)
	if watchword.CodeOf(err) == watchword.KeyUnknown {
		if newer := v.keys.withNewKey(ctx, set); newer != set {
			a, err = token.VerifyAccess(raw, newer.keys, issuer, audience, now, token.Skew)
		}
	}
	if err != nil {
		return nil, err
	}
	t, err := newToken(a, raw)
	if err != nil {
		return nil, err
	}
	v.cacheToken(id, t)
	return t, nil
}

func (v *Verifier) cachedToken(id [sha256.Size]byte) *Token {
	if v.verified == nil {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	t, _ := v.verified.Get(id)
	return t
}

func (v *Verifier) cacheToken(id [sha256.Size]byte, t *Token) {
	if v.verified == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.verified.Put(id, t)
}
