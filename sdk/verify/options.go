package verify

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
)

// Option is an option of [New].
type Option func(*options)

type options struct {
	audience, metadata, cache string
	public                    []string
	also                      []string // further issuers
	http                      *http.Client
	caFile                    string
	pool                      *x509.CertPool
	now                       func() time.Time
	log                       *slog.Logger
	jwks                      []byte
	keysGiven                 bool // jwks is set
	proof, loopback, nonces   bool
	tls12                     bool
	nonceKey                  []byte
	refresh, maxAge           time.Duration
	proofs, remembered        int
}

func defaults() options {
	return options{now: time.Now, log: slog.Default(), refresh: 5 * time.Minute, maxAge: 24 * time.Hour, proofs: 1 << 19, remembered: 4096}
}

// Audience sets the identifier of this service, which a token's aud must contain. The default is the issuer identifier,
// which is the aud of a token that was requested without a resource (RFC 8707).
func Audience(aud string) Option { return func(o *options) { o.audience = aud } }

// AlsoIssuers accepts tokens of further issuer identifiers of the same server, for the time in which its address moves: the new one
// before the move, the former one after it. Keys are fetched from the first identifier that answers. If [Audience] is not given, a
// token's aud must contain its own issuer.
func AlsoIssuers(issuers ...string) Option {
	return func(o *options) { o.also = append(o.also, issuers...) }
}

// PublicURL sets the addresses at which clients reach this service, as "https://api.example" or "https://example.com/api"
// if a proxy removes the path. The htu of a DPoP proof is compared with them (RFC 9449 §4.3); the Host header is not used,
// because the client chooses it. The default is the audience's scheme and host, if [Audience] has them; if there is
// neither, DPoP is refused.
func PublicURL(urls ...string) Option {
	return func(o *options) { o.public = append(o.public, urls...) }
}

// ProofRequired refuses bearer tokens: only DPoP is accepted.
func ProofRequired() Option { return func(o *options) { o.proof = true } }

// Nonces requires a nonce of this service in each DPoP proof (RFC 9449 §9). Several instances behind one address must share
// key, at least 16 secret bytes; nil generates one for this process.
func Nonces(key []byte) Option { return func(o *options) { o.nonces, o.nonceKey = true, key } }

// Proofs sets the number of DPoP proofs that are remembered, each for two to three minutes. Above n a request gets 429, and
// so does a request of a subject that has reached its share: a quarter of n while the memory is otherwise empty, and less
// as others use more, so that subjects which send as fast as they can do not lock out the others. The default is 524288:
// 3,000 requests a second without end, of one subject some 800; about 50 MB when full.
func Proofs(n int) Option { return func(o *options) { o.proofs = n } }

// Cache stores the last valid keys in a file (0600), so that the service can restart while the issuer is unreachable. A
// user that can write the file or its folder determines which tokens are accepted: the folder must belong to this service
// alone.
func Cache(path string) Option { return func(o *options) { o.cache = path } }

// Refresh sets the interval at which the issuer's keys are fetched: 5 minutes by default, at least a second. A key that the
// issuer revoked is accepted until the next fetch.
func Refresh(every time.Duration) Option { return func(o *options) { o.refresh = every } }

// MaxAge sets how long the last valid keys are used while the issuer is unreachable: 24 hours by default, then every
// request gets 503.
func MaxAge(d time.Duration) Option { return func(o *options) { o.maxAge = d } }

// Keys sets the issuer's keys as a JWK set. Nothing is fetched, and the keys are valid for the life of the process.
func Keys(jwks []byte) Option { return func(o *options) { o.jwks, o.keysGiven = jwks, true } }

// HTTPClient fetches metadata and keys with the Transport of c. Redirects are not followed, whatever c's settings, and each
// fetch ends after 10 s. If the Transport is an [http.Transport] without a limit of response headers, the limit is 64 KiB.
func HTTPClient(c *http.Client) Option { return func(o *options) { o.http = c } }

// CAFile trusts only the certificate authorities in a PEM file for the issuer's TLS: the server's ca.pem, if it uses its
// own authority.
func CAFile(path string) Option { return func(o *options) { o.caFile = path } }

// CAPool is [CAFile] for a pool in memory.
func CAPool(p *x509.CertPool) Option { return func(o *options) { o.pool = p } }

// TLS12 also accepts TLS 1.2 from the issuer, for an issuer behind a load balancer without TLS 1.3. The default is TLS 1.3
// only.
func TLS12() Option { return func(o *options) { o.tls12 = true } }

// LoopbackHTTP accepts an issuer without TLS at a loopback address, for tests.
func LoopbackHTTP() Option { return func(o *options) { o.loopback = true } }

// ResourceMetadata sets the address of this service's metadata (RFC 9728 §5.1), which refusals then name.
func ResourceMetadata(u string) Option { return func(o *options) { o.metadata = u } }

// Remember sets the number of verified tokens that are cached, so that the next request with the same token costs a hash
// instead of a signature. The default is 4096 (up to twice as many are held); 0 disables the cache.
func Remember(n int) Option { return func(o *options) { o.remembered = n } }

// Now replaces the clock that is used for tokens, proofs and the age of keys.
func Now(now func() time.Time) Option { return func(o *options) { o.now = now } }

// Log sets the logger of refusals and of failed fetches; the default is [slog.Default]. No token or proof is logged.
func Log(l *slog.Logger) Option { return func(o *options) { o.log = l } }

// check refuses invalid and contradictory options. Code: config_invalid.
func (o *options) check(issuer string) error {
	if o.audience == "" {
		o.audience = issuer
	} else if len(o.public) == 0 {
		if u, err := url.Parse(o.audience); err == nil && u.Host != "" && (u.Scheme == "https" || u.Scheme == "http") { // its path is that of the requests
			o.public = []string{u.Scheme + "://" + u.Host}
		}
	}
	for i, p := range o.public {
		b, ok := parseBase(p)
		if !ok {
			return optionError("PublicURL must be http or https, with a host, without user, query and fragment")
		}
		o.public[i] = b
	}
	sources := 0
	for _, given := range []bool{o.http != nil, o.caFile != "", o.pool != nil, o.keysGiven} {
		if given {
			sources++
		}
	}
	switch {
	case sources > 1:
		return optionError("at most one of HTTPClient, CAFile, CAPool and Keys must be given")
	case o.tls12 && (o.http != nil || o.keysGiven):
		return optionError("TLS12 must not be combined with HTTPClient or Keys")
	case o.keysGiven && o.cache != "":
		return optionError("Cache must not be combined with Keys")
	case o.now == nil || o.log == nil:
		return optionError("Now and Log must not be nil")
	case !quotable(o.audience) || !quotable(o.metadata):
		return optionError("Audience and ResourceMetadata must be printable ASCII without spaces, quotes and backslashes")
	case o.proof && len(o.public) == 0:
		return optionError("ProofRequired requires PublicURL")
	case o.nonces && o.nonceKey != nil && len(o.nonceKey) < 16:
		return optionError("the key of Nonces must have at least 16 bytes")
	case o.refresh < time.Second || o.maxAge < o.refresh:
		return optionError("Refresh must be at least a second, and MaxAge no less than Refresh")
	case o.proofs < 1 || o.remembered < 0:
		return optionError("Proofs must be at least 1, and Remember not negative")
	}
	return nil
}

// trust returns the certificate authorities for the issuer's TLS; nil means the system's.
func (o *options) trust() (*x509.CertPool, error) {
	if o.caFile == "" {
		return o.pool, nil
	}
	pem, err := durable.ReadTrusted(o.caFile, 1<<20)
	if err != nil {
		return nil, watchword.Wrap(err, watchword.ConfigInvalid, "CAFile cannot be read: %s", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, optionError("CAFile must contain at least one certificate in PEM")
	}
	return pool, nil
}

// tls returns the minimum TLS version for the issuer.
func (o *options) tls() uint16 {
	if o.tls12 {
		return tls.VersionTLS12
	}
	return tls.VersionTLS13
}

func (o *options) secret() []byte {
	if o.nonceKey != nil {
		return o.nonceKey
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never returns an error (crypto/rand)
	return key
}

// parseBase checks an address of this service and returns it without a trailing slash.
func parseBase(s string) (string, bool) {
	u, err := url.Parse(s)
	ok := err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && u.User == nil &&
		u.RawQuery == "" && !u.ForceQuery && !strings.Contains(s, "#")
	return strings.TrimSuffix(s, "/"), ok
}

// quotable reports whether s may be used in a quoted string of a header (RFC 9110 §5.6.4).
func quotable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x21 || s[i] > 0x7e || s[i] == '"' || s[i] == '\\' {
			return false
		}
	}
	return true
}

func optionError(why string) error { return watchword.Refuse(watchword.ConfigInvalid, "%s", why) }
