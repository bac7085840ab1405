package audit

import (
	"slices"

	"github.com/watchword-iot/watchword"
)

// recording is the rule for recording a refused request.
type recording byte

const (
	never             recording = iota + 1 // it concerns the form of the request, or the server
	always                                 // it concerns authority
	authenticatedOnly                      // it concerns a subject's permissions: if the subject is known
)

// requestRefusals is the rule for each code of a refused request, over HTTP and MQTT alike. A test compares it with the
// list of codes.
var requestRefusals = map[watchword.Code]recording{
	watchword.BadRequest:           never,
	watchword.TooLarge:             never,
	watchword.UnsupportedMediaType: never,
	watchword.MethodNotAllowed:     never,
	watchword.NotFound:             never, // whether the object exists is not disclosed
	watchword.Conflict:             never,
	watchword.PreconditionFailed:   never,
	watchword.Denied:               always,
	watchword.ExceedsOwn:           always,
	watchword.Unauthenticated:      always,
	watchword.RateLimited:          never,
	watchword.Busy:                 never,
	watchword.Unavailable:          never,
	watchword.ClockUntrusted:       never,
	watchword.Superseded:           authenticatedOnly,
	watchword.TimedOut:             never,
	watchword.ClientInvalid:        always,
	watchword.GrantUnsupported:     never,
	watchword.ScopeInvalid:         authenticatedOnly,
	watchword.TargetInvalid:        never,
	watchword.ProofRequired:        always,
	watchword.DPoPInvalid:          always,
	watchword.DPoPNonce:            never, // part of the protocol: the client repeats the request
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
	watchword.SessionClosed:        never, // the act that closed the session is recorded
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
	watchword.OrderInvalid:         always, // an invalid signature
	watchword.CommandUnsealed:      never,
	watchword.CommandStale:         never,
	watchword.CommandExpired:       never,
	watchword.NonceMismatch:        never,
	watchword.ReceiptInvalid:       always, // likewise
	watchword.CommandRefused:       never,
	watchword.CommandFailed:        never,
	watchword.CommandUnlogged:      never,
	watchword.LogInvalid:           never,
	watchword.BackupInvalid:        never,
	watchword.ConfigInvalid:        never,
	watchword.FolderInUse:          never,
	watchword.FolderNewer:          never,
	watchword.KeyExposed:           never,
	watchword.FileUntrusted:        never,
	watchword.KeyMissing:           never,
	watchword.KeyUnwrap:            never,
	watchword.KeyDamaged:           never,
	watchword.Internal:             never,
}

// actRefusals lists the kinds whose refusals are recorded as a refused act, in addition to or instead of the refused
// request: with the given codes, or, if nil, with all codes except those of server errors.
var actRefusals = map[string][]watchword.Code{
	DeviceEnroll:  nil, // each attempt with a user code or key is recorded
	PairingReject: nil,
	LoginReject:   nil,
	TokenRevoke:   {watchword.Denied},
	DeviceRekey:   {watchword.Conflict}, // a used key was presented; refusals that concern authority are recorded as requests
}

// ShouldRecord reports whether the log records a refusal of that kind with code. known reports that the refused subject is
// known. Transports need not call it: [Recorder.Refused] does.
func ShouldRecord(kind string, code watchword.Code, known bool) bool {
	if kind == RequestRefuse {
		when := requestRefusals[code]
		return when == always || when == authenticatedOnly && known
	}
	codes, named := actRefusals[KindOfDevice(kind)]
	switch {
	case named && codes != nil:
		return slices.Contains(codes, code)
	default:
		return code != watchword.Internal && code != watchword.Unavailable
	}
}
