package command

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/server/audit"
)

// evidenceType is what an evidence file says that it is.
const evidenceType = "watchword-evidence/v1"

// MaxEvidence is the bound of an evidence file.
const MaxEvidence = 8 << 20

// Evidence is all that shows, to anyone who has the root's public key alone, that a
// command was ordered, handed over and answered: with the entries of the log that
// say so, each with its proof.
type Evidence struct {
	Type       string              `json:"type"`
	Command    watchword.CommandID `json:"command"`
	Bundles    []string            `json:"bundles"`    // trust bundles, in order of their versions
	Versions   []EvidenceVersion   `json:"versions"`   // what was handed over
	Receipt    string              `json:"receipt"`    // compact JWS
	ArgsSalt   []byte              `json:"args_salt"`  // opens the order's args_hash
	Ordered    string              `json:"ordered"`    // proof of the entry command.order
	Settled    string              `json:"settled"`    // proof of the entry of the receipt
	Enrollment string              `json:"enrollment"` // proof of the entry that brought the key of the receipt
	Orderer    string              `json:"orderer,omitempty"`
}

// EvidenceVersion is a version of the command that was handed over.
type EvidenceVersion struct {
	JWS   string `json:"jws"`
	Proof string `json:"proof"` // of the entry command.handover
}

// LogReader is what evidence needs of the log.
type LogReader interface {
	Find(ctx context.Context, q audit.Query, p audit.Page) ([]audit.Record, error)
}

// Prover proves entries.
type Prover interface {
	// WaitCosigned returns a checkpoint that has the entry and that enough witnesses signed.
	WaitCosigned(ctx context.Context, seq int64) (c ledger.Checkpoint, note []byte, err error)
	ProveAt(ctx context.Context, c ledger.Checkpoint, note []byte, seq int64) (ledger.Proof, error)
}

// Evidence gathers what there is of a settled command. bundles are the trust bundles
// from the one that stood when it was ordered to the one of now. Codes: conflict
// before there is a receipt, not_found where an entry is not kept any more.
func (svc *Service) Evidence(ctx context.Context, r Row, log LogReader, prover Prover, bundles []string) (e Evidence, err error) {
	if r.Receipt == nil || !r.State.Final() {
		return e, watchword.Refuse(watchword.Conflict, "command %q is %s: the device has not sent its last receipt yet", r.ID, r.State)
	}
	e = Evidence{Type: evidenceType, Command: r.ID, Bundles: bundles, ArgsSalt: svc.argsSalt(r.ID)}
	if e.Receipt, err = svc.Receipt(r); err != nil {
		return e, err
	}
	w := entryProver{ctx: ctx, log: log, prover: prover}
	about, err := w.entries(audit.Query{Object: string(r.ID)})
	if err != nil {
		return e, err
	}
	// All under one checkpoint: proofs of two might be of two logs.
	last := int64(0)
	for _, x := range about {
		last = max(last, x.Seq)
	}
	if w.c, w.note, err = prover.WaitCosigned(ctx, last); err != nil {
		return e, err
	}
	handovers, err := svc.store.Handovers(ctx, r.Tenant, r.ID)
	if err != nil {
		return e, err
	}
	for _, h := range handovers {
		jws, err := svc.sealer.Open(handoverContext(r.ID), h.JWS)
		if err != nil {
			return e, err
		}
		v := EvidenceVersion{JWS: string(jws)}
		if v.Proof, err = w.prove(about, "the delivery", func(x audit.Entry) bool { return x.Kind == audit.CommandHandOver && x.Data["ch"] == h.Hash }); err != nil {
			return e, err
		}
		e.Versions = append(e.Versions, v)
	}
	if e.Ordered, err = w.prove(about, "the order", func(x audit.Entry) bool { return x.Kind == audit.CommandOrder }); err != nil {
		return e, err
	}
	if e.Settled, err = w.prove(about, "the receipt", func(x audit.Entry) bool { return isReceipt(x) && x.Data["st"] == string(r.Status) }); err != nil {
		return e, err
	}
	if e.Enrollment, err = w.keyOf(r.Device, r.ReceiptKey); err != nil || r.Order == "" {
		return e, err
	}
	e.Orderer, err = w.keyOf(r.By, r.ByKey)
	return e, err
}

func isReceipt(e audit.Entry) bool {
	return e.Kind == audit.CommandSettle || e.Kind == audit.CommandConflict
}

// entryProver finds entries and proves them.
type entryProver struct {
	ctx    context.Context
	log    LogReader
	prover Prover
	c      ledger.Checkpoint
	note   []byte
}

func (w entryProver) entries(q audit.Query) (out []audit.Entry, err error) {
	const most = 1000 // of one command: MaxHandovers, and a few
	rs, err := w.log.Find(w.ctx, q, audit.Page{Limit: most})
	if err != nil {
		return nil, err
	}
	for _, r := range rs {
		e, err := r.Entry()
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// prove proves the last of some entries that is one.
func (w entryProver) prove(es []audit.Entry, what string, is func(audit.Entry) bool) (string, error) {
	for _, e := range slices.Backward(es) {
		if is(e) {
			p, err := w.prover.ProveAt(w.ctx, w.c, w.note, e.Seq)
			return string(p.Marshal()), err
		}
	}
	return "", watchword.Refuse(watchword.NotFound, "the log entry of %s was pruned, or was written by a version that logged none", what)
}

// keyOf proves the entry with which a subject got its signing key.
func (w entryProver) keyOf(id watchword.SubjectID, key watchword.KeyID) (string, error) {
	var all []audit.Entry
	for _, kind := range enrollingKinds {
		es, err := w.entries(audit.Query{Object: string(id), Kind: kind})
		if err != nil {
			return "", err
		}
		all = append(all, es...)
	}
	return w.prove(all, "the enrollment of key "+string(key), func(e audit.Entry) bool { return e.Data["sign"] == string(key) && e.Data["sign_jwk"] != "" })
}

// enrollingKinds are the entries that bring a signing key.
var enrollingKinds = []string{
	audit.DeviceEnroll, audit.DeviceRekey, audit.KindFor(watchword.Operator, audit.DeviceCreate),
	audit.KindFor(watchword.Operator, audit.DeviceEnroll), audit.KindFor(watchword.Operator, audit.DeviceRekey),
	audit.KindFor(watchword.Service, audit.DeviceEnroll), audit.KindFor(watchword.Service, audit.DeviceRekey),
}

// Marshal writes it as a file.
func (e Evidence) Marshal() ([]byte, error) {
	b, err := json.MarshalIndent(e, "", "  ")
	return append(b, '\n'), err
}
