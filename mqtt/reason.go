package mqtt

import (
	"errors"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// reasonOf is what a client of version 5 is told for each code (MQTT 5.0 §2.4).
// Those that no CONNACK or PUBACK may carry are given in another way there.
var reasonOf = map[watchword.Code]packet.Reason{
	watchword.BadRequest:           packet.BadPayloadFormat,
	watchword.TooLarge:             packet.TooLarge,
	watchword.UnsupportedMediaType: packet.BadPayloadFormat,
	watchword.MethodNotAllowed:     packet.Implementation,
	watchword.NotFound:             packet.NotAuthorized, // whether it is there is not told
	watchword.Conflict:             packet.Implementation,
	watchword.PreconditionFailed:   packet.Implementation,
	watchword.Denied:               packet.NotAuthorized,
	watchword.Unauthenticated:      packet.NotAuthorized,
	watchword.RateLimited:          packet.ConnectionRate,
	watchword.Busy:                 packet.QuotaExceeded,
	watchword.Unavailable:          packet.ServerUnavailable,
	watchword.TimedOut:             packet.Unspecified,
	watchword.ClientInvalid:        packet.NotAuthorized,
	watchword.GrantUnsupported:     packet.Implementation,
	watchword.ScopeInvalid:         packet.Implementation,
	watchword.TargetInvalid:        packet.Implementation,
	watchword.ProofRequired:        packet.NotAuthorized,
	watchword.DPoPInvalid:          packet.NotAuthorized,
	watchword.DPoPNonce:            packet.Implementation,
	watchword.TokenMalformed:       packet.BadUserPassword,
	watchword.TokenKind:            packet.BadUserPassword,
	watchword.AlgorithmInvalid:     packet.BadUserPassword,
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
	watchword.SessionClosed:        packet.Implementation,
	watchword.CodeInvalid:          packet.Implementation,
	watchword.ProofInvalid:         packet.NotAuthorized,
	watchword.PairingPending:       packet.Implementation,
	watchword.PairingSlow:          packet.Implementation,
	watchword.PairingRejected:      packet.Implementation,
	watchword.PairingExpired:       packet.Implementation,
	watchword.PinMismatch:          packet.Implementation,
	watchword.BundleInvalid:        packet.Implementation,
	watchword.PeerUntrusted:        packet.Implementation,
	watchword.PolicyInvalid:        packet.Implementation,
	watchword.ArgsInvalid:          packet.Implementation,
	watchword.FunctionUnknown:      packet.Implementation,
	watchword.OrderInvalid:         packet.Implementation,
	watchword.CommandUnsealed:      packet.Implementation,
	watchword.CommandStale:         packet.Implementation,
	watchword.CommandExpired:       packet.Implementation,
	watchword.NonceMismatch:        packet.Implementation,
	watchword.ReceiptInvalid:       packet.BadPayloadFormat,
	watchword.CommandRefused:       packet.Implementation,
	watchword.CommandFailed:        packet.Implementation,
	watchword.CommandUnlogged:      packet.Implementation,
	watchword.LogInvalid:           packet.Unspecified,
	watchword.ConfigInvalid:        packet.Unspecified,
	watchword.FolderInUse:          packet.Unspecified,
	watchword.KeyExposed:           packet.Unspecified,
	watchword.FileUntrusted:        packet.Unspecified,
	watchword.KeyMissing:           packet.Unspecified,
	watchword.KeyUnwrap:            packet.Unspecified,
	watchword.KeyDamaged:           packet.Unspecified,
	watchword.Internal:             packet.Unspecified,
}

// endOf is what a session's end is called in DISCONNECT, where that is another
// word than for a refusal.
var endOf = map[watchword.Code]packet.Reason{
	watchword.TokenExpired:     packet.MaximumConnectTime,
	watchword.SubjectSuspended: packet.Administrative,
	watchword.SessionClosed:    packet.Administrative,
	watchword.Unavailable:      packet.ShuttingDown,
	watchword.RateLimited:      packet.RateTooHigh,
	watchword.BadRequest:       packet.BadPayloadFormat,
	watchword.Internal:         packet.Unspecified,
}

// codeOf is the product's own word for why something is refused.
func codeOf(err error) watchword.Code {
	if e, ok := errors.AsType[*packet.Error](err); ok {
		switch e.Reason {
		case packet.NotAuthorized, packet.NoRetain, packet.NoQoS, packet.NoShared, packet.BadAuthMethod:
			return watchword.Denied
		case packet.TooLarge, packet.QuotaExceeded:
			return watchword.TooLarge
		case packet.KeepAliveTimeout:
			return watchword.TimedOut
		}
		return watchword.BadRequest
	}
	return watchword.CodeOf(err)
}

// reasonFor is the reason code of a refusal in CONNACK, PUBACK or SUBACK.
func reasonFor(err error) packet.Reason {
	if e, ok := errors.AsType[*packet.Error](err); ok {
		return e.Reason
	}
	if r, ok := reasonOf[watchword.CodeOf(err)]; ok {
		return r
	}
	return packet.Unspecified
}

// words is what a client may read of err: the code and the detail, never the
// private cause.
func words(err error) string {
	if e, ok := errors.AsType[*packet.Error](err); ok {
		return e.What
	}
	s := string(watchword.CodeOf(err))
	if e, ok := errors.AsType[*watchword.Error](err); ok && e.Code != watchword.Internal {
		if e.Field != "" {
			s += ": " + e.Field
		}
		if e.Detail != "" {
			s += ": " + clip(e.Detail)
		}
		if e.Rule != "" && !strings.Contains(e.Detail, e.Rule) {
			s += " (" + e.Rule + ")"
		}
	}
	return s
}

// goodbye is the DISCONNECT that tells a client of version 5 why.
func (c *conn) goodbye(cause error) *packet.Disconnect {
	d := &packet.Disconnect{}
	switch e, wire := errors.AsType[*packet.Error](cause); {
	case errors.Is(cause, errTaken):
		d.Reason = packet.TakenOver
	case wire:
		d.Reason = e.Reason
	default:
		d.Reason = reasonFor(cause)
		if r, ok := endOf[watchword.CodeOf(cause)]; ok {
			d.Reason = r
		}
	}
	if !packet.MayCarry(packet.DISCONNECT, d.Reason) {
		d.Reason = packet.Unspecified
	}
	if !errors.Is(cause, errTaken) {
		d.Properties.SetText(packet.ReasonString, words(cause))
	}
	return d
}

// appendGoodbye appends it as it goes over the wire. Version 3.1.1 has no word for
// it, and before CONNECT there is no version.
func (c *conn) appendGoodbye(out []byte, cause error) []byte {
	if c.version != packet.V5 || !c.out.ready {
		return out
	}
	b, _ := c.fit(c.goodbye(cause)) // where it does not, the end alone must do
	return append(out, b...)
}

// returnCode is the answer to a refused CONNECT of version 3.1.1 (§3.2.2.3).
func returnCode(r packet.Reason) packet.Reason {
	switch r {
	case packet.BadVersion:
		return 1
	case packet.BadClientID:
		return 2
	case packet.ServerUnavailable, packet.ServerBusy, packet.QuotaExceeded, packet.ConnectionRate, packet.Unspecified:
		return 3
	case packet.BadUserPassword:
		return 4
	}
	return 5
}
