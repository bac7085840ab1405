package command_test

import (
	"context"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/token"
)

// withoutKind is a log without the entries of one kind.
type withoutKind struct {
	command.LogReader
	kind string
}

func (b withoutKind) Find(ctx context.Context, q audit.Query, p audit.Page) (out []audit.Record, err error) {
	rs, err := b.LogReader.Find(ctx, q, p)
	for _, r := range rs {
		if e, err := r.Entry(); err != nil || e.Kind != b.kind {
			out = append(out, r)
		}
	}
	return out, err
}

// The evidence that a service writes can be verified with the root's pin alone.
func TestEvidenceOfAFinishedCommand(t *testing.T) {
	s := newSetup(t, options{})
	live := session.NewLive()
	live.Register(s.ring)
	_, err := keyring.NewRotator(t.Context(), s.store, s.ring, live, keyring.RotatorOptions{}, s.now())
	must(t, err)
	log, err := audit.NewCheckpointSigner(t.Context(), s.store, s.ring, audit.CheckpointOptions{Every: time.Millisecond, Now: s.now})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- log.Run(ctx) }()
	defer func() {
		cancel()
		if err := testwait.For(t, "the end of the keeper", done); err != nil {
			t.Error(err)
		}
	}()
	pin := token.TrustPin(s.ring.Root())
	evidence := func(id watchword.CommandID, book command.LogReader) (command.Evidence, error) {
		t.Helper()
		row, err := s.Command(t.Context(), tenant, id)
		must(t, err)
		return s.Evidence(short(t), row, book, log, []string{s.ring.Bundle(s.now())})
	}
	args := []byte(`{ "level": 40 }`)
	raw, err := token.SignOrder(s.signs["alice"], token.Order{By: "alice", Server: issuer, Device: "lamp-1", Function: "lamp.set", ArgsHash: jose.Hash(args), Issued: at, Expires: at.Add(time.Hour)})
	must(t, err)
	row := s.order(command.Call{Args: args, SignedOrder: raw})
	_, err = evidence(row.ID, s.store)
	wantCode(t, "before it is handed over", err, watchword.Conflict)

	l := s.Attach(tenant, "lamp-1")
	defer l.Close()
	first := s.next(l, 0, "")[0]
	s.rekey("lamp-1") // the receipt is signed with the second key, and must name its entry
	s.pass(time.Second)
	second := s.next(l, 0, "n1")[0]
	answer := func(u unsealed, st watchword.ReceiptStatus) {
		t.Helper()
		_, err := s.ApplyReceipt(t.Context(), tenant, "lamp-1", watchword.AuthorityVersions{Local: true}, s.receipt(s.signs["lamp-1"], u, st), "")
		must(t, err)
	}
	answer(first, watchword.StatusAccepted)
	_, err = evidence(row.ID, s.store)
	wantCode(t, "before its last receipt", err, watchword.Conflict)
	answer(second, watchword.StatusDone)
	key := s.signs["lamp-1"].Public().ID()
	s.rekey("lamp-1")

	e, err := evidence(row.ID, s.store)
	must(t, err)
	file, err := e.Marshal()
	must(t, err)
	v, err := command.VerifyEvidence(file, pin)
	if err != nil {
		t.Fatalf("%v\n%s", err, file)
	}
	if v.Command.ID != row.ID || string(v.Command.Args) != string(args) || v.Command.Nonce != "n1" || v.Status != watchword.StatusDone || v.ReceiptKey != key ||
		v.OrderKey != s.signs["alice"].Public().ID() || v.Enrolled.Kind != audit.DeviceRekey || len(e.Versions) != 2 {
		t.Errorf("got %+v", v)
	}
	for _, kind := range []string{audit.CommandOrder, audit.CommandHandOver, audit.CommandSettle, audit.DeviceRekey, audit.KindFor(watchword.Operator, audit.DeviceCreate)} {
		_, err := evidence(row.ID, withoutKind{s.store, kind})
		wantCode(t, "without the entries "+kind, err, watchword.NotFound)
	}
	// Without a signed order there is no order key.
	u := s.handed("")
	answer(u, watchword.StatusConflict)
	e, err = evidence(u.Command.ID, s.store)
	must(t, err)
	file, err = e.Marshal()
	must(t, err)
	if v, err := command.VerifyEvidence(file, pin); err != nil || e.Orderer != "" || v.OrderKey != "" || v.Status != watchword.StatusConflict {
		t.Errorf("signed by %q, orderer %q: %v", v.OrderKey, e.Orderer, err)
	}
	if _, err := ledger.ParseProof([]byte(e.Ordered)); err != nil {
		t.Error(err)
	}
}

func TestAConfigurationIsSignedWithTheCommandKey(t *testing.T) {
	s := newSetup(t, options{})
	raw, err := s.SignConfig(tenant, "lamp-1", 7, []byte(`{"lux":3}`))
	must(t, err)
	c, err := token.VerifyConfig(raw, token.NewKeySet(s.ring.Public(keyring.Command)...), issuer, "lamp-1", s.now())
	if err != nil || c.Version != 7 || string(c.Document) != `{"lux":3}` || !c.Issued.Equal(s.now()) {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestSchemasOfFunctions(t *testing.T) {
	for text, want := range map[string]watchword.Code{
		`{}`: "", `true`: "", `{"type":"object"}`: "", `{"$ref":"#/$defs/a","$defs":{"a":{"type":"object"}}}`: "",
		`{"type":"thing"}`: watchword.BadRequest, `{`: watchword.BadRequest, `7`: watchword.BadRequest, `{"pattern":"("}`: watchword.BadRequest,
		`{"$ref":"https://127.0.0.1:1/x"}`: watchword.BadRequest, `{"$ref":"file:///etc/passwd"}`: watchword.BadRequest, `{"$ref":"#/nowhere"}`: watchword.BadRequest,
	} {
		_, err := command.CompileSchema([]byte(text))
		wantCode(t, text, err, want)
	}
}
