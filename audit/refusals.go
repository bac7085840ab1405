package audit

import (
	"slices"

	"github.com/watchword-iot/watchword"
)

// recording says when the log records a refused request.
type recording byte

const (
	never             recording = iota + 1 // it is about the request's form, or about the server
	always                                 // it is about authority
	authenticatedOnly                      // it is about what a subject may have: where it is known which
)

// requestRefusals is which refusals of requests are recorded, over HTTP and MQTT alike. A test
// holds it against the codes that there are.
var requestRefusals = map[watchword.Code]recording{
	watchword.BadRequest:           never,
	watchword.TooLarge:             never,
	watchword.UnsupportedMediaType: never,
	watchword.MethodNotAllowed:     never,
	watchword.NotFound:             never, // whether it is there is not said
	watchword.Conflict:             never,
	watchword.PreconditionFailed:   never,
	watchword.Denied:               always,
	watchword.Unauthenticated:      always,
	watchword.RateLimited:          never,
	watchword.Busy:                 never,
	watchword.Unavailable:          never,
	watchword.TimedOut:             never,
	watchword.ClientInvalid:        always,
	watchword.GrantUnsupported:     never,
	watchword.ScopeInvalid:         authenticatedOnly,
	watchword.TargetInvalid:        never,
	watchword.ProofRequired:        always,
	watchword.DPoPInvalid:          always,
	watchword.DPoPNonce:            never, // the usual way of the protocol: the client comes again
	watchword.TokenMalformed:       always,
	watchword.TokenKind:            always,
	watchword.AlgorithmInvalid:     always,
	watchword.KeyUnknown:           always,
	watchword.SignatureInvalid:     always,
	watchword.TokenExpired:         always,
	watchword.TokenEarly:           always,
	watchword.TokenLifetime:        always,
	watchword.IssuerMismatch:       always,
	watchword.AudienceMismatch:     always,
	watchword.TokenReplayed:        always,
	watchword.TokenUnrecorded:      always,
	watchword.TokenRevoked:         always,
	watchword.IssuerRevoked:        always,
	watchword.TokenTooLarge:        authenticatedOnly,
	watchword.SubjectNew:           always,
	watchword.SubjectSuspended:     always,
	watchword.SubjectRevoked:       always,
	watchword.SessionClosed:        never, // the act of whoever closed it is recorded
	watchword.CodeInvalid:          always,
	watchword.ProofInvalid:         always,
	watchword.PairingPending:       never,
	watchword.PairingSlow:          never,
	watchword.PairingRejected:      never,
	watchword.PairingExpired:       never,
	watchword.PinMismatch:          never,
	watchword.BundleInvalid:        never,
	watchword.PeerUntrusted:        never,
	watchword.PolicyInvalid:        never,
	watchword.ArgsInvalid:          never,
	watchword.FunctionUnknown:      never,
	watchword.OrderInvalid:         always, // a signature that does not hold
	watchword.CommandUnsealed:      never,
	watchword.CommandStale:         never,
	watchword.CommandExpired:       never,
	watchword.NonceMismatch:        never,
	watchword.ReceiptInvalid:       always, // likewise
	watchword.CommandRefused:       never,
	watchword.CommandFailed:        never,
	watchword.CommandUnlogged:      never,
	watchword.LogInvalid:           never,
	watchword.ConfigInvalid:        never,
	watchword.FolderInUse:          never,
	watchword.KeyExposed:           never,
	watchword.FileUntrusted:        never,
	watchword.KeyMissing:           never,
	watchword.KeyUnwrap:            never,
	watchword.KeyDamaged:           never,
	watchword.Internal:             never,
}

// actRefusals is which refusals are recorded as the act that they refuse, beside or instead of
// the request: of the codes given, or, where there are none, of all that are no fault of
// the server.
var actRefusals = map[string][]watchword.Code{
	DeviceEnroll:  nil, // whoever tries user codes, or keys, leaves a trace for each
	PairingReject: nil,
	TokenRevoke:   {watchword.Denied},
	DeviceRekey:   {watchword.Conflict}, // somebody brought a key that was used; what is about authority is recorded as a request
}

// ShouldRecord reports whether the log records a refusal of that kind with code. known says
// that it is known who was refused. Transports need not ask: [Recorder.Refused] does.
func ShouldRecord(kind string, code watchword.Code, known bool) bool {
	if kind == RequestRefuse {
		when := requestRefusals[code]
		return when == always || when == authenticatedOnly && known
	}
	codes, named := actRefusals[kind]
	switch {
	case named && codes != nil:
		return slices.Contains(codes, code)
	default:
		return code != watchword.Internal && code != watchword.Unavailable
	}
}
