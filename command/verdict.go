package command

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// Verdict is what an evidence file shows.
type Verdict struct {
	Issuer   string
	Command  token.Command // as the device obeyed it
	Status   watchword.ReceiptStatus
	Result   json.RawMessage
	Key      watchword.KeyID // that signed the receipt
	Signed   watchword.KeyID // that signed the order; empty: who ordered is the server's word
	Ordered  audit.Entry
	Handed   audit.Entry
	Settled  audit.Entry
	Enrolled audit.Entry

	Cosignatures []ledger.Cosignature // under the checkpoint of the receipt's entry
}

// VerifyEvidence checks an evidence file under the pin of a root alone: the SHA-256
// of its SubjectPublicKeyInfo, base64url. Code: log_invalid, with what does not fit;
// too_large.
func VerifyEvidence(raw []byte, pin string) (Verdict, error) {
	var e Evidence
	if len(raw) > MaxEvidence {
		return Verdict{}, watchword.Refuse(watchword.TooLarge, "an evidence file may have 8 MiB")
	}
	if err := jsonv2.Unmarshal(raw, &e, jsonv2.RejectUnknownMembers(true)); err != nil || e.Type != evidenceType {
		return Verdict{}, watchword.Because(err, watchword.LogInvalid, "this is no evidence file (%s)", evidenceType)
	}
	t := &trial{e: e, command: token.KeySet{}}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"the trust bundles do not hold", func() error { return t.bundles(pin) }},
		{"the order's entry does not hold", t.ordered},
		{"the enrollment of the device's key does not hold", t.enrolled},
		{"the receipt does not hold", t.receipt},
		{"the hand-over does not hold", t.handed},
		{"the signed order does not hold", t.signed},
	} {
		if err := step.do(); err != nil {
			return t.v, watchword.Because(err, watchword.LogInvalid, "%s: %s", step.what, err)
		}
	}
	return t.v, nil
}

// trial is a check under way.
type trial struct {
	e       Evidence
	trust   []token.Trust
	logs    []ledger.Key
	note    []byte // the checkpoint that all proofs are under
	command token.KeySet
	device  *jose.PublicKey
	r       token.Receipt
	v       Verdict
}

func no(format string, a ...any) error { return watchword.Refuse(watchword.LogInvalid, format, a...) }

// bundles checks each bundle by the pin, or by the one before it.
func (t *trial) bundles(pin string) error {
	for _, raw := range t.e.Bundles {
		b, err := token.VerifyTrust(raw, pin, time.Time{})
		if err != nil && len(t.trust) > 0 {
			b, err = token.VerifyNextTrust(raw, t.trust[len(t.trust)-1], time.Time{})
		}
		if err != nil {
			return err
		}
		if len(t.trust) > 0 && b.Issuer != t.trust[0].Issuer {
			return no("they are of two issuers")
		}
		t.trust = append(t.trust, b)
		keys, err := ledger.KeysOf(b.Issuer, b.Log, b.Witnesses)
		if err != nil {
			return err
		}
		t.logs = append(t.logs, keys...)
		for _, k := range b.Command {
			t.command[k.ID()] = k
		}
	}
	if len(t.trust) == 0 {
		return no("there is none")
	}
	t.v.Issuer = t.trust[0].Issuer
	return nil
}

// entry checks the proof of an entry of one of some kinds about an object.
func (t *trial) entry(proof, object string, kinds ...string) (e audit.Entry, o ledger.Opened, err error) {
	p, err := ledger.ParseProof([]byte(proof))
	if err != nil {
		return e, o, err
	}
	if o, err = p.Check(t.logs...); err != nil {
		return e, o, err
	}
	if t.note == nil {
		t.note = p.Checkpoint
	}
	if !bytes.Equal(t.note, p.Checkpoint) {
		return e, o, no("its proof is under another checkpoint than the others: they may be of two logs")
	}
	if e, err = audit.Parse(p.Index+1, p.Body); err != nil {
		return e, o, err
	}
	if !slices.Contains(kinds, e.Kind) || e.Object != object || e.Outcome != audit.Done {
		return e, o, no("entry %d is %s of %s, and says nothing of %s", e.Seq, e.Kind, e.Object, object)
	}
	return e, o, nil
}

// watched returns the cosignatures of the witnesses that the last bundle names, if
// they are as many as it wants.
func (t *trial) watched(o ledger.Opened) (out []ledger.Cosignature, err error) {
	last := t.trust[len(t.trust)-1]
	for _, c := range o.Cosignatures {
		if slices.Contains(last.Witnesses, c.Witness.String()) {
			out = append(out, c)
		}
	}
	if int64(len(out)) < last.Quorum {
		return nil, no("%d witnesses have signed the log, and by the trust bundle %d must have", len(out), last.Quorum)
	}
	return out, nil
}

func (t *trial) ordered() (err error) {
	t.v.Ordered, _, err = t.entry(t.e.Ordered, string(t.e.Command), audit.CommandOrder)
	return err
}

func (t *trial) enrolled() (err error) {
	device := t.v.Ordered.Data["device"]
	if t.v.Enrolled, _, err = t.entry(t.e.Enrollment, device, keyKinds...); err != nil {
		return err
	}
	if t.device, err = jose.ParseJWK([]byte(t.v.Enrolled.Data["sign_jwk"]), jose.ForSigning); err != nil {
		return err
	}
	if string(t.device.ID()) != t.v.Enrolled.Data["sign"] {
		return no("entry %d names another key than it has", t.v.Enrolled.Seq)
	}
	return nil
}

func (t *trial) receipt() (err error) {
	device := watchword.SubjectID(t.v.Ordered.Data["device"])
	var o ledger.Opened
	if t.v.Settled, o, err = t.entry(t.e.Settled, string(t.e.Command), audit.CommandSettle, audit.CommandConflict); err != nil {
		return err
	}
	if t.v.Cosignatures, err = t.watched(o); err != nil {
		return err
	}
	if t.r, t.v.Key, err = token.VerifyReceipt(t.e.Receipt, token.NewKeySet(t.device), device, t.v.Issuer); err != nil {
		return err
	}
	d := t.v.Settled.Data
	switch {
	case t.r.Command != t.e.Command:
		return no("it is the receipt of %s", t.r.Command)
	case d["receipt"] != jose.HashOf(t.e.Receipt):
		return no("entry %d is of another receipt", t.v.Settled.Seq)
	case d["st"] != string(t.r.Status), d["ch"] != t.r.Hash, t.v.Settled.Actor != device, t.v.Settled.Key != t.v.Key:
		return no("entry %d says something else than the receipt", t.v.Settled.Seq)
	case t.v.Settled.Seq < t.v.Enrolled.Seq:
		return no("the key was not enrolled yet")
	}
	t.v.Status, t.v.Result = t.r.Status, t.r.Result
	return nil
}

// handed finds the version that the receipt answers, and checks it.
func (t *trial) handed() error {
	answered := false
	for _, v := range t.e.Versions {
		e, _, err := t.entry(v.Proof, string(t.e.Command), audit.CommandHandOver)
		if err != nil {
			return err
		}
		if e.Data["ch"] != jose.HashOf(v.JWS) {
			return no("entry %d is of another version", e.Seq)
		}
		if e.Data["ch"] != t.r.Hash {
			continue
		}
		t.v.Handed, answered = e, true
		if err := t.version(v); err != nil {
			return err
		}
	}
	if !answered {
		return no("the version that the receipt answers is not there")
	}
	return nil
}

// version checks the version that the receipt answers.
func (t *trial) version(v EvidenceVersion) error {
	device := watchword.SubjectID(t.v.Ordered.Data["device"])
	c, err := token.VerifyCommand(v.JWS, t.command, t.v.Issuer, device, t.v.Handed.At, "")
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(t.trust, func(b token.Trust) bool { return t.names(b, v.JWS) }) {
		return no("no bundle of that time names its command key")
	}
	o := t.v.Ordered
	hash := jose.Hash(append(bytes.Clone(t.e.ArgsSalt), c.Args...))
	switch {
	case c.ID != t.e.Command, c.Epoch != t.r.Epoch, c.Seq != t.r.Seq:
		return no("the receipt is of another command")
	case o.Data["function"] != c.Function, o.Data["epoch"] != strconv.FormatInt(c.Epoch, 10), o.Data["seq"] != strconv.FormatInt(c.Seq, 10), o.Actor != c.By:
		return no("entry %d is of another order", o.Seq)
	case o.Data["args_hash"] != hash:
		return no("the arguments are not those that were ordered: entry %d has another hash", o.Seq)
	case o.Seq > t.v.Handed.Seq, t.v.Handed.Seq > t.v.Settled.Seq:
		return no("its entries are not in order")
	}
	t.v.Command = c
	return nil
}

// names reports whether b named the command key of jws when it was handed over.
func (t *trial) names(b token.Trust, jws string) bool {
	u, err := jose.ParseJWS(jws, watchword.MaxDocument)
	at := t.v.Handed.At
	return err == nil && !at.Before(b.Issued.Add(-token.Skew)) && at.Before(b.Expires) &&
		slices.ContainsFunc(b.Command, func(k *jose.PublicKey) bool { return string(k.ID()) == u.Kid })
}

// signed checks the order that rode along, if one did.
func (t *trial) signed() error {
	c := t.v.Command
	if c.Order == "" {
		return nil
	}
	e, _, err := t.entry(t.e.Orderer, string(c.By), keyKinds...)
	if err != nil {
		return err
	}
	key, err := jose.ParseJWK([]byte(e.Data["sign_jwk"]), jose.ForSigning)
	if err != nil {
		return err
	}
	o, err := token.VerifyOrder(c.Order, token.NewKeySet(key), c.Device, t.v.Ordered.At)
	if err != nil {
		return err
	}
	t.v.Signed = key.ID()
	return o.Covers(c.Function, c.Args, c.By, c.Expires)
}
