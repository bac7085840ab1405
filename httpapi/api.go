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
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/authn"
	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/command"
	"github.com/watchword-iot/watchword/enroll"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/internal/rates"
	"github.com/watchword-iot/watchword/internal/recent"
	"github.com/watchword-iot/watchword/keyring"
	"github.com/watchword-iot/watchword/registry"
	"github.com/watchword-iot/watchword/session"
	"github.com/watchword-iot/watchword/twin"
)

// Parts is the rooms behind the door.
type Parts struct {
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
	Broker      Broker          // nil: nobody listens elsewhere
	SchemaSlots *fair.Semaphore // in which schemas are compiled; nil has no bound

	Options
}

// Broker hands on what came over HTTP to those who listen over other doors.
type Broker interface {
	// SessionStates returns what the MQTT clients of a subject ("": of all) have, by client identifier.
	SessionStates(t watchword.TenantID, subject watchword.SubjectID) []session.State
	// Retained returns a page of retained messages: of a filter ("": all) and an owner ("": any), behind a topic, n
	// at most; next is the topic to go on behind, "" at the end. Code: unavailable.
	Retained(ctx context.Context, t watchword.TenantID, filter string, by watchword.SubjectID, after string, n int) (page []session.Retained, next string, err error)
	// RetainedMessage returns the one of a topic. Codes: not_found, unavailable.
	RetainedMessage(ctx context.Context, t watchword.TenantID, topic string) (session.Retained, error)
	// DeleteRetained removes it once note has returned, whose error it returns. Codes: not_found, unavailable.
	DeleteRetained(ctx context.Context, t watchword.TenantID, topic string, note func(session.Retained) error) error
	// EndOfflineSession ends the session that a client without a connection left behind, if log, which writes it down, says nil:
	// the client cannot come back in between. Codes: not_found where there is none, or its client came back; log's.
	EndOfflineSession(t watchword.TenantID, id watchword.SessionID, log func() error) error
}

// Options is what the door needs to know beside the rooms.
type Options struct {
	Version     string
	PublicURL   string        // no trailing slash
	MQTTS       string        // address for the enrollment answer, or empty
	CAPEM       func() []byte // the own authorities, for the enrollment answer; nil if a public one vouches
	JWKS        func() []byte // the issuer's public keys as a JWK set
	TrustBundle func() string // today's trust bundle
	Time        TimeSigner    // of POST /v1/time
	TokenRate   float64       // requests a second and address on the endpoints that need no token; 0 means no bound
	// PublishRates is the rate of a subject's publishes, whatever carries them; nil means no bound.
	PublishRates *rates.Shared[quota.Key]
	// ControlRates is the rate of what a subject has written of itself, whatever carries it; nil means no bound.
	ControlRates *rates.Shared[quota.Key]
	RequestRate  float64 // requests a second, class and subject (see rate.go); 0 means no bound
	Requests     int     // under way at once, of all; 0 means no bound
	PerAddress   int     // of these, from one address (IPv6: from one /64); 0 means no bound
	// The bytes of requests under way and of answers that are not with their connections yet, beyond 4 KiB of each: of one subject (without a token:
	// of one network), and of all; 0 means no bound.
	SubjectBodyBytes, BodyBytes int64
	Now                         func() time.Time
	Log                         *slog.Logger
}

// tenant is the one that the door speaks for: others come with their own addresses.
const tenant = watchword.DefaultTenant

// API is the door. It is safe for concurrent use.
type API struct {
	Parts
	mux              *http.ServeMux
	huma             huma.API
	rates            *rates.Map[netip.Prefix]       // of the endpoints that need no token
	requestQuota     *quota.Ledger[netip.Prefix]    // under way
	answerQuota      *quota.Ledger[responseAccount] // bytes of answers
	subjectRates     subjectRates                   // of requests with a token
	delayedResponses atomic.Int32                   // answers that are given late

	mirrorReads struct { // who reads the log's tiles, and when an entry said so
		sync.Mutex
		last *recent.Map[mirrorReader, time.Time]
	}

	// strictTransport says that browsers shall speak nothing but TLS to this name. Not to
	// localhost: they would refuse every other server of the machine.
	strictTransport bool
}

// New builds the door from its rooms.
func New(p Parts) *API {
	if p.Now == nil {
		p.Now = time.Now
	}
	if p.Log == nil {
		p.Log = slog.Default()
	}
	a := &API{
		Parts: p, mux: http.NewServeMux(),
		rates:        rates.New[netip.Prefix](p.TokenRate, "too many requests from this address"),
		subjectRates: newSubjectRates(p.RequestRate),
		requestQuota: quota.New[netip.Prefix](quota.Resource{
			Name: "requests under way", Unit: "requests",
			Subject: quota.Bound{Max: int64(p.PerAddress), Name: "limits.per_address"}, Total: quota.Bound{Max: int64(p.Requests), Name: "limits.connections"},
		}),
	}
	a.answerQuota = newResponseQuota(p.SubjectBodyBytes, p.BodyBytes)
	a.mirrorReads.last = recent.New[mirrorReader, time.Time](1024)
	if u, err := url.Parse(p.PublicURL); err == nil {
		a.strictTransport = u.Hostname() != "localhost" && !strings.HasSuffix(u.Hostname(), ".localhost")
	}
	a.huma = newHuma(a)
	a.oauthRoutes()
	a.enrollRoutes()
	a.timeRoutes()
	a.pairingRoutes()
	a.selfRoutes()
	a.selfCommandRoutes()
	a.rekeyRoutes()
	a.deviceRoutes()
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
	a.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	return a
}
