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

// Option changes one thing that [New] would do otherwise.
type Option func(*options)

type options struct {
	audience, metadata, cache string
	public                    []string
	http                      *http.Client
	caFile                    string
	pool                      *x509.CertPool
	now                       func() time.Time
	log                       *slog.Logger
	jwks                      []byte
	keysGiven                 bool // jwks
	proof, loopback, nonces   bool
	tls12                     bool
	nonceKey                  []byte
	refresh, maxAge           time.Duration
	proofs, remembered        int
}

func defaults() options {
	return options{now: time.Now, log: slog.Default(), refresh: 5 * time.Minute, maxAge: 24 * time.Hour, proofs: 1 << 19, remembered: 4096}
}

// Audience says who this service is: what must stand in a token's aud. By default
// that is the issuer identifier, which is what a token has that was asked for
// without a resource (RFC 8707).
func Audience(aud string) Option { return func(o *options) { o.audience = aud } }

// PublicURL says at which addresses clients reach this service, as
// "https://api.example" or "https://example.com/api" where a proxy cuts the path: what
// a DPoP proof is compared with (RFC 9449 §4.3), since a Host header is the client's own
// word. By default it is the audience's scheme and host, if [Audience] has them; where
// neither is, DPoP is refused.
func PublicURL(urls ...string) Option {
	return func(o *options) { o.public = append(o.public, urls...) }
}

// ProofRequired refuses tokens that work without a proof: DPoP alone.
func ProofRequired() Option { return func(o *options) { o.proof = true } }

// Nonces asks for a nonce of this service in each DPoP proof (RFC 9449 §9). Several
// instances behind one address share key, at least 16 secret bytes; nil makes one for
// this process.
func Nonces(key []byte) Option { return func(o *options) { o.nonces, o.nonceKey = true, key } }

// Proofs bounds how many DPoP proofs are remembered, which they are for two to three
// minutes each. Beyond n a request gets 429, and so does one of a subject that has its share: a
// quarter of n where it is alone, and the less the more the others have, so that those who send all
// that they can shut nobody out. By default n is 524288: 3,000 requests a second for ever, of
// one subject some 800; about 50 MB if it is ever reached.
func Proofs(n int) Option { return func(o *options) { o.proofs = n } }

// Cache keeps the last good keys in a file (0600), so that a restart while the issuer
// cannot be reached does no harm. A caller that can write the file or its folder says whose
// tokens count here: the folder must be this service's own.
func Cache(path string) Option { return func(o *options) { o.cache = path } }

// Refresh says how often the issuer's keys are fetched; by default each 5 minutes, at
// least a second. A key that the issuer took back counts here until then.
func Refresh(every time.Duration) Option { return func(o *options) { o.refresh = every } }

// MaxAge says for how long the last good keys count while the issuer cannot be reached;
// by default 24 hours, then every request gets 503.
func MaxAge(d time.Duration) Option { return func(o *options) { o.maxAge = d } }

// Keys gives the issuer's keys as a JWK set, and asks the issuer for nothing: they count
// for the life of the process.
func Keys(jwks []byte) Option { return func(o *options) { o.jwks, o.keysGiven = jwks, true } }

// HTTPClient fetches metadata and keys through the Transport of c. Redirects are not
// followed, whatever c does, each fetch ends after 10 s, and where the Transport is an
// [http.Transport] without a bound of response headers, they may have 64 KiB.
func HTTPClient(c *http.Client) Option { return func(o *options) { o.http = c } }

// CAFile trusts the authorities in a PEM file, and no others, for the issuer's TLS: its
// ca.pem, where it is its own authority.
func CAFile(path string) Option { return func(o *options) { o.caFile = path } }

// CAPool is [CAFile] for a pool in memory.
func CAPool(p *x509.CertPool) Option { return func(o *options) { o.pool = p } }

// TLS12 takes TLS 1.2 from the issuer as well: for one behind a load balancer that has
// no newer. By default it is TLS 1.3 alone.
func TLS12() Option { return func(o *options) { o.tls12 = true } }

// LoopbackHTTP takes an issuer without TLS at a loopback address: for tests alone.
func LoopbackHTTP() Option { return func(o *options) { o.loopback = true } }

// ResourceMetadata is the address of this service's own metadata (RFC 9728 §5.1), which
// refusals then name.
func ResourceMetadata(u string) Option { return func(o *options) { o.metadata = u } }

// Remember bounds how many checked tokens are remembered, so that the next request with
// the same one costs a hash, not a signature. By default that is 4096 to twice as many; 0
// is none.
func Remember(n int) Option { return func(o *options) { o.remembered = n } }

// Now replaces the clock that tokens, proofs and the age of keys are judged by.
func Now(now func() time.Time) Option { return func(o *options) { o.now = now } }

// Log says where refusals and trouble with the issuer go; by default to [slog.Default].
// No token or proof is ever logged.
func Log(l *slog.Logger) Option { return func(o *options) { o.log = l } }

// check refuses what does not fit together. Code: config_invalid.
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
		return optionError("of HTTPClient, CAFile, CAPool and Keys one is enough")
	case o.tls12 && (o.http != nil || o.keysGiven):
		return optionError("TLS12 says nothing beside HTTPClient or Keys")
	case o.keysGiven && o.cache != "":
		return optionError("keys that are given need no Cache")
	case o.now == nil || o.log == nil:
		return optionError("Now and Log must not be nil")
	case !quotable(o.audience) || !quotable(o.metadata):
		return optionError("Audience and ResourceMetadata must be printable ASCII without spaces, quotes and backslashes")
	case o.proof && len(o.public) == 0:
		return optionError("ProofRequired needs PublicURL, to compare proofs with")
	case o.nonces && o.nonceKey != nil && len(o.nonceKey) < 16:
		return optionError("the key of Nonces needs 16 bytes")
	case o.refresh < time.Second || o.maxAge < o.refresh:
		return optionError("Refresh must be at least a second, and MaxAge no less than Refresh")
	case o.proofs < 1 || o.remembered < 0:
		return optionError("Proofs must be at least 1, and Remember not negative")
	}
	return nil
}

// trust returns the authorities of the issuer's TLS; nil means the system's.
func (o *options) trust() (*x509.CertPool, error) {
	if o.caFile == "" {
		return o.pool, nil
	}
	pem, err := durable.ReadTrusted(o.caFile, 1<<20)
	if err != nil {
		return nil, watchword.Wrap(err, watchword.ConfigInvalid, "the CA file cannot be read: %s", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, optionError("the CA file holds no certificate in PEM")
	}
	return pool, nil
}

// tls returns the lowest version of TLS for the issuer.
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
	_, _ = rand.Read(key) // never fails (crypto/rand)
	return key
}

// parseBase checks an address of this service and returns it without a slash at its end.
func parseBase(s string) (string, bool) {
	u, err := url.Parse(s)
	ok := err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && u.User == nil &&
		u.RawQuery == "" && !u.ForceQuery && !strings.Contains(s, "#")
	return strings.TrimSuffix(s, "/"), ok
}

// quotable reports whether s may stand between quotes in a header (RFC 9110 §5.6.4).
func quotable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x21 || s[i] > 0x7e || s[i] == '"' || s[i] == '\\' {
			return false
		}
	}
	return true
}

func optionError(why string) error { return watchword.Refuse(watchword.ConfigInvalid, "%s", why) }
