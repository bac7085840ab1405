package command_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/token"
)

// The roles of the entries in an evidence file's log.
const (
	enrollment, orderer, ordered, handed, settled = "enrollment", "orderer", "ordered", "handed", "settled"
)

// cosigner is a witness of the log.
type cosigner struct {
	ledger.Key
	private ed25519.PrivateKey
}

func newCosigner(t *testing.T, name string) cosigner {
	t.Helper()
	pub, private, err := ed25519.GenerateKey(nil)
	must(t, err)
	material := append([]byte{4}, pub...)
	sum := sha256.Sum256(append([]byte(name+"\n"), material...))
	k, err := ledger.ParseKey(fmt.Sprintf("%s+%08x+%s", name, binary.BigEndian.Uint32(sum[:]), base64.StdEncoding.EncodeToString(material)))
	must(t, err)
	return cosigner{k, private}
}

// Sign signs a note's text as tlog-cosignature has it, at a fixed time.
func (w cosigner) Sign(msg []byte) ([]byte, error) {
	at := binary.BigEndian.AppendUint64(nil, 1_700_000_000)
	return append(at, ed25519.Sign(w.private, append([]byte("cosignature/v1\ntime 1700000000\n"), msg...))...), nil
}

// evidenceBuilder is everything behind an evidence file, so that a test can change any part of it and
// have all signatures and proofs made anew.
type evidenceBuilder struct {
	t                                   *testing.T
	parties                             // whose witnesses sign the checkpoint
	trusts                              []token.Trust
	roots                               [][]*jose.Signer // signers of each bundle
	order                               token.Order
	commands                            []token.Command // versions; the receipt answers the last
	receipt                             token.Receipt
	entries                             map[string]audit.Entry // handed is of the last version, handed0 of the first of two
	sequence                            []string               // the entries' roles, in the log's order
	salt                                []byte
	signCommand, signReceipt, signOrder *jose.Signer
	file                                func(e *command.Evidence) // edits the finished file
}

// at is when the command of the forge was ordered: bundles count from a day before.
var at = time.Unix(1_760_000_000, 0).UTC()

func signer(t *testing.T, curve string) *jose.Signer {
	t.Helper()
	k, err := jose.GenerateKey(curve)
	must(t, err)
	s, err := k.Signer()
	must(t, err)
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// parties is the keys of a forge, made once.
type parties struct {
	root, command, device, operator, log *jose.Signer
	witnesses                            []cosigner
}

func newParties(t *testing.T) parties {
	t.Helper()
	p := parties{signer(t, jose.P256), signer(t, jose.P256), signer(t, jose.P256), signer(t, jose.P256), signer(t, jose.Ed), nil}
	for i := range 3 {
		p.witnesses = append(p.witnesses, newCosigner(t, "witness"+strconv.Itoa(i)))
	}
	return p
}

func newForge(t *testing.T, p parties) *evidenceBuilder {
	t.Helper()
	f := &evidenceBuilder{t: t, parties: p, salt: []byte("0123456789abcdef"), file: func(*command.Evidence) {}}
	f.signCommand, f.signReceipt, f.signOrder = f.command, f.device, f.operator
	trust := token.Trust{
		Issuer: "https://hub.example", Version: 1, Epoch: 1, Roots: keys(f.root), Issuers: keys(f.command), Command: keys(f.command),
		Time: keys(f.command), Log: keys(f.log), Quorum: 2, Issued: at.Add(-24 * time.Hour), Expires: at.Add(30 * 24 * time.Hour),
	}
	for _, w := range f.witnesses {
		trust.Witnesses = append(trust.Witnesses, w.String())
	}
	f.trusts, f.roots = []token.Trust{trust}, [][]*jose.Signer{{f.root}}
	args := []byte(`{"level":40}`)
	f.order = token.Order{By: "alice", Server: issuer, Device: "lamp-1", Function: "lamp.set", ArgsHash: jose.Hash(args), Issued: at, Expires: at.Add(time.Minute)}
	f.commands = []token.Command{{
		Issuer: trust.Issuer, Device: "lamp-1", ID: "cmd_1", Epoch: 1, Seq: 7, Function: "lamp.set", Args: args, By: "alice", Issued: at, Expires: at.Add(time.Minute),
	}}
	f.receipt = token.Receipt{Device: "lamp-1", Issuer: trust.Issuer, Epoch: 1, Seq: 7, Command: "cmd_1", Status: watchword.StatusDone, Result: json.RawMessage(`{"lux":3}`), At: at}
	entry := func(kind, object string, seconds int, data map[string]string) audit.Entry {
		return audit.Entry{Tenant: watchword.DefaultTenant, At: at.Add(time.Duration(seconds) * time.Second), Kind: kind, Object: object, Outcome: audit.Done, Data: data}
	}
	key := func(s *jose.Signer) map[string]string {
		return map[string]string{"sign": string(s.Public().ID()), "sign_jwk": string(s.Public().JWK())}
	}
	f.entries = map[string]audit.Entry{
		orderer:    entry(audit.KindFor(watchword.Operator, audit.DeviceCreate), "alice", -200, key(f.operator)),
		enrollment: entry(audit.DeviceEnroll, "lamp-1", -100, key(f.device)),
		ordered:    entry(audit.CommandOrder, "cmd_1", 0, map[string]string{"device": "lamp-1", "function": "lamp.set", "epoch": "1", "seq": "7"}),
		handed:     entry(audit.CommandHandOver, "cmd_1", 1, map[string]string{"device": "lamp-1"}),
		settled:    entry(audit.CommandSettle, "cmd_1", 2, map[string]string{"st": "done"}),
	}
	f.sequence = []string{orderer, enrollment, ordered, handed, settled}
	o := f.entries[ordered]
	o.Actor = "alice"
	f.entries[ordered] = o
	s := f.entries[settled]
	s.Actor, s.Key = "lamp-1", f.device.Public().ID()
	f.entries[settled] = s
	return f
}

func keys(ss ...*jose.Signer) (out []*jose.PublicKey) {
	for _, s := range ss {
		out = append(out, s.Public())
	}
	return out
}

// set edits an entry.
func (f *evidenceBuilder) set(role string, edit func(e *audit.Entry)) {
	e := f.entries[role]
	e.Data = maps.Clone(e.Data)
	edit(&e)
	f.entries[role] = e
}

func (f *evidenceBuilder) put(role, name, value string) {
	f.set(role, func(e *audit.Entry) { e.Data[name] = value })
}

// orderedBySignature lets a signed order ride along.
func (f *evidenceBuilder) orderedBySignature() {
	raw, err := token.SignOrder(f.signOrder, f.order)
	must(f.t, err)
	for i := range f.commands {
		f.commands[i].Order = raw
	}
}

// missing fills in what an entry says of the bytes that it is about, where the test has not.
func (f *evidenceBuilder) missing(role, name, value string) {
	if f.entries[role].Data[name] == "" {
		f.put(role, name, value)
	}
}

// make returns the evidence file.
func (f *evidenceBuilder) make() []byte {
	t := f.t
	t.Helper()
	e := command.Evidence{Type: "watchword-evidence/v1", Command: "cmd_1", ArgsSalt: f.salt}
	for i, trust := range f.trusts {
		raw, err := token.SignTrust(trust, f.roots[i]...)
		must(t, err)
		e.Bundles = append(e.Bundles, raw)
	}
	for i, c := range f.commands {
		raw, err := token.SignCommand(f.signCommand, c)
		must(t, err)
		role := handed
		if i < len(f.commands)-1 {
			role += strconv.Itoa(i)
		} else if f.receipt.Hash == "" {
			f.receipt.Hash = jose.HashString(raw)
		}
		f.missing(role, "ch", jose.HashString(raw))
		e.Versions = append(e.Versions, command.EvidenceVersion{JWS: raw})
	}
	var err error
	e.Receipt, err = token.SignReceipt(f.signReceipt, f.receipt)
	must(t, err)
	last := f.commands[len(f.commands)-1]
	f.missing(ordered, "args_hash", jose.Hash(append(bytes.Clone(f.salt), last.Args...)))
	f.missing(settled, "ch", f.receipt.Hash)
	f.missing(settled, "receipt", jose.HashString(e.Receipt))
	e.Ordered, e.Settled, e.Enrollment = f.prove(ordered), f.prove(settled), f.prove(enrollment)
	if last.Order != "" {
		e.Orderer = f.prove(orderer)
	}
	for i := range e.Versions {
		role := handed
		if i < len(e.Versions)-1 {
			role += strconv.Itoa(i)
		}
		e.Versions[i].Proof = f.prove(role)
	}
	f.file(&e)
	b, err := e.Marshal()
	must(t, err)
	return b
}

// prove proves the entry of a role in the log of all entries.
func (f *evidenceBuilder) prove(role string) string {
	t := f.t
	t.Helper()
	var tree ledger.Tree
	var leaves []ledger.Hash
	var p ledger.Proof
	salt := ledger.Salt([]byte("salt of an entry"))
	for i, r := range f.sequence {
		body, err := f.entries[r].Body()
		must(t, err)
		leaf := ledger.LeafHash(ledger.Commitment(salt, body))
		tree, _ = tree.Append(leaf)
		leaves = append(leaves, leaf)
		if r == role {
			p = ledger.Proof{Index: int64(i), Salt: salt, Body: body}
		}
	}
	c := ledger.Checkpoint{Origin: f.trusts[0].Origin(), Size: tree.Size(), Root: tree.Root()}
	var err error
	p.Hashes, err = ledger.InclusionProof(c, p.Index, func(level int, n int64, width int) ([]byte, error) {
		return ledger.AppendTile(nil, leaves[:width]...), nil
	})
	must(t, err)
	p.Checkpoint = f.note(c)
	return string(p.Marshal())
}

// note signs a checkpoint as the log and its witnesses.
func (f *evidenceBuilder) note(c ledger.Checkpoint) []byte {
	f.t.Helper()
	log := ledger.LogKeys(f.trusts[0].Origin(), f.log.Public())[0]
	raw, err := c.Sign(ledger.Signer{Key: log, SignFunc: f.log.SignBytes})
	must(f.t, err)
	opened, err := note.Open(raw, note.VerifierList(log))
	must(f.t, err)
	by := []note.Signer{ledger.Signer{Key: log, SignFunc: f.log.SignBytes}}
	for _, w := range f.witnesses {
		by = append(by, w)
	}
	opened.Sigs = nil
	raw, err = note.Sign(opened, by...)
	must(f.t, err)
	return raw
}

func (f *evidenceBuilder) verify() (command.VerifiedEvidence, error) {
	f.t.Helper()
	return command.VerifyEvidence(f.make(), token.TrustPin(f.root.Public()))
}

func TestEvidenceVerifies(t *testing.T) {
	p := newParties(t)
	f := newForge(t, p)
	f.orderedBySignature()
	v, err := f.verify()
	if err != nil {
		t.Fatal(err)
	}
	for what, ok := range map[string]bool{
		"issuer":       v.Issuer == "https://hub.example",
		"command":      v.Command.ID == "cmd_1" && v.Command.Seq == 7 && string(v.Command.Args) == `{"level":40}` && v.Command.By == "alice",
		"receipt":      v.Status == watchword.StatusDone && string(v.Result) == `{"lux":3}` && v.ReceiptKey == f.device.Public().ID(),
		"orderer":      v.OrderKey == f.operator.Public().ID(),
		"entries":      v.Ordered.Seq == 3 && v.HandedOver.Seq == 4 && v.Settled.Seq == 5 && v.Enrolled.Seq == 2,
		"cosignatures": len(v.Cosignatures) == 3 && v.Cosignatures[0].At.Unix() == 1_700_000_000,
	} {
		if !ok {
			t.Errorf("%s: %+v", what, v)
		}
	}
	f = newForge(t, p) // without a signed order, the orderer is the server's statement
	if v, err = f.verify(); err != nil || v.OrderKey != "" || v.Command.By != "alice" {
		t.Errorf("signed by %q: %v", v.OrderKey, err)
	}
}

// Each row changes one thing behind the file and has the rest made to fit it. says is what
// the refusal says; empty where the file must still hold.
func TestIncompleteEvidenceIsRefused(t *testing.T) {
	p := newParties(t)
	second := func(f *evidenceBuilder, edit func(b *token.Trust)) {
		b := f.trusts[0]
		b.Version = 2
		f.trusts, f.roots = append(f.trusts, b), append(f.roots, []*jose.Signer{f.root})
		edit(&f.trusts[1])
	}
	for _, tc := range []struct {
		name string
		edit func(f *evidenceBuilder)
		says string
	}{
		{"nothing is changed", func(*evidenceBuilder) {}, ""},

		// Bundles.
		{"no bundle", func(f *evidenceBuilder) { f.file = func(e *command.Evidence) { e.Bundles = nil } }, "the trust bundles are not valid: "},
		{"a bundle of another root", func(f *evidenceBuilder) {
			f.roots[0] = []*jose.Signer{f.device}
			f.trusts[0].Roots = keys(f.device)
		}, "the trust bundles are not valid: "},
		{"two bundles", func(f *evidenceBuilder) { second(f, func(*token.Trust) {}) }, ""},
		{"a second bundle of another issuer", func(f *evidenceBuilder) { second(f, func(b *token.Trust) { b.Issuer = "https://other.example" }) }, "all trust bundles must be of one issuer"},
		{"a new root that the old one introduced", func(f *evidenceBuilder) {
			second(f, func(b *token.Trust) { b.Roots = keys(f.root, f.device) })
			f.roots[1] = []*jose.Signer{f.root, f.device}
			b := f.trusts[0]
			b.Version, b.Roots = 3, keys(f.device)
			f.trusts, f.roots = append(f.trusts, b), append(f.roots, []*jose.Signer{f.device})
		}, ""},
		{"a new root without an introduction", func(f *evidenceBuilder) {
			second(f, func(b *token.Trust) { b.Roots = keys(f.device) })
			f.roots[1] = []*jose.Signer{f.device}
		}, "the trust bundle is not signed by a known root"},
		{"a first bundle that only a later one vouches for", func(f *evidenceBuilder) {
			second(f, func(b *token.Trust) { b.Roots = keys(f.root, f.device) })
			f.roots[1] = []*jose.Signer{f.root, f.device}
			f.trusts[0].Roots, f.roots[0] = keys(f.device), []*jose.Signer{f.device}
		}, "the root key of the trust bundle does not match the pin"},

		// When a bundle counts. The hand-over is one second after at.
		{"a bundle that ends a second after the hand-over", func(f *evidenceBuilder) { f.trusts[0].Expires = at.Add(2 * time.Second) }, ""},
		{"a bundle that ends at the hand-over", func(f *evidenceBuilder) { f.trusts[0].Expires = at.Add(time.Second) }, "no trust bundle of that time contains the command key"},
		{"a bundle that ended before the hand-over", func(f *evidenceBuilder) { f.trusts[0].Expires = at.Add(-time.Second) }, "no trust bundle of that time contains the command key"},
		{"a bundle that begins a skew after the hand-over", func(f *evidenceBuilder) { f.trusts[0].Issued = at.Add(time.Second + token.Skew) }, ""},
		{"a bundle that begins later than a skew after the hand-over", func(f *evidenceBuilder) { f.trusts[0].Issued = at.Add(2*time.Second + token.Skew) }, "no trust bundle of that time contains the command key"},
		{"a bundle that was over beside one of that time", func(f *evidenceBuilder) {
			f.trusts[0].Expires = at.Add(-time.Second)
			second(f, func(b *token.Trust) { b.Expires = at.Add(time.Hour) })
		}, ""},
		{"a command key that only a later bundle names", func(f *evidenceBuilder) {
			f.trusts[0].Command = keys(f.operator)
			second(f, func(b *token.Trust) { b.Command, b.Issued = keys(f.command), at.Add(time.Hour) })
		}, "no trust bundle of that time contains the command key"},
		{"a command key that no bundle names", func(f *evidenceBuilder) { f.trusts[0].Command = keys(f.operator) }, "the delivered command is not valid: "},

		// Witnesses. The bundle wants two of three.
		{"as many witnesses as the bundle wants", func(f *evidenceBuilder) { f.witnesses = f.witnesses[:2] }, ""},
		{"one witness too few", func(f *evidenceBuilder) { f.witnesses = f.witnesses[:1] }, "the log has the signatures of 1 witnesses, and the trust bundle requires 2"},
		{"no witness", func(f *evidenceBuilder) { f.witnesses = nil }, "the log has the signatures of 0 witnesses"},
		{"no witness where none is wanted", func(f *evidenceBuilder) { f.trusts[0].Quorum, f.witnesses = 0, nil }, ""},
		{"witnesses that were not named", func(f *evidenceBuilder) {
			f.witnesses = []cosigner{newCosigner(f.t, "witness0"), newCosigner(f.t, "stranger")}
		}, "the log has the signatures of 0 witnesses"},
		{"witnesses of an earlier bundle", func(f *evidenceBuilder) {
			second(f, func(b *token.Trust) { b.Witnesses = b.Witnesses[2:]; b.Quorum = 1 })
			f.witnesses = f.witnesses[:2]
		}, "the log has the signatures of 0 witnesses, and the trust bundle requires 1"},
		{"the quorum of the last bundle", func(f *evidenceBuilder) {
			second(f, func(b *token.Trust) { b.Quorum = 1 })
			f.witnesses = f.witnesses[:1]
		}, ""},

		// Proofs and entries.
		{"a log of another key", func(f *evidenceBuilder) { f.trusts[0].Log = keys(signer(f.t, jose.Ed)) }, "the log entry of the order is not valid: log_invalid: the checkpoint is not signed by the log's key"},
		{"an entry under another checkpoint", func(f *evidenceBuilder) {
			f.file = func(e *command.Evidence) {
				f.sequence = append(f.sequence, ordered)
				e.Enrollment = f.prove(enrollment)
			}
		}, "all proofs must be under one checkpoint"},
		{"the order of another command", func(f *evidenceBuilder) { f.set(ordered, func(e *audit.Entry) { e.Object = "cmd_2" }) }, "and must be of cmd_1"},
		{"an order that was refused", func(f *evidenceBuilder) { f.set(ordered, func(e *audit.Entry) { e.Outcome = audit.Refused }) }, "and must be of cmd_1"},
		{"the cancelling in the place of the order", func(f *evidenceBuilder) { f.set(ordered, func(e *audit.Entry) { e.Kind = audit.CommandCancel }) }, "is command.cancel of cmd_1"},
		{"the receipt in the place of the order", func(f *evidenceBuilder) { f.file = func(e *command.Evidence) { e.Ordered = e.Settled } }, "is command.settle of cmd_1"},
		{"an invalid proof", func(f *evidenceBuilder) { f.file = func(e *command.Evidence) { e.Settled = "x" } }, "the receipt is not valid: log_invalid: the proof is malformed"},
		{"a proof of another entry's body", func(f *evidenceBuilder) {
			f.file = func(e *command.Evidence) {
				f.set(ordered, func(e *audit.Entry) { e.Actor = "mallory" })
				with, err := ledger.ParseProof([]byte(f.prove(ordered)))
				must(f.t, err)
				old, err := ledger.ParseProof([]byte(e.Ordered))
				must(f.t, err)
				old.Body = with.Body
				e.Ordered = string(old.Marshal())
			}
		}, "the log entry of the order is not valid: "},

		// The enrollment.
		{"the enrollment of another device", func(f *evidenceBuilder) { f.set(enrollment, func(e *audit.Entry) { e.Object = "lamp-2" }) }, "the log entry of the enrollment is not valid: "},
		{"a key that came by a change of keys", func(f *evidenceBuilder) { f.set(enrollment, func(e *audit.Entry) { e.Kind = audit.DeviceRekey }) }, ""},
		{"an entry that brings no key", func(f *evidenceBuilder) { f.set(enrollment, func(e *audit.Entry) { e.Kind = audit.DeviceCreate }) }, "is device.create of lamp-1"},
		{"a key under another name", func(f *evidenceBuilder) { f.put(enrollment, "sign", "other") }, "must be the thumbprint of its sign_jwk"},
		{"another key under its name", func(f *evidenceBuilder) { f.put(enrollment, "sign_jwk", string(f.operator.Public().JWK())) }, "must be the thumbprint of its sign_jwk"},
		{"an entry without a key", func(f *evidenceBuilder) { f.put(enrollment, "sign_jwk", "{}") }, "the log entry of the enrollment is not valid: "},
		{"another key's receipt", func(f *evidenceBuilder) { f.signReceipt = f.operator }, "the receipt is not valid: "},
		{"a receipt of before the enrollment", func(f *evidenceBuilder) {
			f.sequence = []string{orderer, ordered, handed, settled, enrollment}
		}, "the key was not enrolled yet"},
		{"an enrollment between order and receipt", func(f *evidenceBuilder) {
			f.sequence = []string{orderer, ordered, handed, enrollment, settled}
		}, ""},

		// The receipt.
		{"the receipt of another command", func(f *evidenceBuilder) { f.receipt.Command = "cmd_2" }, "the receipt is of cmd_2"},
		{"the receipt of another device", func(f *evidenceBuilder) { f.receipt.Device = "lamp-2" }, "the receipt is not valid: "},
		{"a receipt for another issuer", func(f *evidenceBuilder) { f.receipt.Issuer = "https://other.example" }, "the receipt is not valid: "},
		{"an entry of another receipt", func(f *evidenceBuilder) { f.put(settled, "receipt", jose.HashString("x")) }, "is of another receipt"},
		{"an entry of another status", func(f *evidenceBuilder) { f.put(settled, "st", "failed") }, "does not match the receipt"},
		{"an entry of another version", func(f *evidenceBuilder) { f.put(settled, "ch", jose.HashString("x")) }, "does not match the receipt"},
		{"an entry by another device", func(f *evidenceBuilder) { f.set(settled, func(e *audit.Entry) { e.Actor = "lamp-2" }) }, "does not match the receipt"},
		{"an entry under another key", func(f *evidenceBuilder) { f.set(settled, func(e *audit.Entry) { e.Key = "other" }) }, "does not match the receipt"},
		{"a conflict that a device reports", func(f *evidenceBuilder) {
			f.receipt.Status = watchword.StatusConflict
			f.put(settled, "st", "conflict")
			f.set(settled, func(e *audit.Entry) { e.Kind = audit.CommandConflict })
		}, ""},

		// What was handed over.
		{"no version", func(f *evidenceBuilder) { f.file = func(e *command.Evidence) { e.Versions = nil } }, "the evidence must contain the command version that the receipt answers"},
		{"a receipt that answers another version", func(f *evidenceBuilder) { f.receipt.Hash = jose.HashString("x") }, "the evidence must contain the command version that the receipt answers"},
		{"an entry of other bytes", func(f *evidenceBuilder) { f.put(handed, "ch", jose.HashString("x")) }, "is of another version"},
		{"a version of before that was not answered", func(f *evidenceBuilder) {
			older := f.commands[0]
			older.Nonce = "n1"
			f.commands = append([]token.Command{older}, f.commands...)
			f.entries[handed+"0"] = f.entries[handed]
			f.sequence = []string{orderer, enrollment, ordered, handed + "0", handed, settled}
		}, ""},
		{"a version without its entry", func(f *evidenceBuilder) {
			older := f.commands[0]
			older.Nonce = "n1"
			f.commands = append([]token.Command{older}, f.commands...)
			f.entries[handed+"0"] = f.entries[handed]
			f.sequence = []string{orderer, enrollment, ordered, handed + "0", handed, settled}
			f.file = func(e *command.Evidence) { e.Versions[0].Proof = e.Versions[1].Proof }
		}, "is of another version"},
		{"a command that was over when it was handed over", func(f *evidenceBuilder) {
			f.commands[0].Issued, f.commands[0].Expires = at.Add(-time.Hour), at.Add(-time.Hour+time.Minute)
		}, "the delivered command is not valid: command_expired"},
		{"a command for another device", func(f *evidenceBuilder) { f.commands[0].Device = "lamp-2" }, "the delivered command is not valid: "},
		{"a command of another issuer", func(f *evidenceBuilder) { f.commands[0].Issuer = "https://other.example" }, "the delivered command is not valid: "},
		{"a command that the device's key signed", func(f *evidenceBuilder) { f.signCommand = f.device }, "the delivered command is not valid: "},
		{"another command's id", func(f *evidenceBuilder) { f.commands[0].ID = "cmd_2" }, "the receipt is of another command"},
		{"another epoch", func(f *evidenceBuilder) { f.receipt.Epoch = 2 }, "the receipt is of another command"},
		{"another number", func(f *evidenceBuilder) { f.receipt.Seq = 8 }, "the receipt is of another command"},
		{"another function", func(f *evidenceBuilder) { f.put(ordered, "function", "lamp.reset") }, "is of another order"},
		{"an order of another epoch", func(f *evidenceBuilder) { f.put(ordered, "epoch", "2") }, "is of another order"},
		{"an order with another number", func(f *evidenceBuilder) { f.put(ordered, "seq", "8") }, "is of another order"},
		{"an order of another subject", func(f *evidenceBuilder) { f.set(ordered, func(e *audit.Entry) { e.Actor = "bob" }) }, "is of another order"},
		{"other arguments", func(f *evidenceBuilder) { f.put(ordered, "args_hash", jose.HashString("x")) }, "the arguments do not match the order"},
		{"another salt", func(f *evidenceBuilder) {
			f.file = func(e *command.Evidence) { e.ArgsSalt = []byte("fedcba9876543210") }
		}, "the arguments do not match the order"},
		{"handed over before it was ordered", func(f *evidenceBuilder) {
			f.sequence = []string{orderer, enrollment, handed, ordered, settled}
		}, "the entries must be in the order of the log"},
		{"answered before it was handed over", func(f *evidenceBuilder) {
			f.sequence = []string{orderer, enrollment, ordered, settled, handed}
		}, "the entries must be in the order of the log"},

		// A signed order.
		{"a signed order", func(f *evidenceBuilder) { f.orderedBySignature() }, ""},
		{"a signed order without its key's entry", func(f *evidenceBuilder) {
			f.orderedBySignature()
			f.file = func(e *command.Evidence) { e.Orderer = "" }
		}, "the signed order is not valid: "},
		{"a signed order under the device's entry", func(f *evidenceBuilder) {
			f.orderedBySignature()
			f.file = func(e *command.Evidence) { e.Orderer = e.Enrollment }
		}, "the signed order is not valid: "},
		{"an order that another key signed", func(f *evidenceBuilder) {
			f.signOrder = f.device
			f.orderedBySignature()
		}, "the signed order is not valid: "},
		{"a signed order of another function", func(f *evidenceBuilder) {
			f.order.Function = "lamp.reset"
			f.orderedBySignature()
		}, "the signed order is not valid: order_invalid: "},
		{"a signed order with other arguments", func(f *evidenceBuilder) {
			f.order.ArgsHash = jose.HashString("x")
			f.orderedBySignature()
		}, "the signed order is not valid: order_invalid: "},
		{"a signed order with another end", func(f *evidenceBuilder) {
			f.order.Expires = at.Add(2 * time.Minute)
			f.orderedBySignature()
		}, "the signed order is not valid: order_invalid: "},
		{"a signed order of another subject", func(f *evidenceBuilder) {
			f.order.By = "bob"
			f.orderedBySignature()
		}, "the signed order is not valid: order_invalid: "},
		{"a signed order for another tenant", func(f *evidenceBuilder) {
			f.order.Server = issuer + "/t/other"
			f.orderedBySignature()
		}, "the signed order is not valid: order_invalid: server "},
		{"a signed order that was over when it was stored", func(f *evidenceBuilder) {
			f.orderedBySignature()
			f.set(ordered, func(e *audit.Entry) { e.At = at.Add(time.Hour) })
		}, "the signed order is not valid: token_expired: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newForge(t, p)
			tc.edit(f)
			_, err := f.verify()
			if tc.says == "" {
				if err != nil {
					t.Errorf("got %v, want no error", err)
				}
				return
			}
			if watchword.CodeOf(err) != watchword.LogInvalid || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want %s that says %q", err, watchword.LogInvalid, tc.says)
			}
		})
	}
}

func TestMalformedEvidence(t *testing.T) {
	p := newParties(t)
	f := newForge(t, p)
	good, pin := f.make(), token.TrustPin(f.root.Public())
	if _, err := command.VerifyEvidence(good, pin); err != nil {
		t.Fatal(err)
	}
	spaced := func(n int) []byte { return append(slices.Clip(good), bytes.Repeat([]byte(" "), n-len(good))...) }
	for name, c := range map[string]struct {
		raw  []byte
		pin  string
		want watchword.Code
	}{
		"as large as it may be": {spaced(command.MaxEvidence), pin, ""},
		"a byte larger":         {spaced(command.MaxEvidence + 1), pin, watchword.TooLarge},
		"an unknown member":     {bytes.Replace(good, []byte("{"), []byte(`{"more":1,`), 1), pin, watchword.LogInvalid},
		"another type":          {bytes.Replace(good, []byte("evidence/v1"), []byte("evidence/v2"), 1), pin, watchword.LogInvalid},
		"no JSON":               {[]byte("evidence"), pin, watchword.LogInvalid},
		"nothing":               {nil, pin, watchword.LogInvalid},
		"another pin":           {good, token.TrustPin(f.device.Public()), watchword.LogInvalid},
		"no pin":                {good, "", watchword.LogInvalid},
		"a command that its proofs are not about": {bytes.Replace(good, []byte(`"command": "cmd_1"`), []byte(`"command": "cmd_2"`), 1), pin, watchword.LogInvalid},
	} {
		if _, err := command.VerifyEvidence(c.raw, c.pin); watchword.CodeOf(err) != c.want {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}
