package watchword

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Code is the kind of an error. Codes are part of the API: they are in problem documents, receipts, logs and exit statuses,
// so none is ever renamed. docs/errors.md explains each; a test compares the two.
type Code string

// The closed set of codes.
const (
	// BadRequest means the shape of what was sent is wrong; Field names where.
	BadRequest Code = "bad_request"
	// TooLarge means a body, token or value exceeds its limit.
	TooLarge Code = "too_large"
	// UnsupportedMediaType means the body's content type is not one this address takes.
	UnsupportedMediaType Code = "unsupported_media_type"
	// MethodNotAllowed means the address exists and has no such method.
	MethodNotAllowed Code = "method_not_allowed"
	// NotFound means the thing does not exist, or the caller may not know it.
	NotFound Code = "not_found"
	// Conflict means the thing exists already, or is in a state that forbids this.
	Conflict Code = "conflict"
	// PreconditionFailed means the version in If-Match is not the current one.
	PreconditionFailed Code = "precondition_failed"
	// Denied means the caller is known and no rule allows this, or one forbids it.
	Denied Code = "denied"
	// ExceedsOwn means the act would give a permission that the caller may not give, or concerns a subject that has more than the caller.
	ExceedsOwn Code = "exceeds_own"
	// Unauthenticated means no token was sent where one is needed.
	Unauthenticated Code = "unauthenticated"
	// RateLimited means too much came from one side; RetryAfter says when to come back.
	RateLimited Code = "rate_limited"
	// Busy means a bounded queue is full.
	Busy Code = "busy"
	// Unavailable means a part the request needs (store, disk) is not working now.
	Unavailable Code = "unavailable"
	// ClockUntrusted means that the clock of the server's machine is not trusted, so that nothing that states the time is signed.
	ClockUntrusted Code = "clock_untrusted"
	// Superseded means that another server was restored from a backup of this one: this one orders and delivers no commands.
	Superseded Code = "superseded"
	// TimedOut means a wait ended before its event.
	TimedOut Code = "timed_out"
	// ClientInvalid means a client assertion that is not valid: unknown subject or
	// key, bad signature, wrong issuer. The outside never learns which.
	ClientInvalid Code = "client_invalid"
	// GrantUnsupported means a grant_type that this server does not offer.
	GrantUnsupported Code = "grant_unsupported"
	// ScopeInvalid means a requested scope that is malformed, or more than policy gives (RFC 6749 §5.2).
	ScopeInvalid Code = "scope_invalid"
	// TargetInvalid means a requested resource that is malformed, or more than one (RFC 8707 §2).
	TargetInvalid Code = "target_invalid"
	// ProofRequired means a subject that gets nothing without a proof of its key.
	ProofRequired Code = "proof_required"
	// DPoPInvalid means a DPoP proof that does not hold: key, method, URL, token, age or use (RFC 9449 §4.3).
	DPoPInvalid Code = "dpop_invalid"
	// DPoPNonce means a DPoP proof without the server's current nonce (RFC 9449 §8).
	DPoPNonce Code = "dpop_nonce"

	// TokenMalformed means bytes that are no compact token of ours: encoding, header or claims.
	TokenMalformed Code = "token_malformed"
	// TokenKind means a valid token of another kind than this endpoint accepts (typ).
	TokenKind Code = "token_kind"
	// AlgorithmInvalid means an alg or enc that the key does not have.
	AlgorithmInvalid Code = "algorithm_invalid"
	// KeyUnknown means the header's kid names no key that is accepted here.
	KeyUnknown Code = "key_unknown"
	// SignatureInvalid means the signature is not the key's over these bytes.
	SignatureInvalid Code = "signature_invalid"
	// TokenExpired means exp has passed (RFC 7519 §4.1.4).
	TokenExpired Code = "token_expired"
	// TokenEarly means nbf or iat is in the future.
	TokenEarly Code = "token_early"
	// TokenLifetime means exp is later after iat than the kind allows.
	TokenLifetime Code = "token_lifetime"
	// IssuerMismatch means iss is not the expected issuer.
	IssuerMismatch Code = "issuer_mismatch"
	// AudienceMismatch means aud is not the verifier.
	AudienceMismatch Code = "audience_mismatch"
	// TokenReplayed means a single-use jti was seen before.
	TokenReplayed Code = "token_replayed"
	// TokenUnrecorded means a well-signed access token that is not on record as issued.
	TokenUnrecorded Code = "token_unrecorded"
	// TokenRevoked means the token, its key or its subject was revoked.
	TokenRevoked Code = "token_revoked"
	// IssuerRevoked means that the server's own key behind a token was revoked.
	IssuerRevoked Code = "issuer_revoked"
	// TokenTooLarge means a subject's permissions would not fit a token of 4 KiB.
	TokenTooLarge Code = "token_too_large"

	// SubjectNew means the device has no key yet.
	SubjectNew Code = "subject_new"
	// SubjectSuspended means nothing of the subject passes until it is resumed.
	SubjectSuspended Code = "subject_suspended"
	// SubjectRevoked means the subject's keys are revoked permanently.
	SubjectRevoked Code = "subject_revoked"

	// SessionClosed means an operator closed this session; its token is still valid.
	SessionClosed Code = "session_closed"

	// CodeInvalid means an enrollment code that is unknown, used, expired or void.
	CodeInvalid Code = "code_invalid"
	// ProofInvalid means the proof of an enrollment or key change does not fit its code or keys.
	ProofInvalid Code = "proof_invalid"
	// PairingPending means that no operator has decided on the pairing yet (RFC 8628 §3.5).
	PairingPending Code = "pairing_pending"
	// PairingSlow means that the device polls too often (RFC 8628 §3.5, slow_down).
	PairingSlow Code = "pairing_slow"
	// PairingRejected means that an operator rejected the pairing.
	PairingRejected Code = "pairing_rejected"
	// PairingExpired means a pairing that is unknown, used or expired.
	PairingExpired Code = "pairing_expired"
	// PinMismatch means a trust bundle whose root key does not match the pin.
	PinMismatch Code = "pin_mismatch"
	// BundleInvalid means a trust bundle that does not verify, has expired, or is older than the known one.
	BundleInvalid Code = "bundle_invalid"
	// PeerUntrusted means the TLS peer is not vouched for by the trust bundle.
	PeerUntrusted Code = "peer_untrusted"

	// PolicyInvalid means a policy document with a mistake; Detail has line and column.
	PolicyInvalid Code = "policy_invalid"
	// ArgsInvalid means a command's arguments do not fit the function's schema.
	ArgsInvalid Code = "args_invalid"
	// FunctionUnknown means the device has no such function.
	FunctionUnknown Code = "function_unknown"
	// OrderInvalid means a signed order that does not fit its command.
	OrderInvalid Code = "order_invalid"

	// CommandUnsealed means a command that came in plaintext, or sealed to another key.
	CommandUnsealed Code = "command_unsealed"
	// CommandStale means a number that does not grow, for a command not seen before.
	CommandStale Code = "command_stale"
	// CommandExpired means the command's end has passed.
	CommandExpired Code = "command_expired"
	// NonceMismatch means a command, or a signed time, without the nonce that this device waits for.
	NonceMismatch Code = "nonce_mismatch"
	// ReceiptInvalid means a receipt that settles nothing: unknown command, wrong hash, wrong signer, a key that was replaced before.
	ReceiptInvalid Code = "receipt_invalid"
	// CommandRefused means the device's signed answer is a refusal.
	CommandRefused Code = "command_refused"
	// CommandFailed means the device's signed answer says that the act failed or was cut off.
	CommandFailed Code = "command_failed"

	// CommandUnlogged means a command without a proof that it is in the log, for a device that executes no other.
	CommandUnlogged Code = "command_unlogged"
	// LogInvalid means an entry, tile, checkpoint or proof of the log that does not fit the others.
	LogInvalid Code = "log_invalid"
	// BackupInvalid means a backup or a journal that was changed, is incomplete, or that no given identity opens.
	BackupInvalid Code = "backup_invalid"

	// ConfigInvalid means a configuration file or flag with a mistake; Detail has the line.
	ConfigInvalid Code = "config_invalid"
	// FolderInUse means another process holds the data or state folder.
	FolderInUse Code = "folder_in_use"
	// FolderNewer means that the data folder has a schema that this build does not know: another build upgraded it.
	FolderNewer Code = "folder_newer"
	// KeyExposed means a key file that others can read.
	KeyExposed Code = "key_exposed"
	// FileUntrusted means a file or folder that decides something and that others own or can write to.
	FileUntrusted Code = "file_untrusted"
	// KeyMissing means that the key-encryption key, or an offline key, is not where it must be.
	KeyMissing Code = "key_missing"
	// KeyUnwrap means the key-encryption key is not the one that sealed these keys.
	KeyUnwrap Code = "key_unwrap"
	// KeyDamaged means a key file, or bytes sealed at rest, that are not what was written.
	KeyDamaged Code = "key_damaged"
	// Internal means an internal error. The cause is logged and never shown.
	Internal Code = "internal"
)

// Page returns the URL of the page that explains the code. It is the type of problem documents
// (RFC 9457 §3.1.1).
func (c Code) Page() string {
	return "https://github.com/watchword-iot/watchword/blob/main/docs/errors.md#" + string(c)
}

// Codes lists the closed set in the order of docs/errors.md.
var Codes = []Code{
	BadRequest, TooLarge, UnsupportedMediaType, MethodNotAllowed, NotFound, Conflict, PreconditionFailed, Denied, ExceedsOwn,
	Unauthenticated, RateLimited, Busy, Unavailable, ClockUntrusted, Superseded, TimedOut, ClientInvalid, GrantUnsupported,
	ScopeInvalid, TargetInvalid, ProofRequired, DPoPInvalid, DPoPNonce,
	TokenMalformed, TokenKind, AlgorithmInvalid, KeyUnknown, SignatureInvalid, TokenExpired, TokenEarly, TokenLifetime,
	IssuerMismatch, AudienceMismatch, TokenReplayed, TokenUnrecorded, TokenRevoked, IssuerRevoked, TokenTooLarge,
	SubjectNew, SubjectSuspended, SubjectRevoked, SessionClosed, CodeInvalid, ProofInvalid,
	PairingPending, PairingSlow, PairingRejected, PairingExpired, PinMismatch, BundleInvalid, PeerUntrusted,
	PolicyInvalid, ArgsInvalid, FunctionUnknown, OrderInvalid,
	CommandUnsealed, CommandStale, CommandExpired, NonceMismatch, ReceiptInvalid, CommandRefused, CommandFailed, CommandUnlogged, LogInvalid, BackupInvalid,
	ConfigInvalid, FolderInUse, FolderNewer, KeyExposed, FileUntrusted, KeyMissing, KeyUnwrap, KeyDamaged, Internal,
}

// Error is a refusal. Code, Detail, Field, Rule and RetryAfter are safe to show
// to the caller; Err is for the log alone.
type Error struct {
	Code   Code
	Detail string
	// Field is the path of the field at fault, as "labels.site", never its value.
	Field string
	// Rule is the policy rule that decided, as "lamps:11", where one did.
	Rule string
	// RetryAfter is how long to wait before trying again; 0 means unsaid.
	RetryAfter time.Duration
	Err        error
}

// Error joins code, field, detail and cause, for logs.
func (e *Error) Error() string {
	s := string(e.Code)
	if e.Field != "" {
		s += ": " + e.Field
	}
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if e.Err != nil {
		if cause := e.Err.Error(); !strings.HasSuffix(s, cause) { // a detail may end with it
			s += ": " + cause
		}
	}
	return s
}

// Unwrap returns the private cause.
func (e *Error) Unwrap() error { return e.Err }

// Refuse builds an [Error] with no cause.
func Refuse(c Code, format string, a ...any) error {
	return &Error{Code: c, Detail: fmt.Sprintf(format, a...)}
}

// RefuseField is [Refuse] for one field of what was sent, with code bad_request.
func RefuseField(field, format string, a ...any) error {
	return &Error{Code: BadRequest, Field: field, Detail: fmt.Sprintf(format, a...)}
}

// Wrap is [Refuse] with a private cause, which is logged and never shown.
func Wrap(err error, c Code, format string, a ...any) error {
	return &Error{Code: c, Detail: fmt.Sprintf(format, a...), Err: err}
}

// WrapRefusal returns a refusal with code c because of err. what names the rejected object, such as "the signed order is
// not valid"; the code, field and detail of err follow it, so that its reader can distinguish the reasons. An err that
// concerns this server, and not the request (internal, unavailable, timed_out, busy, rate_limited, or an error of another
// package), is returned unchanged, and so is nil.
func WrapRefusal(err error, c Code, what string) error {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return err
	}
	switch e.Code {
	case Internal, Unavailable, TimedOut, Busy, RateLimited:
		return err
	}
	reason := *e
	reason.Err = nil
	return &Error{Code: c, Detail: what + ": " + reason.Error(), Err: err}
}

// CodeOf returns the code of the first [Error] in err's chain, [Internal] for
// any other error, and "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return Internal
}

// DetailOf returns the detail of an error of this package, without its code; the text of any other.
func DetailOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Detail
	}
	return err.Error()
}
