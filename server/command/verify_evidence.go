package command

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/token"
)

// VerifiedEvidence is what an evidence file shows.
type VerifiedEvidence struct {
	Issuer     string
	Command    token.Command // as the device obeyed it
	Status     watchword.ReceiptStatus
	Result     json.RawMessage
	ReceiptKey watchword.KeyID // that signed the receipt
	OrderKey   watchword.KeyID // that signed the order; empty: the orderer is the server's statement
	Ordered    audit.Entry
	HandedOver audit.Entry
	Settled    audit.Entry
	Enrolled   audit.Entry

	Cosignatures []ledger.Cosignature // under the checkpoint of the receipt's entry
}

// VerifyEvidence checks an evidence file under the pin of a root alone: the SHA-256
// of its SubjectPublicKeyInfo, base64url. Code: log_invalid, with what does not fit;
// too_large.
func VerifyEvidence(raw []byte, pin string) (VerifiedEvidence, error) {
	var e Evidence
	if len(raw) > MaxEvidence {
		return VerifiedEvidence{}, watchword.Refuse(watchword.TooLarge, "an evidence file must have at most 8 MiB")
	}
	if err := jsonv2.Unmarshal(raw, &e, jsonv2.RejectUnknownMembers(true)); err != nil || e.Type != evidenceType {
		return VerifiedEvidence{}, watchword.Wrap(err, watchword.LogInvalid, "the file must be an evidence file of type %s", evidenceType)
	}
	t := &evidenceCheck{evidence: e, command: token.KeySet{}}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"the trust bundles are not valid", func() error { return t.bundles(pin) }},
		{"the log entry of the order is not valid", t.ordered},
		{"the log entry of the enrollment is not valid", t.enrolled},
		{"the receipt is not valid", t.receipt},
		{"the delivered command is not valid", t.handedOver},
		{"the signed order is not valid", t.signed},
	} {
		if err := step.do(); err != nil {
			return t.result, watchword.Wrap(err, watchword.LogInvalid, "%s: %s", step.what, err)
		}
	}
	return t.result, nil
}

// evidenceCheck is a check under way.
type evidenceCheck struct {
	evidence      Evidence
	trust         []token.Trust
	logs          []ledger.Key
	note          []byte // the checkpoint that all proofs are under
	command       token.KeySet
	device        *jose.PublicKey
	parsedReceipt token.Receipt
	result        VerifiedEvidence
}

func evidenceInvalid(format string, a ...any) error {
	return watchword.Refuse(watchword.LogInvalid, format, a...)
}

// bundles checks each bundle by the pin, or by the one before it.
func (ec *evidenceCheck) bundles(pin string) error {
	for _, raw := range ec.evidence.Bundles {
		b, err := token.VerifyTrust(raw, pin, time.Time{})
		if err != nil && len(ec.trust) > 0 {
			b, err = token.VerifyNextTrust(raw, ec.trust[len(ec.trust)-1], time.Time{})
		}
		if err != nil {
			return err
		}
		if len(ec.trust) > 0 && !b.HasIssuer(ec.trust[0].Issuer) {
			return evidenceInvalid("all trust bundles must be of one issuer, or name that of the first one")
		}
		ec.trust = append(ec.trust, b)
		keys, err := ledger.VerifierKeys(b.Origin(), b.Log, b.Witnesses)
		if err != nil {
			return err
		}
		ec.logs = append(ec.logs, keys...)
		for _, k := range b.Command {
			ec.command[k.ID()] = k
		}
	}
	if len(ec.trust) == 0 {
		return evidenceInvalid("at least one trust bundle is required")
	}
	ec.result.Issuer = ec.trust[0].Issuer
	return nil
}

// issuer returns the issuer of the server that a token names, and the last one if it names none.
func (ec *evidenceCheck) issuer(raw string) string {
	return token.ClaimedIssuer(raw, ec.trust[len(ec.trust)-1].IssuerNames())
}

// entry checks the proof of an entry of one of some kinds about an object.
func (ec *evidenceCheck) entry(proof, object string, kinds ...string) (e audit.Entry, o ledger.VerifiedCheckpoint, err error) {
	p, err := ledger.ParseProof([]byte(proof))
	if err != nil {
		return e, o, err
	}
	if o, err = p.Verify(ec.logs...); err != nil {
		return e, o, err
	}
	if ec.note == nil {
		ec.note = p.Checkpoint
	}
	if !bytes.Equal(ec.note, p.Checkpoint) {
		return e, o, evidenceInvalid("all proofs must be under one checkpoint: they may be of two logs")
	}
	if e, err = audit.Parse(p.Index+1, p.Body); err != nil {
		return e, o, err
	}
	if !slices.Contains(kinds, e.Kind) || e.Object != object || e.Outcome != audit.Done {
		return e, o, evidenceInvalid("entry %d is %s of %s, and must be of %s", e.Seq, e.Kind, e.Object, object)
	}
	return e, o, nil
}

// cosignatures returns the cosignatures of the witnesses that the last bundle names, if
// they are as many as it wants.
func (ec *evidenceCheck) cosignatures(o ledger.VerifiedCheckpoint) (out []ledger.Cosignature, err error) {
	last := ec.trust[len(ec.trust)-1]
	for _, c := range o.Cosignatures {
		if slices.Contains(last.Witnesses, c.Witness.String()) {
			out = append(out, c)
		}
	}
	if int64(len(out)) < last.Quorum {
		return nil, evidenceInvalid("the log has the signatures of %d witnesses, and the trust bundle requires %d", len(out), last.Quorum)
	}
	return out, nil
}

func (ec *evidenceCheck) ordered() (err error) {
	ec.result.Ordered, _, err = ec.entry(ec.evidence.Ordered, string(ec.evidence.Command), audit.CommandOrder)
	return err
}

func (ec *evidenceCheck) enrolled() (err error) {
	device := ec.result.Ordered.Data["device"]
	if ec.result.Enrolled, _, err = ec.entry(ec.evidence.Enrollment, device, enrollingKinds...); err != nil {
		return err
	}
	if ec.device, err = jose.ParseJWK([]byte(ec.result.Enrolled.Data["sign_jwk"]), jose.ForSigning); err != nil {
		return err
	}
	if string(ec.device.ID()) != ec.result.Enrolled.Data["sign"] {
		return evidenceInvalid("sign of entry %d must be the thumbprint of its sign_jwk", ec.result.Enrolled.Seq)
	}
	return nil
}

func (ec *evidenceCheck) receipt() (err error) {
	device := watchword.SubjectID(ec.result.Ordered.Data["device"])
	var o ledger.VerifiedCheckpoint
	if ec.result.Settled, o, err = ec.entry(ec.evidence.Settled, string(ec.evidence.Command), audit.CommandSettle, audit.CommandConflict); err != nil {
		return err
	}
	if ec.result.Cosignatures, err = ec.cosignatures(o); err != nil {
		return err
	}
	if ec.parsedReceipt, ec.result.ReceiptKey, err = token.VerifyReceipt(ec.evidence.Receipt, token.NewKeySet(ec.device), device, ec.issuer(ec.evidence.Receipt)); err != nil {
		return err
	}
	d := ec.result.Settled.Data
	switch {
	case ec.parsedReceipt.Command != ec.evidence.Command:
		return evidenceInvalid("the receipt is of %s", ec.parsedReceipt.Command)
	case d["receipt"] != jose.HashString(ec.evidence.Receipt):
		return evidenceInvalid("entry %d is of another receipt", ec.result.Settled.Seq)
	case d["st"] != string(ec.parsedReceipt.Status), d["ch"] != ec.parsedReceipt.Hash, ec.result.Settled.Actor != device, ec.result.Settled.Key != ec.result.ReceiptKey:
		return evidenceInvalid("entry %d does not match the receipt", ec.result.Settled.Seq)
	case ec.result.Settled.Seq < ec.result.Enrolled.Seq:
		return evidenceInvalid("the key was not enrolled yet")
	}
	ec.result.Status, ec.result.Result = ec.parsedReceipt.Status, ec.parsedReceipt.Result
	return nil
}

// handedOver finds the version that the receipt answers, and checks it.
func (ec *evidenceCheck) handedOver() error {
	answered := false
	for _, v := range ec.evidence.Versions {
		e, _, err := ec.entry(v.Proof, string(ec.evidence.Command), audit.CommandHandOver)
		if err != nil {
			return err
		}
		if e.Data["ch"] != jose.HashString(v.JWS) {
			return evidenceInvalid("entry %d is of another version", e.Seq)
		}
		if e.Data["ch"] != ec.parsedReceipt.Hash {
			continue
		}
		ec.result.HandedOver, answered = e, true
		if err := ec.version(v); err != nil {
			return err
		}
	}
	if !answered {
		return evidenceInvalid("the evidence must contain the command version that the receipt answers")
	}
	return nil
}

// version checks the version that the receipt answers.
func (ec *evidenceCheck) version(v EvidenceVersion) error {
	device := watchword.SubjectID(ec.result.Ordered.Data["device"])
	c, err := token.VerifyCommand(v.JWS, ec.command, ec.issuer(v.JWS), device, ec.result.HandedOver.At, "")
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(ec.trust, func(b token.Trust) bool { return ec.namesCommandKey(b, v.JWS) }) {
		return evidenceInvalid("no trust bundle of that time contains the command key")
	}
	o := ec.result.Ordered
	hash := jose.Hash(append(bytes.Clone(ec.evidence.ArgsSalt), c.Args...))
	switch {
	case c.ID != ec.evidence.Command, c.Epoch != ec.parsedReceipt.Epoch, c.Seq != ec.parsedReceipt.Seq:
		return evidenceInvalid("the receipt is of another command")
	case o.Data["function"] != c.Function, o.Data["epoch"] != strconv.FormatInt(c.Epoch, 10), o.Data["seq"] != strconv.FormatInt(c.Seq, 10), o.Actor != c.By:
		return evidenceInvalid("entry %d is of another order", o.Seq)
	case o.Data["args_hash"] != hash:
		return evidenceInvalid("the arguments do not match the order: entry %d has another hash", o.Seq)
	case o.Seq > ec.result.HandedOver.Seq, ec.result.HandedOver.Seq > ec.result.Settled.Seq:
		return evidenceInvalid("the entries must be in the order of the log")
	}
	ec.result.Command = c
	return nil
}

// namesCommandKey reports whether b named the command key of jws when it was handed over.
func (ec *evidenceCheck) namesCommandKey(b token.Trust, jws string) bool {
	u, err := jose.ParseJWS(jws, watchword.MaxDocument)
	at := ec.result.HandedOver.At
	return err == nil && !at.Before(b.Issued.Add(-token.Skew)) && at.Before(b.Expires) &&
		slices.ContainsFunc(b.Command, func(k *jose.PublicKey) bool { return string(k.ID()) == u.Kid })
}

// signed checks the order that rode along, if one did.
func (ec *evidenceCheck) signed() error {
	c := ec.result.Command
	if c.Order == "" {
		return nil
	}
	e, _, err := ec.entry(ec.evidence.Orderer, string(c.By), enrollingKinds...)
	if err != nil {
		return err
	}
	key, err := jose.ParseJWK([]byte(e.Data["sign_jwk"]), jose.ForSigning)
	if err != nil {
		return err
	}
	o, err := token.VerifyOrder(c.Order, token.NewKeySet(key), func(server string) bool {
		return slices.ContainsFunc(ec.trust, func(b token.Trust) bool { return b.HasIssuer(server) })
	}, c.Device, ec.result.Ordered.At)
	if err != nil {
		return err
	}
	ec.result.OrderKey = key.ID()
	return o.Covers(c.Function, c.Args, c.By, c.Expires)
}
