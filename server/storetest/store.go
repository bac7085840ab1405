// Package storetest is the contract of a store, as tests that every store must pass. It takes a function that opens an empty
// store, and reports what differs from the contract. Only the tests of stores import it.
package storetest

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/enroll"
	"github.com/watchword-iot/watchword/server/internal/clock"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/registry"
	"github.com/watchword-iot/watchword/server/twin"
	"github.com/watchword-iot/watchword/token"
)

// Store is the union of the Store interfaces of all packages, but for that of the MQTT server ([MQTTStore]). Each method is
// one step of an act in one transaction, and returns only after it is durable. A method that takes an audit entry writes it in
// that transaction: both are written or neither. Times are stored in UTC milliseconds. All methods are safe for concurrent use.
//
// An actor that acts under an authority gives its Versions. The step compares them before it writes: where they are not
// the current ones, it returns [watchword.ErrAuthorityChanged] and writes nothing.
//
// What belongs to another tenant is not_found, like what does not exist.
type Store interface {
	// Instance returns what was decided at first start; not_found before Initialize.
	Instance(ctx context.Context) (keyring.Instance, error)
	// Initialize writes the instance, the first server keys and one operator subject (state active, with its
	// keys), once. Second call: conflict.
	Initialize(ctx context.Context, f keyring.Instance, keys []keyring.SealedKey, operator watchword.Subject, es []audit.Entry) error
	// ServerKeys returns all server keys, oldest first.
	ServerKeys(ctx context.Context) ([]keyring.SealedKey, error)
	// Bundles returns every signed bundle, oldest first.
	Bundles(ctx context.Context) ([]keyring.SignedBundle, error)
	// RotateKeys adds keys, moves others, forgets the bundles named and stores those signed, with its entries, whole or
	// not at all. A key that is not in From any more, or a bundle whose version is not greater than every other's:
	// conflict. The private half of a key that is gone or revoked is erased.
	RotateKeys(ctx context.Context, turn keyring.KeyUpdate, es ...audit.Entry) error

	// ClockMark returns the mark of the clock that SetClockMark wrote last; zero before the first.
	ClockMark(ctx context.Context) (clock.Mark, error)
	// SetClockMark replaces the mark, with its entries, if there are any.
	SetClockMark(ctx context.Context, m clock.Mark, es ...audit.Entry) error

	// CreateSubject adds s (Version 1, Incarnation 1, no keys). If the id is taken or was ever taken by a deleted
	// one: conflict. code, if not nil, is stored with it.
	CreateSubject(ctx context.Context, s watchword.Subject, code *enroll.Code, e audit.Entry) error
	// Subject returns one subject with its keys, the active ones and of all the newest watchword.KeysShown; not_found also for
	// deleted ones.
	Subject(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (watchword.Subject, error)
	// EachSubject calls f with each subject that one of some selectors chooses, in order of ids, until f returns an error, which it
	// returns; it may call f with others that have one of the labels of a selector. A subject has ID, Kind, Role, State, Labels and
	// Proof. No selector chooses no subject.
	EachSubject(ctx context.Context, t watchword.TenantID, some []policy.Selector, f func(*watchword.Subject) error) error
	// SetLabels replaces the labels. ifVersion 0 means any; another version than today's: precondition_failed.
	SetLabels(ctx context.Context, by audit.Actor, id watchword.SubjectID, l watchword.Labels, ifVersion int64, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error)
	// SetRole writes Role (the same as it was: no change, no entry). Codes: not_found, conflict for another kind of subject and for
	// the last owner who can act ([watchword.ErrLastOwner]), which Suspend, Revoke and DeleteSubject refuse too.
	SetRole(ctx context.Context, by audit.Actor, id watchword.SubjectID, role string, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error)
	// RevokeKey revokes one signing key of an operator or a service (already revoked: no change, no entry), and deletes the
	// subject's codes. Codes: not_found; conflict for a device, and for the last owner's last key without an end.
	RevokeKey(ctx context.Context, by audit.Actor, id watchword.SubjectID, key watchword.KeyID, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error)
	// SetKeyEnd sets or shortens the end of a key; the unused codes for its subject, and those made with the key, are deleted. Codes:
	// not_found, conflict (also for the last key without an end of the last owner), bad_request ([watchword.Subject.SetKeyEnd]).
	SetKeyEnd(ctx context.Context, by audit.Actor, id watchword.SubjectID, key watchword.KeyID, end, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error)
	// RetireEndedKeys retires the active keys that ended, of at most limit subjects of all tenants, each with an entry, and
	// returns these subjects.
	RetireEndedKeys(ctx context.Context, now time.Time, limit int, entry audit.EntryOf[watchword.Subject]) ([]watchword.Subject, error)
	// SubjectsWithEndingKeys returns at most limit subjects of which an active key ends after now and at the latest at until: operators
	// first, and of a kind those whose keys end first.
	SubjectsWithEndingKeys(ctx context.Context, t watchword.TenantID, now, until time.Time, limit int) ([]watchword.SubjectID, error)
	// WalkSubjects returns subjects in the walk's order, from after its place on; of its state or with its label alone.
	WalkSubjects(ctx context.Context, t watchword.TenantID, w registry.Walk, limit int) ([]watchword.Subject, error)
	// SetLastSeen writes times that are more than registry.SeenPrecision after the stored ones, and changes no version.
	SetLastSeen(ctx context.Context, seen []registry.Seen) error
	// SubjectCounts, LabelCount and LabelCounts are exact after each transaction.
	SubjectCounts(ctx context.Context, t watchword.TenantID, kind watchword.Kind) (map[watchword.State]int64, error)
	LabelCount(ctx context.Context, t watchword.TenantID, kind watchword.Kind, key, value string) (int64, error)
	LabelCounts(ctx context.Context, t watchword.TenantID, kind watchword.Kind, key, afterKey, afterValue string, limit int) ([]registry.LabelTotal, error)
	// SetName writes Name (the same as it was: no change, no entry), and leaves the authority version.
	SetName(ctx context.Context, by audit.Actor, id watchword.SubjectID, name string, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error)
	// ForgetSubject makes the id of a deleted device free (already: no entry): a device that is added with it has the next incarnation
	// and version, and its commands the next number. Codes: not_found where no deleted subject has the id, conflict for an
	// operator or a service.
	ForgetSubject(ctx context.Context, by audit.Actor, id watchword.SubjectID, e audit.Entry) error
	// SetProof writes Proof (the same as it was: no change, no entry).
	SetProof(ctx context.Context, by audit.Actor, id watchword.SubjectID, proof string, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error)
	// Suspend: new or active becomes suspended (already suspended: no change, no entry, no error); revoked: conflict.
	Suspend(ctx context.Context, by audit.Actor, id watchword.SubjectID, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error)
	// Resume: suspended becomes active if it has an active sign key, else new; active or new: no change, no entry; revoked: conflict.
	Resume(ctx context.Context, by audit.Actor, id watchword.SubjectID, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error)
	// Revoke: any state becomes revoked (already: no change, no entry). Its keys become revoked, its codes go, its
	// tokens become revoked, its commands that are queued or sent become cancelled, delivered or accepted ones
	// unknown; twin, functions and idempotency rows go.
	Revoke(ctx context.Context, by audit.Actor, id watchword.SubjectID, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error)
	// DeleteSubject does what Revoke does and leaves a tombstone: not_found from now on, the id never free again.
	DeleteSubject(ctx context.Context, by audit.Actor, id watchword.SubjectID, now time.Time, entry audit.EntryOf[watchword.Subject]) error

	// Recover adds r.Owner, unless there is a subject of its id on which r.Check decides, and stores the code and the notice, in
	// the place of one of its kind. Code: conflict.
	Recover(ctx context.Context, by audit.Actor, r enroll.Recovery, entries func(created bool) []audit.Entry) (watchword.Subject, error)
	// Notices returns a tenant's notices that have not expired, by kind and time: one of each kind and object, and of each kind the
	// watchword.MaxNotices newest.
	Notices(ctx context.Context, t watchword.TenantID, now time.Time) ([]watchword.Notice, error)
	// AcknowledgeNotice deletes the notice of a kind that is of object, at at. Codes: not_found; conflict, denied
	// ([watchword.Notice.MayAcknowledge]).
	AcknowledgeNotice(ctx context.Context, by audit.Actor, kind watchword.NoticeKind, object watchword.SubjectID, at, now time.Time, e audit.Entry) error

	// AddCode stores a code for a subject that is new or revoked, or for an active operator or service that may have a further
	// key, in place of any other unredeemed code of that subject. Another state: conflict.
	AddCode(ctx context.Context, c enroll.Code, e audit.Entry) error
	// Code returns a code, used or not; PendingCode the unused one of a subject that has not expired. Unknown: code_invalid. An unused
	// code is deleted with each change of its subject's or its maker's authority ([enroll.VoidsCodesFor], [enroll.VoidsCodesBy]),
	// and when a key of its subject, or the key that it was made with, is revoked.
	Code(ctx context.Context, t watchword.TenantID, hash [32]byte) (enroll.Code, error)
	PendingCode(ctx context.Context, t watchword.TenantID, id watchword.SubjectID, now time.Time) (enroll.Code, error)
	// RedeemCode turns the code's subject from new or revoked to active with the two keys, or adds the signing key to those of an
	// active operator or service, with the end that the code says; Incarnation grows if
	// it was revoked (old commands' numbers go on, they never restart). Of two racing redemptions with different
	// keys one wins. The same code with the same two keys, until the code expires and while the subject is still active
	// with those keys: the same subject again, replay true, no entry. Everything else (unknown, over, used,
	// suspended): code_invalid. A key that another subject of the tenant has or had, or this one had before:
	// conflict, the code is not spent. maker is what was decided on about the maker of the code: it is compared.
	RedeemCode(ctx context.Context, r enroll.Redemption, maker watchword.AuthorityVersions, now time.Time, entry audit.EntryOf[watchword.Subject]) (s watchword.Subject, replay bool, err error)

	// Rekey replaces the subject's active keys with r.Sign and r.Seal; the old ones become retired as of now, and one that
	// is active already stays. If both are active already: the subject, replay true, no entry, nothing used. The subject
	// must be active (subject_suspended, …), of r.Incarnation, and r.From one of its active sign keys (client_invalid).
	// r.Spent was used before: token_replayed. A key that any subject of the tenant has or had: conflict. More than
	// enroll.RekeysMost new keys within enroll.RekeysSpan: rate_limited with RetryAfter.
	Rekey(ctx context.Context, by audit.Actor, r enroll.KeyChange, now time.Time, entry audit.EntryOf[watchword.Subject]) (s watchword.Subject, replay bool, err error)
	Pairings

	// IssueToken spends the assertion's jti (seen before for this tenant and subject: token_replayed), checks that the
	// subject is active (subject_new, subject_suspended, subject_revoked), that r.Incarnation is its own and r.Key is one of its active sign keys (else
	// client_invalid), and records r.
	IssueToken(ctx context.Context, r token.Record, spent token.SingleUse, e audit.Entry) error
	// TokenRecord returns the record; not_found.
	TokenRecord(ctx context.Context, t watchword.TenantID, jti string) (token.Record, error)
	// ConsumeAssertion spends an assertion that gets no token; seen before for this tenant and subject: token_replayed.
	ConsumeAssertion(ctx context.Context, t watchword.TenantID, id watchword.SubjectID, spent token.SingleUse) error
	// RevokeToken marks the record (already: no change, no entry); not_found.
	RevokeToken(ctx context.Context, t watchword.TenantID, jti string, e audit.Entry) error
	// DeleteExpired forgets, of the log's checkpoints of an hour or two before `before`, all but the last of each hour; and spent assertions, token records, codes, pairings and idempotency rows that ended before `before`, at most
	// limit of each, and returns how many went.
	DeleteExpired(ctx context.Context, before time.Time, limit int) (int, error)
	// DeleteSettledCommands deletes commands that ended before a time, oldest first, at most limit of them, with their versions.
	DeleteSettledCommands(ctx context.Context, before time.Time, limit int) (int, error)

	// Policies returns all, by name.
	Policies(ctx context.Context, t watchword.TenantID) ([]policy.Stored, error)
	// PutPolicy adds or replaces. ifVersion -1 means any, 0 that it must not exist yet, else today's version;
	// otherwise precondition_failed. The same source again: no change, no entry, today's version.
	PutPolicy(ctx context.Context, by audit.Actor, name string, source []byte, ifVersion int64, now time.Time, entry audit.EntryOf[policy.Stored]) (p policy.Stored, version int64, err error)
	// DeletePolicy removes; not_found; ifVersion as above (0 is never right). A later policy of the name has a larger
	// version.
	DeletePolicy(ctx context.Context, by audit.Actor, name string, ifVersion int64, now time.Time, entry audit.EntryOf[policy.Stored]) (version int64, err error)

	// PolicyVersion returns a number that grows with each change of the tenant's policies, and when an issuer key is revoked.
	PolicyVersion(ctx context.Context, t watchword.TenantID) (int64, error)
	// CheckToken: token_revoked for one that was, issuer_revoked for one that such a key signed; nil also for what is not recorded.
	CheckToken(ctx context.Context, t watchword.TenantID, jti string, signedBy watchword.KeyID) error

	// AddCommand gives r the device's next number (r.Seq is ignored; from 1, without gaps, growing over incarnations) and
	// stores it as queued, with the device's incarnation. Device not found: not_found; not a device: not_found; revoked: subject_revoked. new or suspended ones may be
	// ordered to. More than MaxQueued of the device not final, or more of r.By or in all than b allows (command.Queue): busy; a replay is not asked for room. What it costs does not grow with how many of
	// the orderer are not final. The same caller's idempotency key with the same hash: the
	// row of the first time, replay true; with another hash: conflict.
	AddCommand(ctx context.Context, by audit.Actor, r command.Row, idem command.Idempotency, b command.Bounds, entry audit.EntryOf[command.Row]) (row command.Row, replay bool, err error)
	// Command returns one; not_found.
	Command(ctx context.Context, t watchword.TenantID, id watchword.CommandID) (command.Row, error)
	// Commands lists newest first, with ids below `before` (empty: from the newest).
	Commands(ctx context.Context, t watchword.TenantID, f command.Filter, before watchword.CommandID, limit int) ([]command.Row, error)
	// Pending returns up to limit commands of the device that are queued or sent, with Seq above after and Expires after now, in order of Seq.
	Pending(ctx context.Context, t watchword.TenantID, device watchword.SubjectID, after int64, now time.Time, limit int) ([]command.Row, error)
	// Handovers returns the versions of a command that were handed over, oldest first.
	Handovers(ctx context.Context, t watchword.TenantID, id watchword.CommandID) ([]command.Handover, error)
	// AddHandover keeps h with its entry (unless its Hash is kept already: then neither) and moves queued to sent. It returns the number of the entry (0: it has none yet). Not queued or sent, or expired: conflict. Over
	// MaxHandovers: busy. A device not active: subject_suspended and so on.
	AddHandover(ctx context.Context, t watchword.TenantID, id watchword.CommandID, h command.Handover, entry audit.EntryOf[command.Row]) (row command.Row, number int64, err error)
	// MarkDelivered moves to delivered those of the device's sent commands that have a's epoch and whose Seq is up to a.UpTo or in a.Each, and returns those that moved. A device not active: none.
	MarkDelivered(ctx context.Context, t watchword.TenantID, device watchword.SubjectID, a command.Acknowledgement, now time.Time) ([]command.Row, error)
	// MarkUndeliverable moves a command that is queued or sent to undeliverable, with u's reason, and its time of sending to u's. Any other state: no change, changed false, no entry; not_found.
	MarkUndeliverable(ctx context.Context, u command.UndeliverableUpdate, entry audit.EntryOf[command.Row]) (row command.Row, changed bool, err error)
	// ApplyReceipt applies a receipt: the command must be this device's, of its incarnation, with this epoch and seq, and Hash one
	// of its hand-overs; otherwise receipt_invalid. accepted moves sent, delivered and unknown to accepted (unknown only while not expired);
	// undeliverable as unknown; done, refused, failed, interrupted, conflict settle sent, delivered, accepted, unknown, undeliverable, and expired ones. The very same
	// status again: no change, changed false, no entry. A settled command with another final status: conflict.
	ApplyReceipt(ctx context.Context, by audit.Actor, s command.ReceiptUpdate, entry audit.EntryOf[command.Row]) (row command.Row, changed bool, err error)
	// CancelCommand moves queued to cancelled; otherwise conflict.
	CancelCommand(ctx context.Context, by audit.Actor, id watchword.CommandID, now time.Time, entry audit.EntryOf[command.Row]) (command.Row, error)
	// ExpireCommands moves up to limit commands whose end is not after now, or is after command.LatestEnd: queued and sent to expired, delivered and
	// accepted to unknown, one entry from entry each, and returns them.
	ExpireCommands(ctx context.Context, now time.Time, limit int, entry audit.EntryOf[command.Row]) ([]command.Row, error)
	// NextExpiry returns the earliest end of a command that is not final; zero if there is none.
	NextExpiry(ctx context.Context) (time.Time, error)

	// SetFunctions replaces what the device announced. b is what that was decided on.
	SetFunctions(ctx context.Context, t watchword.TenantID, b watchword.AuthorityVersions, device watchword.SubjectID, fs []twin.Function, now time.Time) error
	// Functions returns them by name; empty if none were announced.
	Functions(ctx context.Context, t watchword.TenantID, device watchword.SubjectID) ([]twin.Function, error)
	// Twin returns the device's twin; a zero one for a device that has none; not_found for no such device.
	Twin(ctx context.Context, t watchword.TenantID, device watchword.SubjectID) (twin.Twin, error)
	// ReportedStates returns up to limit twins that have a state, with Device above after, by device: only State, StateAt
	// and the reporter.
	ReportedStates(ctx context.Context, t watchword.TenantID, after watchword.SubjectID, limit int) ([]twin.Twin, error)
	// ReportState replaces the reported state; it is b's subject that reports it, in its incarnation of now.
	ReportState(ctx context.Context, t watchword.TenantID, b watchword.AuthorityVersions, device watchword.SubjectID, state []byte, now time.Time) error
	// SetConfig replaces the wanted configuration; ifVersion -1 any, 0 never set, else today's; else precondition_failed.
	SetConfig(ctx context.Context, t watchword.TenantID, device watchword.SubjectID, config []byte, ifVersion int64, now time.Time, e audit.Entry) (twin.Twin, error)
	AuditLog
	MQTTStore

	// Ping returns nil if a write transaction can commit.
	Ping(ctx context.Context) error
	Close() error
}
