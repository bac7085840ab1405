package command

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/audit/ledger"
)

// evidenceType is what an evidence file says that it is.
const evidenceType = "watchword-evidence/v1"

// MaxEvidence is the bound of an evidence file.
const MaxEvidence = 8 << 20

// Evidence is all that shows, to whoever has the root's public key alone, that a
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

// EvidenceVersion is a version of the command that left the house.
type EvidenceVersion struct {
	JWS   string `json:"jws"`
	Proof string `json:"proof"` // of the entry command.handover
}

// Book is what evidence needs of the log.
type Book interface {
	Find(ctx context.Context, q audit.Query, p audit.Page) ([]audit.Record, error)
}

// Prover proves entries.
type Prover interface {
	// CoverSure returns a checkpoint that has the entry and that enough witnesses signed.
	CoverSure(ctx context.Context, seq int64) (c ledger.Checkpoint, note []byte, err error)
	ProveIn(ctx context.Context, c ledger.Checkpoint, note []byte, seq int64) (ledger.Proof, error)
}

// Evidence gathers what there is of a settled command. bundles are the trust bundles
// from the one that stood when it was ordered to the one of now. Codes: conflict
// before there is a receipt, not_found where an entry is not kept any more.
func (d *Desk) Evidence(ctx context.Context, r Row, book Book, prover Prover, bundles []string) (e Evidence, err error) {
	if r.Receipt == nil || !r.State.Final() {
		return e, watchword.Refuse(watchword.Conflict, "command %q is %s: there is no last receipt yet", r.ID, r.State)
	}
	e = Evidence{Type: evidenceType, Command: r.ID, Bundles: bundles, ArgsSalt: d.argsSalt(r.ID)}
	if e.Receipt, err = d.Receipt(r); err != nil {
		return e, err
	}
	w := witnessBox{ctx: ctx, book: book, prover: prover}
	about, err := w.entries(audit.Query{Object: string(r.ID)})
	if err != nil {
		return e, err
	}
	// All under one checkpoint: proofs of two might be of two logs.
	last := int64(0)
	for _, x := range about {
		last = max(last, x.Seq)
	}
	if w.c, w.note, err = prover.CoverSure(ctx, last); err != nil {
		return e, err
	}
	hs, err := d.store.Handovers(ctx, r.Tenant, r.ID)
	if err != nil {
		return e, err
	}
	for _, h := range hs {
		jws, err := d.safe.Open(handoverAtRest(r.ID), h.JWS)
		if err != nil {
			return e, err
		}
		v := EvidenceVersion{JWS: string(jws)}
		if v.Proof, err = w.prove(about, "the hand-over", func(x audit.Entry) bool { return x.Kind == audit.CommandHandOver && x.Data["ch"] == h.Hash }); err != nil {
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

// witnessBox finds entries and proves them.
type witnessBox struct {
	ctx    context.Context
	book   Book
	prover Prover
	c      ledger.Checkpoint
	note   []byte
}

func (w witnessBox) entries(q audit.Query) (out []audit.Entry, err error) {
	const most = 1000 // of one command: MaxHandovers, and a few
	rs, err := w.book.Find(w.ctx, q, audit.Page{Limit: most})
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
func (w witnessBox) prove(es []audit.Entry, what string, is func(audit.Entry) bool) (string, error) {
	for _, e := range slices.Backward(es) {
		if is(e) {
			p, err := w.prover.ProveIn(w.ctx, w.c, w.note, e.Seq)
			return string(p.Marshal()), err
		}
	}
	return "", watchword.Refuse(watchword.NotFound, "the log's entry of %s is not kept any more, or is of a version that wrote none", what)
}

// keyOf proves the entry with which a subject got its signing key.
func (w witnessBox) keyOf(id watchword.SubjectID, key watchword.KeyID) (string, error) {
	var all []audit.Entry
	for _, kind := range keyKinds {
		es, err := w.entries(audit.Query{Object: string(id), Kind: kind})
		if err != nil {
			return "", err
		}
		all = append(all, es...)
	}
	return w.prove(all, "the enrollment of key "+string(key), func(e audit.Entry) bool { return e.Data["sign"] == string(key) && e.Data["sign_jwk"] != "" })
}

// keyKinds are the entries that bring a signing key.
var keyKinds = []string{audit.DeviceEnroll, audit.DeviceRekey, audit.OperatorCreate}

// Marshal writes it as a file.
func (e Evidence) Marshal() ([]byte, error) {
	b, err := json.MarshalIndent(e, "", "  ")
	return append(b, '\n'), err
}
