package httpapi

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/cache"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/authn"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/enroll"
	"github.com/watchword-iot/watchword/server/internal/ratelimit"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/registry"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/server/twin"
)

// Dependencies is what an [API] is built from.
type Dependencies struct {
	Registry    *registry.Registry
	Enrollment  *enroll.Service
	Auth        *authn.Service
	Guard       *session.Guard
	Commands    *command.Service
	Bus         *bus.Bus
	Recorder    *audit.Recorder
	Twins       *twin.Service
	Entries     Entries
	Audit       *audit.CheckpointSigner
	Keys        *keyring.Rotator
	Broker      Broker          // nil: no MQTT engine runs
	SchemaSlots *fair.Semaphore // bounds concurrent compilation of schemas; nil: no bound

	Options
}

// Broker is the MQTT engine, as far as the HTTP API uses it.
type Broker interface {
	// SessionState returns the Session State of a client identifier; ok is false if there is none.
	SessionState(t watchword.TenantID, client string) (state session.State, ok bool)
	// OfflineStates returns at most n Session States whose clients are not connected, in order of subject and of client
	// identifier, from the given place on; of its subject alone if only is set. next is where the list continues: nil at its end.
	OfflineStates(t watchword.TenantID, from session.OfflinePlace, only bool, n int) (page []session.State, next *session.OfflinePlace)
	// Retained returns a page of at most n retained messages, ordered by topic, that come after the
	// topic given. filter "" matches all topics, by "" all owners. next is the last topic of the
	// page, "" at the end. Code: unavailable.
	Retained(ctx context.Context, t watchword.TenantID, filter string, by watchword.SubjectID, after string, n int) (page []session.Retained, next string, err error)
	// RetainedMessage returns the retained message of one topic. Codes: not_found, unavailable.
	RetainedMessage(ctx context.Context, t watchword.TenantID, topic string) (session.Retained, error)
	// DeleteRetained calls note, then removes the retained message; it returns the error of note
	// unchanged. Codes: not_found, unavailable.
	DeleteRetained(ctx context.Context, t watchword.TenantID, topic string, note func(session.Retained) error) error
	// EndOfflineSession ends the persistent session of an offline client. It calls log first and
	// ends the session only where log returns nil; the client cannot reconnect in between. Codes:
	// not_found where there is no such session or its client has reconnected; those of log.
	EndOfflineSession(t watchword.TenantID, client string, id watchword.SessionID, log func() error) error
}

// Options holds the settings of an [API].
type Options struct {
	Version   string
	PublicURL string        // no trailing slash; after a move of the address the current issuer instead
	MQTTS     func() string // HOST:PORT of MQTT over TLS, for the enrollment answer; empty: none
	// CheckAddress returns the canonical form of a public URL that the server may move to. Code: bad_request.
	CheckAddress func(url string) (string, error)
	// IssuerUse counts the active devices of a tenant by the issuer of their last token request, and those without one since the first
	// move. Code: unavailable.
	IssuerUse func(ctx context.Context, t watchword.TenantID) (seen map[string]int, unseen int, err error)
	CAPEM     func() []byte // the server's own CA certificates, for the enrollment answer; nil: the certificate is from a public CA
	JWKS      func() []byte // the issuer's public keys as a JWK set (RFC 7517 §5)
	Time      TimeSigner    // signs the answers of POST /v1/time
	// TrustBundle returns the current trust bundle of a tenant. Code: unavailable.
	TrustBundle func(t watchword.TenantID) (string, error)
	TokenRate   float64 // requests a second from one address to endpoints that need no token; 0: no limit
	// PublishRates limits the publishes of a subject over all transports; nil: no limit.
	PublishRates *ratelimit.Shared[quota.Key]
	// ControlRates limits the states and receipts that a subject writes, over all transports; nil:
	// no limit.
	ControlRates *ratelimit.Shared[quota.Key]
	RequestRate  float64 // requests a second of one subject in one rate class (see rate.go); 0: no limit
	Requests     int     // concurrent requests in all; 0: no limit
	PerAddress   int     // concurrent requests from one address (IPv6: from one /64); 0: no limit
	// SubjectBodyBytes and BodyBytes limit the memory of request bodies and of answers that the
	// connection has not taken yet, beyond 4 KiB of each: of one subject (without a token: of one
	// network), and of all. 0: no limit.
	SubjectBodyBytes, BodyBytes int64
	// Tenant returns the tenant that a request is for, by its Host and by the tenant that its path names, as in
	// /t/TENANT/oauth/token (empty: none). ok is false where there is none: such requests share one rate, and are answered with
	// not_found. It is called once for each request. What a request says of its tenant decides which keys may prove the caller,
	// and nothing else. nil: there is the default tenant alone.
	Tenant func(host string, named watchword.TenantID) (t watchword.TenantID, ok bool)
	// Endings returns what a tenant relies on and what ends within a week; nil: nothing.
	Endings func(ctx context.Context, t watchword.TenantID, now time.Time) ([]api.Ending, error)
	// Observe is called after each request with the pattern of its route ("" if no route has its path), the status of the answer and how
	// long it took; a negative time for a stream. nil: it is not called.
	Observe func(route string, status int, took time.Duration)
	Now     func() time.Time
	Log     *slog.Logger
}

// API is the HTTP API. It is safe for concurrent use.
type API struct {
	Dependencies
	mux              *http.ServeMux
	huma             huma.API
	rates            *ratelimit.Map[netip.Prefix]   // rates of endpoints that need no token
	requestQuota     *quota.Ledger[netip.Prefix]    // concurrent requests
	answerQuota      *quota.Ledger[responseAccount] // bytes of buffered answers
	subjectRates     subjectRates                   // rates of requests with a token
	unknownHosts     *ratelimit.Map[struct{}]       // requests for hosts that are of no tenant: they share one rate
	delayedResponses atomic.Int32                   // refusals that are being delayed

	mirrorReads struct { // readers of the log's tiles, and when their reading was last logged
		sync.Mutex
		last *cache.Map[mirrorReader, time.Time]
	}

	// strictTransport sends Strict-Transport-Security. It is false for localhost, where browsers
	// would then refuse every other server of the machine.
	strictTransport bool
}

// New builds an API from its parts.
func New(p Dependencies) *API {
	if p.Now == nil {
		p.Now = time.Now
	}
	if p.Log == nil {
		p.Log = slog.Default()
	}
	if p.Tenant == nil {
		p.Tenant = func(_ string, named watchword.TenantID) (watchword.TenantID, bool) {
			return watchword.DefaultTenant, named == ""
		}
	}
	a := &API{
		Dependencies: p, mux: http.NewServeMux(),
		rates:        ratelimit.New[netip.Prefix](p.TokenRate, "too many requests from this address"),
		unknownHosts: ratelimit.New[struct{}](p.TokenRate, "too many requests for host names that no tenant has"),
		subjectRates: newSubjectRates(p.RequestRate),
		requestQuota: quota.New[netip.Prefix](quota.Resource{
			Name: "requests under way", Unit: "requests",
			Subject: quota.Bound{Max: int64(p.PerAddress), Name: "limits.per_address"}, Total: quota.Bound{Max: int64(p.Requests), Name: "limits.connections"},
		}),
	}
	a.answerQuota = newResponseQuota(p.SubjectBodyBytes, p.BodyBytes)
	a.mirrorReads.last = cache.New[mirrorReader, time.Time](1024)
	if u, err := url.Parse(p.PublicURL); err == nil {
		a.strictTransport = u.Hostname() != "localhost" && !strings.HasSuffix(u.Hostname(), ".localhost")
	}
	a.huma = newHuma(a)
	a.oauthRoutes()
	a.enrollRoutes()
	a.timeRoutes()
	a.pairingRoutes()
	a.loginRoutes()
	a.selfRoutes()
	a.selfCommandRoutes()
	a.rekeyRoutes()
	a.deviceRoutes()
	a.totalRoutes()
	a.operatorRoutes()
	a.serviceRoutes()
	a.noticeRoutes()
	a.twinRoutes()
	a.policyRoutes()
	a.commandRoutes()
	a.sessionRoutes()
	a.retainedRoutes()
	a.tokenRoutes()
	a.eventRoutes()
	a.auditRoutes()
	a.logRoutes()
	a.keyRoutes()
	a.addressRoutes()
	a.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	return a
}
