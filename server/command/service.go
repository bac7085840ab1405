package command

import (
	"context"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/server/twin"
	"github.com/watchword-iot/watchword/token"
)

// Store is what the service needs from the store.
type Store interface {
	// AddCommand stores a command, its idempotency key and its entry, or returns the command of an
	// earlier request with the same key (replay). Codes: busy (MaxQueued, Bounds, or authority that
	// changed), conflict (the key with another request).
	AddCommand(ctx context.Context, by audit.Actor, r Row, idem Idempotency, b Bounds, entry audit.EntryOf[Row]) (row Row, replay bool, err error)
	Command(ctx context.Context, t watchword.TenantID, id watchword.CommandID) (Row, error)
	Commands(ctx context.Context, t watchword.TenantID, f Filter, before watchword.CommandID, limit int) ([]Row, error)
	Pending(ctx context.Context, t watchword.TenantID, device watchword.SubjectID, after int64, now time.Time, limit int) ([]Row, error)
	Handovers(ctx context.Context, t watchword.TenantID, id watchword.CommandID) ([]Handover, error)
	AddHandover(ctx context.Context, t watchword.TenantID, id watchword.CommandID, h Handover, entry audit.EntryOf[Row]) (row Row, number int64, err error)
	// MarkDelivered moves to delivered what the device acknowledged, and returns the rows that it moved.
	MarkDelivered(ctx context.Context, t watchword.TenantID, device watchword.SubjectID, a Acknowledgement, now time.Time) ([]Row, error)
	// MarkUndeliverable ends a command as undeliverable, unless it is in a final state already (changed is false).
	MarkUndeliverable(ctx context.Context, u UndeliverableUpdate, entry audit.EntryOf[Row]) (row Row, changed bool, err error)
	ApplyReceipt(ctx context.Context, by audit.Actor, s ReceiptUpdate, entry audit.EntryOf[Row]) (row Row, changed bool, err error)
	CancelCommand(ctx context.Context, by audit.Actor, id watchword.CommandID, now time.Time, entry audit.EntryOf[Row]) (Row, error)
	ExpireCommands(ctx context.Context, now time.Time, limit int, entry audit.EntryOf[Row]) ([]Row, error)
	NextExpiry(ctx context.Context) (time.Time, error)
	// DeleteSettledCommands deletes at most limit commands that ended before a time, oldest first, with what was handed over,
	// and returns how many.
	DeleteSettledCommands(ctx context.Context, before time.Time, limit int) (int, error)
	Functions(ctx context.Context, t watchword.TenantID, device watchword.SubjectID) ([]twin.Function, error)
}

// Directory returns subjects as they are now.
type Directory interface {
	Principal(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (*session.Principal, error)
	Target(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (policy.Target, error)
	// Refresh makes the next answer about a subject at least as new as the store is now.
	Refresh(ctx context.Context, t watchword.TenantID, id watchword.SubjectID, jti string, signedBy watchword.KeyID) error
}

// Sealer encrypts stored data.
type Sealer interface {
	// DeriveSecret is bytes for a context that cannot be computed without the data key.
	DeriveSecret(context string) [32]byte
	Seal(context string, plaintext []byte) ([]byte, error)
	Open(context string, sealed []byte) ([]byte, error)
}

// Keys is the command keys as they are now.
type Keys interface {
	// CommandSigner signs what is handed over now.
	CommandSigner() *jose.Signer
	// CommandKeyValid reports whether the key of that id is valid.
	CommandKeyValid(id watchword.KeyID) bool
	// CheckNotSuperseded returns an error if another server has this one's devices. Code: superseded.
	CheckNotSuperseded() error
	// CheckEpoch returns an error if a device that states this epoch has another server, or if all have. Code: superseded.
	CheckEpoch(epoch int64) error
}

// Log is what a service needs of the log, for devices that execute only logged commands.
type Log interface {
	// LatestCosigned returns the last checkpoint that enough witnesses signed, if it has the entry.
	LatestCosigned(seq int64) (c ledger.Checkpoint, note []byte, ok bool)
	ProveAt(ctx context.Context, c ledger.Checkpoint, note []byte, seq int64) (ledger.Proof, error)
	ConsistencyProof(ctx context.Context, c ledger.Checkpoint, size int64) ([]ledger.Hash, error)
}

// Options is what a service needs to know beside its store.
type Options struct {
	Issuers watchword.IssuerSource // the server's issuers as they are now
	Epoch   int64
	TTL     time.Duration // of a command that asks for none; 0 means 120 s
	Log     Log
	Retain  time.Duration // how long a command is stored after its end; 0: forever
	MaxArgs int           // bytes of a command's arguments; 0 means 8 KiB, the most
	Bounds  Bounds        // of unfinished commands
	Now     func() time.Time
	// Observe is called for each command that entered a state, also by a receipt; nil: it is not called.
	Observe func(Row)
}

// Service takes orders, hands commands over and takes receipts. It is safe for
// concurrent use.
type Service struct {
	store     Store
	directory Directory
	sealer    Sealer
	keys      Keys
	opts      Options

	schemas schemas

	mu                 sync.Mutex
	awaitingCheckpoint map[*Delivery]struct{}    // deliveries that wait for a checkpoint
	deliveries         map[deviceRef][]*Delivery // the connections of a device; its commands go to the last
	waiters            map[commandRef]*waiters   // waiting requests by command
	nextExpiry         time.Time                 // the end that Run waits for, zero for none
	wakeExpiry         chan struct{}             // signals Run that an expiry may be earlier than the one it knows
	clockBack          chan struct{}             // signals Run that the clock went back
}

// New returns a service over st, which signs with sign. Run it, so that commands end on time.
func New(st Store, dir Directory, sealer Sealer, sign Keys, o Options) *Service {
	if o.TTL == 0 {
		o.TTL = 120 * time.Second
	}
	if o.MaxArgs == 0 {
		o.MaxArgs = watchword.MaxArgs
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Service{
		store: st, directory: dir, sealer: sealer, keys: sign, opts: o, schemas: newSchemas(),
		awaitingCheckpoint: map[*Delivery]struct{}{}, deliveries: map[deviceRef][]*Delivery{}, waiters: map[commandRef]*waiters{},
		wakeExpiry: make(chan struct{}, 1), clockBack: make(chan struct{}, 1),
	}
}

// The contexts under which the parts of a command are sealed at rest.
func argsContext(id watchword.CommandID) string     { return "args/" + string(id) }
func handoverContext(id watchword.CommandID) string { return "handover/" + string(id) }
func receiptContext(id watchword.CommandID) string  { return "receipt/" + string(id) }

// Args decrypts a command's arguments, for callers that may see them.
func (svc *Service) Args(r Row) ([]byte, error) { return svc.sealer.Open(argsContext(r.ID), r.Args) }

// ArgsCommitment opens what the log's entry of the order says of its arguments: args_hash
// is the SHA-256 over salt and args.
func (svc *Service) ArgsCommitment(r Row) (args, salt []byte, err error) {
	args, err = svc.Args(r)
	return args, svc.argsSalt(r.ID), err
}

// argsSalt is the salt of args_hash, so that readers of the log cannot guess the arguments.
func (svc *Service) argsSalt(id watchword.CommandID) []byte {
	mask := svc.sealer.DeriveSecret("salt/" + string(id))
	return mask[:16]
}

// Receipt opens a command's last receipt: a compact JWS, or "" if there is none.
func (svc *Service) Receipt(r Row) (string, error) {
	if r.Receipt == nil {
		return "", nil
	}
	b, err := svc.sealer.Open(receiptContext(r.ID), r.Receipt)
	return string(b), err
}

// Command returns one command. Code: not_found.
func (svc *Service) Command(ctx context.Context, t watchword.TenantID, id watchword.CommandID) (Row, error) {
	return svc.store.Command(ctx, t, id)
}

// List returns up to limit commands, newest first, with ids below before.
func (svc *Service) List(ctx context.Context, t watchword.TenantID, f Filter, before watchword.CommandID, limit int) ([]Row, error) {
	return svc.store.Commands(ctx, t, f, before, limit)
}

// issuer returns the issuer identifier of a tenant that its devices know.
func (svc *Service) issuer(t watchword.TenantID) string {
	return svc.opts.Issuers().Known(t, svc.opts.Now())
}

// Epoch is that of the commands and configurations that the service signs.
func (svc *Service) Epoch() int64 { return svc.opts.Epoch }

// CheckEpoch returns an error if no commands may go to a device that states this epoch, which is that of its trust bundle or
// of its last command; 0: none. Code: superseded.
func (svc *Service) CheckEpoch(epoch int64) error { return svc.keys.CheckEpoch(epoch) }

// SignConfig signs a device's wanted configuration with the command key: what a
// device shall be is as much an order as what it shall do.
func (svc *Service) SignConfig(t watchword.TenantID, device watchword.SubjectID, version int64, document []byte) (string, error) {
	return token.SignConfig(svc.keys.CommandSigner(), token.Config{
		Issuer: svc.issuer(t), Device: device, Epoch: svc.opts.Epoch, Version: version, Document: document, Issued: svc.opts.Now(),
	})
}
