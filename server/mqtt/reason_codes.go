package mqtt

import (
	"errors"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/truncate"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// reasonByCode maps codes to reason codes of version 5 (MQTT 5.0 §2.4). Packets that may not carry a
// reason get another one.
var reasonByCode = map[watchword.Code]packet.Reason{
	watchword.BadRequest:           packet.PayloadFormatInvalid,
	watchword.TooLarge:             packet.PacketTooLarge,
	watchword.UnsupportedMediaType: packet.PayloadFormatInvalid,
	watchword.MethodNotAllowed:     packet.ImplementationSpecificError,
	watchword.NotFound:             packet.NotAuthorized, // existence is not disclosed
	watchword.Conflict:             packet.ImplementationSpecificError,
	watchword.PreconditionFailed:   packet.ImplementationSpecificError,
	watchword.Denied:               packet.NotAuthorized,
	watchword.Unauthenticated:      packet.NotAuthorized,
	watchword.RateLimited:          packet.ConnectionRateExceeded,
	watchword.Busy:                 packet.QuotaExceeded,
	watchword.Unavailable:          packet.ServerUnavailable,
	watchword.ClockUntrusted:       packet.ServerUnavailable,
	watchword.Superseded:           packet.ServerUnavailable,
	watchword.TimedOut:             packet.UnspecifiedError,
	watchword.ClientInvalid:        packet.NotAuthorized,
	watchword.GrantUnsupported:     packet.ImplementationSpecificError,
	watchword.ScopeInvalid:         packet.ImplementationSpecificError,
	watchword.TargetInvalid:        packet.ImplementationSpecificError,
	watchword.ProofRequired:        packet.NotAuthorized,
	watchword.DPoPInvalid:          packet.NotAuthorized,
	watchword.DPoPNonce:            packet.ImplementationSpecificError,
	watchword.TokenMalformed:       packet.BadUserNameOrPassword,
	watchword.TokenKind:            packet.BadUserNameOrPassword,
	watchword.AlgorithmInvalid:     packet.BadUserNameOrPassword,
	watchword.KeyUnknown:           packet.NotAuthorized,
	watchword.SignatureInvalid:     packet.NotAuthorized,
	watchword.TokenExpired:         packet.NotAuthorized,
	watchword.TokenEarly:           packet.NotAuthorized,
	watchword.TokenLifetime:        packet.NotAuthorized,
	watchword.IssuerMismatch:       packet.NotAuthorized,
	watchword.AudienceMismatch:     packet.NotAuthorized,
	watchword.TokenReplayed:        packet.NotAuthorized,
	watchword.TokenUnrecorded:      packet.NotAuthorized,
	watchword.TokenRevoked:         packet.NotAuthorized,
	watchword.IssuerRevoked:        packet.NotAuthorized,
	watchword.TokenTooLarge:        packet.NotAuthorized,
	watchword.SubjectNew:           packet.NotAuthorized,
	watchword.SubjectSuspended:     packet.NotAuthorized,
	watchword.SubjectRevoked:       packet.NotAuthorized,
	watchword.SessionClosed:        packet.ImplementationSpecificError,
	watchword.CodeInvalid:          packet.ImplementationSpecificError,
	watchword.ProofInvalid:         packet.NotAuthorized,
	watchword.PairingPending:       packet.ImplementationSpecificError,
	watchword.PairingSlow:          packet.ImplementationSpecificError,
	watchword.PairingRejected:      packet.ImplementationSpecificError,
	watchword.PairingExpired:       packet.ImplementationSpecificError,
	watchword.PinMismatch:          packet.ImplementationSpecificError,
	watchword.BundleInvalid:        packet.ImplementationSpecificError,
	watchword.PeerUntrusted:        packet.ImplementationSpecificError,
	watchword.PolicyInvalid:        packet.ImplementationSpecificError,
	watchword.ArgsInvalid:          packet.ImplementationSpecificError,
	watchword.FunctionUnknown:      packet.ImplementationSpecificError,
	watchword.OrderInvalid:         packet.ImplementationSpecificError,
	watchword.CommandUnsealed:      packet.ImplementationSpecificError,
	watchword.CommandStale:         packet.ImplementationSpecificError,
	watchword.CommandExpired:       packet.ImplementationSpecificError,
	watchword.NonceMismatch:        packet.ImplementationSpecificError,
	watchword.ReceiptInvalid:       packet.PayloadFormatInvalid,
	watchword.CommandRefused:       packet.ImplementationSpecificError,
	watchword.CommandFailed:        packet.ImplementationSpecificError,
	watchword.CommandUnlogged:      packet.ImplementationSpecificError,
	watchword.LogInvalid:           packet.UnspecifiedError,
	watchword.BackupInvalid:        packet.UnspecifiedError,
	watchword.ConfigInvalid:        packet.UnspecifiedError,
	watchword.FolderInUse:          packet.UnspecifiedError,
	watchword.FolderNewer:          packet.UnspecifiedError,
	watchword.KeyExposed:           packet.UnspecifiedError,
	watchword.FileUntrusted:        packet.UnspecifiedError,
	watchword.KeyMissing:           packet.UnspecifiedError,
	watchword.KeyUnwrap:            packet.UnspecifiedError,
	watchword.KeyDamaged:           packet.UnspecifiedError,
	watchword.Internal:             packet.UnspecifiedError,
}

// disconnectReasonByCode maps the causes of a session's end to reason codes of DISCONNECT, where they
// differ from those of a refusal.
var disconnectReasonByCode = map[watchword.Code]packet.Reason{
	watchword.TokenExpired:     packet.MaximumConnectTime,
	watchword.SubjectSuspended: packet.AdministrativeAction,
	watchword.SessionClosed:    packet.AdministrativeAction,
	watchword.Unavailable:      packet.ServerShuttingDown,
	watchword.RateLimited:      packet.MessageRateTooHigh,
	watchword.BadRequest:       packet.PayloadFormatInvalid,
	watchword.Internal:         packet.UnspecifiedError,
}

// errorCodeOf returns the code of an error.
func errorCodeOf(err error) watchword.Code {
	if e, ok := errors.AsType[*packet.Error](err); ok {
		switch e.Reason {
		case packet.NotAuthorized, packet.RetainNotSupported, packet.QoSNotSupported, packet.SharedSubscriptionsNotSupported, packet.BadAuthenticationMethod:
			return watchword.Denied
		case packet.PacketTooLarge, packet.QuotaExceeded:
			return watchword.TooLarge
		case packet.KeepAliveTimeout:
			return watchword.TimedOut
		}
		return watchword.BadRequest
	}
	return watchword.CodeOf(err)
}

// reasonCodeOf returns the reason code of a refusal in CONNACK, PUBACK or SUBACK.
func reasonCodeOf(err error) packet.Reason {
	if e, ok := errors.AsType[*packet.Error](err); ok {
		return e.Reason
	}
	if r, ok := reasonByCode[watchword.CodeOf(err)]; ok {
		return r
	}
	return packet.UnspecifiedError
}

// publicText returns what a client may read of err, as the Reason String of CONNACK, PUBACK, PUBREC, SUBACK, UNSUBACK and
// DISCONNECT: the code, which docs/errors.md explains, then the member and the detail; never the private cause.
func publicText(err error) string {
	if e, ok := errors.AsType[*packet.Error](err); ok {
		return string(errorCodeOf(err)) + ": " + e.Detail
	}
	s := string(watchword.CodeOf(err))
	if e, ok := errors.AsType[*watchword.Error](err); ok && e.Code != watchword.Internal {
		if e.Field != "" {
			s += ": " + e.Field
		}
		if e.Detail != "" {
			s += ": " + truncate.LogText(e.Detail)
		}
		if e.Rule != "" && !strings.Contains(e.Detail, e.Rule) {
			s += " (" + e.Rule + ")"
		}
	}
	return s
}
