package mqtt

import (
	"cmp"
	"log/slog"
	"time"

	"github.com/watchword-iot/watchword"
)

// Options is the broker's limits, clock and log. The zero value is usable: [New] replaces a zero by
// the default that each field states.
type Options struct {
	PacketBytes int // longest packet from a client, in bytes; 64 KiB

	// Queue of one connected client, and of one persistent session.
	QueueMessages int // messages, at most 50,000; 10,000
	QueueBytes    int // bytes; 1 MiB
	// Queues of connected clients beyond 16 KiB of each.
	QueuedBytes       int64 // of all clients; 1 GiB
	SubjectQueueBytes int64 // of the clients of one subject; 4 MiB
	// Messages stored for persistent sessions.
	OfflineBytes        int64 // for all sessions; 1 GiB
	SubjectOfflineBytes int64 // for the sessions of one subject, beyond 16 KiB of each; 4 MiB

	PersistentSessions int           // persistent sessions; 100,000
	SessionExpiry      time.Duration // longest Session Expiry Interval; 7 days
	KeepAlive          time.Duration // longest Keep Alive of clients of version 5; 30 minutes

	// Topic aliases and packet identifiers of QoS 2 that are not released yet, beyond 4 KiB of each
	// connection or session.
	ConnectionBytes        int64 // of all clients; 256 MiB
	SubjectConnectionBytes int64 // of one subject's clients; 256 KiB

	WillBytes        int64 // wills of all clients; 64 MiB
	SubjectWillBytes int64 // wills of one subject's clients; 256 KiB

	PublishRate float64 // publishes a second of one subject, unless [Dependencies.PublishRates] is set; 0 means no limit
	ControlRate float64 // other requests a second of one subject, see controlRate, unless [Dependencies.ControlRates] is set; 0 means no limit
	ConnectRate float64 // CONNECTs a second from one address; 0 means no limit

	// ControlCharacters accepts strings that hold the code points which MQTT 5.0 §1.5.4 advises against.
	// false refuses them in topics, filters and the properties of messages.
	ControlCharacters bool
	// RefreshSpread is the time over which requests to refresh the token are spread after a policy edit; 5 s.
	RefreshSpread time.Duration
	// HandshakeFailed is called for each connection that ended within its TLS handshake, with the error.
	// It must not block; nil: no call.
	HandshakeFailed func(remote string, err error)
	// Tenant returns the tenant of a connection, by the TLS server name or the Host of WebSocket (empty: none), and by the tenant
	// that the path of the WebSocket request names, else the issuer that the token names (empty: none). ok is false where there is
	// none: such connections share one rate and are refused with denied. What a client says of its tenant decides which keys may
	// prove it, and nothing else. nil: there is the default tenant alone.
	Tenant func(host string, named watchword.TenantID) (t watchword.TenantID, ok bool)
	// Issuers are the issuers of the tenants. nil: which issuer a token names is not looked at before it is verified.
	Issuers watchword.IssuerSource
	Now     func() time.Time // nil: the system's clock, in milliseconds
	Log     *slog.Logger     // nil: slog.Default
}

// withDefaults returns o with each zero field that has a default replaced by it. It is the one place
// that states them.
func (o Options) withDefaults() Options {
	if o.Tenant == nil {
		o.Tenant = func(_ string, named watchword.TenantID) (watchword.TenantID, bool) {
			return watchword.DefaultTenant, named == ""
		}
	}
	o.PacketBytes = cmp.Or(o.PacketBytes, 64<<10)
	o.QueueMessages = cmp.Or(o.QueueMessages, 10_000)
	o.QueueBytes = cmp.Or(o.QueueBytes, 1<<20)
	o.QueuedBytes = cmp.Or(o.QueuedBytes, 1<<30)
	o.SubjectQueueBytes = cmp.Or(o.SubjectQueueBytes, 4<<20)
	o.OfflineBytes = cmp.Or(o.OfflineBytes, 1<<30)
	o.SubjectOfflineBytes = cmp.Or(o.SubjectOfflineBytes, 4<<20)
	o.PersistentSessions = cmp.Or(o.PersistentSessions, 100_000)
	o.SessionExpiry = cmp.Or(o.SessionExpiry, 7*24*time.Hour)
	o.KeepAlive = cmp.Or(o.KeepAlive, 30*time.Minute)
	o.ConnectionBytes = cmp.Or(o.ConnectionBytes, 256<<20)
	o.SubjectConnectionBytes = cmp.Or(o.SubjectConnectionBytes, 256<<10)
	o.WillBytes = cmp.Or(o.WillBytes, 64<<20)
	o.SubjectWillBytes = cmp.Or(o.SubjectWillBytes, 256<<10)
	o.RefreshSpread = cmp.Or(o.RefreshSpread, 5*time.Second)
	if o.Now == nil {
		o.Now = func() time.Time { return time.Now().Truncate(time.Millisecond) }
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return o
}
