package command_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/twin"
	"github.com/watchword-iot/watchword/token"
)

func TestCallValidation(t *testing.T) {
	s := newSetup(t, options{service: command.Options{MaxArgs: 100}})
	sized := func(n int) []byte { return []byte(`{"a":"` + strings.Repeat("x", n-len(`{"a":""}`)) + `"}`) }
	for name, c := range map[string]struct {
		call  command.Call
		code  watchword.Code
		field string
	}{
		"a call":                       {command.Call{Device: "lamp-1", Function: "f"}, "", ""},
		"no device":                    {command.Call{Function: "f"}, watchword.BadRequest, "device"},
		"a device with a slash":        {command.Call{Device: "lamp/1", Function: "f"}, watchword.BadRequest, "device"},
		"no function":                  {command.Call{Device: "lamp-1"}, watchword.BadRequest, "function"},
		"a pattern of functions":       {command.Call{Device: "lamp-1", Function: "f*"}, watchword.BadRequest, "function"},
		"a second":                     {command.Call{Device: "lamp-1", Function: "f", TTL: time.Second}, "", ""},
		"no time at all":               {command.Call{Device: "lamp-1", Function: "f", TTL: -time.Second}, watchword.BadRequest, "ttl"},
		"half a second":                {command.Call{Device: "lamp-1", Function: "f", TTL: 1500 * time.Millisecond}, watchword.BadRequest, "ttl"},
		"a day":                        {command.Call{Device: "lamp-1", Function: "f", TTL: 24 * time.Hour}, "", ""},
		"longer than a day":            {command.Call{Device: "lamp-1", Function: "f", TTL: 24*time.Hour + time.Second}, watchword.BadRequest, "ttl"},
		"a long Idempotency-Key":       {command.Call{Device: "lamp-1", Function: "f", IdempotencyKey: strings.Repeat("k", 128)}, "", ""},
		"one that is too long":         {command.Call{Device: "lamp-1", Function: "f", IdempotencyKey: strings.Repeat("k", 129)}, watchword.BadRequest, "Idempotency-Key"},
		"arguments as large as may be": {command.Call{Device: "lamp-1", Function: "f", Args: sized(100)}, "", ""},
		"a byte larger":                {command.Call{Device: "lamp-1", Function: "f", Args: sized(101)}, watchword.TooLarge, "args"},
		"a list":                       {command.Call{Device: "lamp-1", Function: "f", Args: []byte("[]")}, watchword.BadRequest, "args"},
		"a number":                     {command.Call{Device: "lamp-1", Function: "f", Args: []byte("7")}, watchword.BadRequest, "args"},
		"null":                         {command.Call{Device: "lamp-1", Function: "f", Args: []byte("null")}, watchword.BadRequest, "args"},
		"an object behind a space":     {command.Call{Device: "lamp-1", Function: "f", Args: []byte(" {}")}, watchword.BadRequest, "args"},
		"two objects":                  {command.Call{Device: "lamp-1", Function: "f", Args: []byte("{}{}")}, watchword.BadRequest, "args"},
		"members behind the object":    {command.Call{Device: "lamp-1", Function: "f", Args: []byte(`{},"exp":1`)}, watchword.BadRequest, "args"},
		"half an object":               {command.Call{Device: "lamp-1", Function: "f", Args: []byte(`{"a":`)}, watchword.BadRequest, "args"},
		"a member twice":               {command.Call{Device: "lamp-1", Function: "f", Args: []byte(`{"a":1,"a":2}`)}, watchword.BadRequest, "args"},
		"as deep as may be":            {command.Call{Device: "lamp-1", Function: "f", Args: []byte(deep(7))}, "", ""},
		"a level deeper":               {command.Call{Device: "lamp-1", Function: "f", Args: []byte(deep(8))}, watchword.BadRequest, "args"},
	} {
		_, err := s.Order(t.Context(), s.as("alice"), c.call, "")
		wantCode(t, name, err, c.code)
		if e, ok := err.(*watchword.Error); c.field != "" && (!ok || e.Field != c.field) {
			t.Errorf("%s: got %+v, want the field %s", name, err, c.field)
		}
	}
	plain := newSetup(t, options{})
	if _, err := plain.Order(t.Context(), plain.as("alice"), command.Call{Device: "lamp-1", Function: "f", Args: sized(watchword.MaxArgs)}, ""); err != nil {
		t.Errorf("8 KiB of arguments: %v", err)
	}
	_, err := plain.Order(t.Context(), plain.as("alice"), command.Call{Device: "lamp-1", Function: "f", Args: sized(watchword.MaxArgs + 1)}, "")
	wantCode(t, "a byte more", err, watchword.TooLarge)
}

// Policy is checked before anything about the device is disclosed: a caller that may not call it does not learn whether it
// exists.
func TestCallAuthorization(t *testing.T) {
	s := newSetup(t, options{})
	s.subject("bob", watchword.Operator, nil)
	s.subject("carol", watchword.Operator, nil)
	s.subject("door-1", watchword.Device, watchword.Labels{"kind": "door"})
	s.subject("lamp-2", watchword.Device, watchword.Labels{"kind": "lamp"})
	must(t, s.store.SetFunctions(t.Context(), tenant, watchword.AuthorityVersions{}, "lamp-2", []twin.Function{
		{Name: "blink"},
		{Name: "lamp.set", Schema: []byte(`{"properties":{"level":{"type":"object","properties":{"value":{"maximum":50}}}},"required":["level"]}`)},
	}, s.now()))
	_, err := s.store.Revoke(t.Context(), audit.Actor{Tenant: tenant}, "door-1", s.now(), audit.FixedEntry[watchword.Subject](s.entry(audit.DeviceRevoke, "door-1", nil)))
	must(t, err)
	s.changed("door-1")
	for _, c := range []struct {
		by, device         watchword.SubjectID
		function, args     string
		code               watchword.Code
		rule, field, words string
	}{
		{"alice", "lamp-1", "anything", `{"a":1}`, "", "", "", ""},
		{"alice", "door-1", "door.open", "", watchword.Denied, "", "", "no rule"},
		{"alice", "lamp-9", "lamp.set", "", watchword.Denied, "", "", "no rule"}, // by labels: one that is not there has none
		{"bob", "lamp-1", "lamp.set", `{"level":80}`, "", "", "", ""},
		{"bob", "lamp-1", "lamp.set", `{"level":81}`, watchword.Denied, "", "", "no rule"},
		{"bob", "lamp-1", "lamp.get", "", watchword.Denied, "", "", "no rule"},
		{"bob", "lamp-2", "lamp.set", "", watchword.Denied, "", "", "no rule"},
		{"bob", "lamp-9", "lamp.set", "", watchword.NotFound, "", "", "lamp-9"},
		{"bob", "lamp-9", "lamp.get", "", watchword.Denied, "", "", "no rule"},
		{"carol", "lamp-1", "lamp.set", "", watchword.Denied, "", "", "no rule"},
		{"carol", "lamp-9", "lamp.set", "", watchword.Denied, "", "", "no rule"},
		{"alice", "bob", "lamp.set", "", watchword.Denied, "", "", "no rule"},
		{"alice", "lamp-2", "blink", `{"any":"thing"}`, "", "", "", ""},
		{"alice", "lamp-2", "lamp.set", `{"level":{"value":50}}`, "", "", "", ""},
		{"alice", "lamp-2", "lamp.set", `{"level":{"value":51}}`, watchword.ArgsInvalid, "", "args.level.value", "(maximum)"},
		{"alice", "lamp-2", "lamp.set", `{}`, watchword.ArgsInvalid, "", "args", "(required)"},
		{"alice", "lamp-2", "lamp.get", "", watchword.FunctionUnknown, "", "", "no such function"},
	} {
		what := fmt.Sprintf("%s calls %s of %s with %s", c.by, c.function, c.device, c.args)
		row, err := s.Order(t.Context(), s.as(c.by), command.Call{Device: c.device, Function: c.function, Args: []byte(c.args)}, "")
		wantCode(t, what, err, c.code)
		if c.code == "" {
			if row.By != c.by || row.Device != c.device || row.State != watchword.Queued {
				t.Errorf("%s: stored as %+v", what, row)
			}
			continue
		}
		if e, ok := err.(*watchword.Error); !ok || e.Field != c.field || !strings.Contains(e.Detail, c.words) {
			t.Errorf("%s: got %+v, want field %q and %q", what, err, c.field, c.words)
		}
	}
	narrow, err := s.guard.Check(t.Context(), s.credentialsOf("alice", "fn:lamp-2/blink"))
	must(t, err)
	_, err = s.Order(t.Context(), narrow, command.Call{Device: "lamp-1", Function: "blink"}, "")
	wantCode(t, "what the token does not carry", err, watchword.Denied)
	_, err = s.Order(t.Context(), narrow, command.Call{Device: "lamp-2", Function: "blink"}, "")
	wantCode(t, "what it carries", err, "")
}

func TestOrderIsStoredSealed(t *testing.T) {
	s := newSetup(t, options{})
	s.pass(300 * time.Millisecond)
	row := s.order(command.Call{Args: []byte("{ \"level\" : 40 }")})
	args, salt, err := s.ArgsCommitment(row)
	must(t, err)
	if string(args) != `{"level":40}` || len(salt) != 16 || strings.Contains(string(row.Args), "level") {
		t.Errorf("arguments %s, salt %x, at rest %q", args, salt, row.Args)
	}
	alice := s.signs["alice"].Public().ID()
	if row.Seq != 1 || row.Epoch != 1 || row.By != "alice" || row.ByKey != alice || row.ArgsHash != jose.Hash(args) || row.Order != "" {
		t.Errorf("got %+v", row)
	}
	// 120 s by default, up to the next whole second.
	if want := at.Add(121 * time.Second); !row.Expires.Equal(want) {
		t.Errorf("it ends at %s, want %s", row.Expires, want)
	}
	if row := s.order(command.Call{TTL: 10 * time.Second}); !row.Expires.Equal(at.Add(11 * time.Second)) {
		t.Errorf("10 s from %s end at %s", s.now(), row.Expires)
	}
	if row := s.order(command.Call{ID: "cmd_mine"}); row.ID != "cmd_mine" || row.Seq != 3 {
		t.Errorf("got %s with number %d", row.ID, row.Seq)
	}
	e := s.last(audit.CommandOrder)
	if e.Object != "cmd_mine" || e.Actor != "alice" || e.Key != alice || e.Trace != "trace" || e.Outcome != audit.Done ||
		e.Data["device"] != "lamp-1" || e.Data["function"] != "lamp.set" || e.Data["seq"] != "3" || e.Data["epoch"] != "1" {
		t.Errorf("the log says %+v", e)
	}
	if want := fmt.Sprint(at.Add(121 * time.Second).Unix()); e.Data["expires"] != want {
		t.Errorf("the log says that it ends at %s, want %s", e.Data["expires"], want)
	}
	_, salt, err = s.ArgsCommitment(command.Row{ID: "cmd_mine", Args: mustSeal(t, s, "cmd_mine", "{}")})
	must(t, err)
	if want := jose.Hash(append(salt, "{}"...)); e.Data["args_hash"] != want {
		t.Errorf("the log's hash of the arguments is %s, want %s", e.Data["args_hash"], want)
	}
	for want, f := range map[string]command.Filter{
		"cmd_mine": {}, "": {By: "bob"},
	} {
		rows, err := s.List(t.Context(), tenant, f, "", 1)
		must(t, err)
		if (len(rows) == 1) != (want != "") {
			t.Errorf("%+v lists %d", f, len(rows))
		}
	}
}

func mustSeal(t *testing.T, s *setup, id, args string) []byte {
	t.Helper()
	b, err := s.ring.Seal("args/"+id, []byte(args))
	must(t, err)
	return b
}

// The same key with the same request acts once. Everything that the request says is in it.
func TestIdempotentOrder(t *testing.T) {
	s := newSetup(t, options{})
	s.subject("lamp-11", watchword.Device, watchword.Labels{"kind": "lamp"})
	s.subject("bob", watchword.Operator, nil)
	first := command.Call{Device: "lamp-1", Function: "1f", Args: []byte(`{"a":1}`), TTL: time.Minute, IdempotencyKey: "k"}
	row := s.order(first)
	s.pass(time.Second)
	spaced := first
	spaced.Args = []byte(`{ "a": 1 }`)
	for _, c := range []command.Call{first, spaced} {
		if again := s.order(c); again.ID != row.ID || !again.Expires.Equal(row.Expires) {
			t.Errorf("the same request made %s beside %s", again.ID, row.ID)
		}
	}
	for name, edit := range map[string]func(c *command.Call){
		"another device":             func(c *command.Call) { c.Device = "lamp-11" },
		"another function":           func(c *command.Call) { c.Function = "g" },
		"a letter moved":             func(c *command.Call) { c.Device, c.Function = "lamp-11", "f" },
		"other arguments":            func(c *command.Call) { c.Args = []byte(`{"a":2}`) },
		"another TTL":                func(c *command.Call) { c.TTL = 2 * time.Minute },
		"no TTL":                     func(c *command.Call) { c.TTL = 0 },
		"the default TTL, said":      func(c *command.Call) { c.TTL = 120 * time.Second },
		"the same with a second key": func(c *command.Call) { c.IdempotencyKey = "k2" },
		"the same without a key":     func(c *command.Call) { c.IdempotencyKey = "" },
	} {
		c := first
		edit(&c)
		got, err := s.Order(t.Context(), s.as("alice"), c, "")
		if c.IdempotencyKey == "k" {
			wantCode(t, name, err, watchword.Conflict)
		} else if err != nil || got.ID == row.ID {
			t.Errorf("%s: got %s, %v", name, got.ID, err)
		}
	}
	bobs := command.Call{Device: "lamp-1", Function: "lamp.set", IdempotencyKey: "k"}
	if got, err := s.Order(t.Context(), s.as("bob"), bobs, ""); err != nil || got.ID == row.ID {
		t.Errorf("another caller's key: %s, %v", got.ID, err)
	}
}

func TestASignedOrder(t *testing.T) {
	s := newSetup(t, options{})
	args := []byte("{ \"level\" : 40 }")
	good := token.Order{By: "alice", Server: issuer, Device: "lamp-1", Function: "lamp.set", ArgsHash: jose.Hash(args), Issued: at, Expires: at.Add(time.Minute)}
	for name, c := range map[string]struct {
		edit func(o *token.Order)
		by   *jose.Signer
		call func(c *command.Call)
		code watchword.Code
		why  watchword.Code // behind order_invalid
	}{
		"as it was signed":          {},
		"by another key":            {by: signer(t, jose.P256), code: watchword.OrderInvalid, why: watchword.KeyUnknown},
		"for another function":      {edit: func(o *token.Order) { o.Function = "lamp.get" }, code: watchword.OrderInvalid, why: watchword.OrderInvalid},
		"for another device":        {edit: func(o *token.Order) { o.Device = "lamp-2" }, code: watchword.OrderInvalid, why: watchword.AudienceMismatch},
		"with other arguments":      {edit: func(o *token.Order) { o.ArgsHash = jose.HashString("{}") }, code: watchword.OrderInvalid, why: watchword.OrderInvalid},
		"with compact arguments":    {call: func(c *command.Call) { c.Args = []byte(`{"level":40}`) }, code: watchword.OrderInvalid},
		"for another server":        {edit: func(o *token.Order) { o.Server = "https://other.example" }, code: watchword.OrderInvalid, why: watchword.OrderInvalid},
		"for another tenant":        {edit: func(o *token.Order) { o.Server = issuer + "/t/other" }, code: watchword.OrderInvalid, why: watchword.OrderInvalid},
		"that names no server":      {edit: func(o *token.Order) { o.Server = "" }, code: watchword.OrderInvalid, why: watchword.OrderInvalid},
		"by another subject":        {edit: func(o *token.Order) { o.By = "bob" }, code: watchword.OrderInvalid, why: watchword.OrderInvalid},
		"that has expired":          {edit: func(o *token.Order) { o.Issued, o.Expires = at.Add(-time.Hour), at.Add(-time.Minute) }, code: watchword.OrderInvalid, why: watchword.TokenExpired},
		"of more than a day":        {edit: func(o *token.Order) { o.Expires = at.Add(25 * time.Hour) }, code: watchword.OrderInvalid, why: watchword.TokenLifetime},
		"that is no order":          {call: func(c *command.Call) { c.SignedOrder = "x.y.z" }, code: watchword.OrderInvalid, why: watchword.TokenMalformed},
		"whose call names a TTL":    {call: func(c *command.Call) { c.TTL = time.Hour }},
		"whose end is a day ahead":  {edit: func(o *token.Order) { o.Expires = at.Add(24 * time.Hour) }},
		"that policy does not give": {call: func(c *command.Call) { c.Device = "door-1" }, code: watchword.Denied},
	} {
		o := good
		if c.edit != nil {
			c.edit(&o)
		}
		if c.by == nil {
			c.by = s.signs["alice"]
		}
		raw, err := token.SignOrder(c.by, o)
		if c.why == watchword.TokenLifetime || o.Server == "" { // none that our own signs
			raw, err = c.by.Sign(token.TypOrder, fmt.Appendf(nil, `{"iss":%q,"aud":%q,"server":%q,"cmd":%q,"args_hash":%q,"jti":"j","iat":%d,"exp":%d}`,
				o.By, o.Device, o.Server, o.Function, o.ArgsHash, o.Issued.Unix(), o.Expires.Unix()))
		}
		must(t, err)
		call := command.Call{Device: "lamp-1", Function: "lamp.set", Args: args, SignedOrder: raw}
		if c.call != nil {
			c.call(&call)
		}
		row, err := s.Order(t.Context(), s.as("alice"), call, "")
		wantCode(t, name, err, c.code)
		if c.code != "" {
			if e, ok := err.(*watchword.Error); c.why != "" && (!ok || !strings.HasPrefix(e.Detail, "the signed order is not valid: "+string(c.why)+": ")) {
				t.Errorf("%s: got %v, want it to say %s", name, err, c.why)
			}
			continue
		}
		stored, err := s.Args(row)
		must(t, err)
		if !row.Expires.Equal(o.Expires) || row.Order != raw || string(stored) != string(args) {
			t.Errorf("%s: ends %s, want %s; arguments %s", name, row.Expires, o.Expires, stored)
		}
	}
}

func TestCancelling(t *testing.T) {
	s := newSetup(t, options{})
	by := audit.Actor{Tenant: tenant, Subject: "alice", Trace: "why", Versions: watchword.AuthorityVersions{Local: true}}
	row := s.order(command.Call{})
	w := s.Watch(tenant, row.ID)
	defer w.Close()
	got, err := s.Cancel(t.Context(), by, row.ID)
	if err != nil || got.State != watchword.Cancelled {
		t.Fatalf("got %s, %v", got.State, err)
	}
	if told := w.Wait(ended(), row); told.State != watchword.Cancelled {
		t.Errorf("who waits was told %s", told.State)
	}
	if e := s.last(audit.CommandCancel); e.Object != string(row.ID) || e.Actor != "alice" || e.Trace != "why" {
		t.Errorf("the log says %+v", e)
	}
	_, err = s.Cancel(t.Context(), by, row.ID)
	wantCode(t, "again", err, watchword.Conflict)
	_, err = s.Cancel(t.Context(), by, "cmd_other")
	wantCode(t, "what is not there", err, watchword.NotFound)
	by.Tenant = "other"
	_, err = s.Cancel(t.Context(), by, s.order(command.Call{}).ID)
	wantCode(t, "another tenant's", err, watchword.NotFound)
}

// What a device is decided on is read anew where it has changed in the store since.
func TestOrderIsDecidedAgainAfterLabelChange(t *testing.T) {
	s := newSetup(t, options{})
	s.order(command.Call{}) // it is remembered from here on
	_, err := s.store.SetLabels(t.Context(), audit.Actor{Tenant: tenant}, "lamp-1", watchword.Labels{"kind": "meter"}, 0, s.now(), audit.FixedEntry[watchword.Subject](s.entry(audit.DeviceLabel, "lamp-1", nil)))
	must(t, err) // by another node: no waiter here was notified
	order := func() error {
		_, err := s.Order(t.Context(), s.as("alice"), command.Call{Device: "lamp-1", Function: "lamp.set"}, "trace")
		return err
	}
	if err := order(); !errors.Is(err, watchword.ErrAuthorityChanged) {
		t.Errorf("decided on what was remembered: %v", err)
	}
	wantCode(t, "decided again", order(), watchword.Denied)
}

// The subject that ordered a command may read it while policy lets it order the command, and no other subject may.
func TestWhoMayReadACommand(t *testing.T) {
	s := newSetup(t, options{})
	s.subject("bob", watchword.Operator, nil)
	row := s.order(command.Call{})
	wantCode(t, "who ordered it", s.CheckMayRead(t.Context(), s.as("alice"), row), "")
	wantCode(t, "another subject", s.CheckMayRead(t.Context(), s.as("bob"), row), watchword.Denied)
	low, err := s.Order(t.Context(), s.as("bob"), command.Call{Device: "lamp-1", Function: "lamp.set", Args: []byte(`{"level":80}`)}, "")
	must(t, err)
	wantCode(t, "within the bound", s.CheckMayRead(t.Context(), s.as("bob"), low), "")
	low.Args = mustSeal(t, s, string(low.ID), `{"level":81}`)
	wantCode(t, "over the bound", s.CheckMayRead(t.Context(), s.as("bob"), low), watchword.Denied)
	low.Args, low.Device = mustSeal(t, s, string(low.ID), `{"level":80}`), "lamp-9" // deleted, and named by bob's policy
	wantCode(t, "of a device that is gone", s.CheckMayRead(t.Context(), s.as("bob"), low), "")
	row.Device = "lamp-9" // alice may by its labels, which are no longer known
	wantCode(t, "of a device whose labels are gone", s.CheckMayRead(t.Context(), s.as("alice"), row), watchword.Denied)
	narrow, err := s.guard.Check(t.Context(), s.credentialsOf("alice", "fn:lamp-1/other"))
	must(t, err)
	row.Device = "lamp-1"
	wantCode(t, "by a token that does not carry it", s.CheckMayRead(t.Context(), narrow, row), watchword.Denied)
}
