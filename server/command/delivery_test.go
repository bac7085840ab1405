package command_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
)

func TestHandover(t *testing.T) {
	s := newSetup(t, options{})
	one, two := s.order(command.Call{Args: []byte(`{"level":1}`)}), s.order(command.Call{TTL: time.Hour})
	watch := s.Watch(tenant, one.ID)
	defer watch.Close()
	l := s.Attach(tenant, "lamp-1")
	defer l.Close()
	got := s.next(l, 0, "")
	if len(got) != 2 || got[0].Command.ID != one.ID || got[1].Command.ID != two.ID {
		t.Fatalf("got %+v", got)
	}
	c := got[0].Command
	if c.Seq != 1 || c.Epoch != 1 || c.Function != "lamp.set" || string(c.Args) != `{"level":1}` || c.By != "alice" || c.Nonce != "" || !c.Expires.Equal(one.Expires) ||
		got[0].SealedCommand.Seq != 1 || got[0].SealedCommand.Epoch != 1 || !got[0].SealedCommand.Expires.Equal(one.Expires) {
		t.Errorf("got %+v", got[0])
	}
	if row := watch.Wait(ended(), one); row.State != watchword.Sent {
		t.Errorf("who waits was told %s", row.State)
	}
	e := s.last(audit.CommandHandOver)
	if e.Object != string(two.ID) || e.Data["device"] != "lamp-1" || e.Data["ch"] != jose.HashString(got[1].jws) || e.Data["seq"] != "2" || e.Data["epoch"] != "1" ||
		e.Data["command_key"] != string(s.ring.CommandSigner().Public().ID()) {
		t.Errorf("the log says %+v", e)
	}
	// The same bytes again for the same nonce, others for another.
	again := s.next(l, 0, "")
	if len(again) != 2 || again[0].jws != got[0].jws || again[0].JWE == got[0].JWE {
		t.Error("a second hand-over is another version, or the same sealing")
	}
	nonce := s.next(l, 0, "n1")
	if len(nonce) != 2 || nonce[0].jws == got[0].jws || nonce[0].Command.Nonce != "n1" {
		t.Error("a version for a nonce does not carry it")
	}
	if back := s.next(l, 0, ""); back[0].jws != got[0].jws {
		t.Error("the version of before is not found again")
	}
	if after := s.next(l, 1, ""); len(after) != 1 || after[0].Command.ID != two.ID {
		t.Errorf("after 1: %+v", after)
	}
	if none := s.next(l, 2, ""); none != nil {
		t.Errorf("after 2: %+v", none)
	}
	hs, err := s.store.Handovers(t.Context(), tenant, one.ID)
	must(t, err)
	if len(hs) != 2 {
		t.Errorf("%d versions are kept, want 2", len(hs))
	}
}

func TestTakeReturnsAtMostLimit(t *testing.T) {
	s := newSetup(t, options{})
	l := s.Attach(tenant, "lamp-1")
	defer l.Close()
	for range 3 {
		s.order(command.Call{})
	}
	for limit, want := range map[int]bool{2: true, 3: true, 4: false} {
		cs, more, err := l.Take(t.Context(), 0, "", limit)
		must(t, err)
		if len(cs) != min(limit, 3) || more != want {
			t.Errorf("of 3 with a limit of %d: %d, more %v", limit, len(cs), more)
		}
	}
}

// keysOf is a service's keys of which some no longer count.
type keysOf struct {
	command.Keys
	gone map[watchword.KeyID]bool
}

func (k keysOf) CommandKeyValid(id watchword.KeyID) bool {
	return !k.gone[id] && k.Keys.CommandKeyValid(id)
}

func TestAVersionByARevokedKeyIsResigned(t *testing.T) {
	gone := map[watchword.KeyID]bool{}
	s := newSetup(t, options{keys: func(k command.Keys) command.Keys { return keysOf{k, gone} }})
	s.order(command.Call{})
	l := s.Attach(tenant, "lamp-1")
	defer l.Close()
	first := s.next(l, 0, "")
	gone[s.ring.CommandSigner().Public().ID()] = true
	s.pass(time.Second)
	second := s.next(l, 0, "")
	if len(second) != 1 || second[0].jws == first[0].jws {
		t.Error("a version goes out again whose key was revoked")
	}
}

func TestCommandsAreSealedToTheCurrentKey(t *testing.T) {
	s := newSetup(t, options{})
	s.order(command.Call{})
	l := s.Attach(tenant, "lamp-1")
	defer l.Close()
	before := s.next(l, 0, "")
	s.rekey("lamp-1")
	after := s.next(l, 0, "") // opened with the new key
	if len(after) != 1 || after[0].jws != before[0].jws {
		t.Errorf("got %+v", after)
	}
}

func TestSubjectsWithoutDelivery(t *testing.T) {
	s := newSetup(t, options{})
	s.order(command.Call{})
	_, err := s.store.Suspend(t.Context(), audit.Actor{Tenant: tenant}, "lamp-1", s.now(), audit.FixedEntry[watchword.Subject](s.entry(audit.DeviceSuspend, "lamp-1", nil)))
	must(t, err)
	s.changed("lamp-1")
	l := s.Attach(tenant, "lamp-1")
	defer l.Close()
	_, _, err = l.Take(t.Context(), 0, "", 10)
	wantCode(t, "a suspended device", err, watchword.SubjectSuspended)
	_, err = l.Next(t.Context(), 0, "", 10, time.Minute)
	wantCode(t, "a suspended device that waits", err, watchword.SubjectSuspended)
	must(t, s.store.CreateSubject(t.Context(), watchword.Subject{Tenant: tenant, ID: "lamp-new", Kind: watchword.Device, State: watchword.New, Labels: watchword.Labels{"kind": "lamp"}}, nil, s.entry(audit.DeviceCreate, "lamp-new", nil)))
	s.order(command.Call{Device: "lamp-new"})
	n := s.Attach(tenant, "lamp-new")
	defer n.Close()
	_, _, err = n.Take(t.Context(), 0, "", 10)
	wantCode(t, "a device without keys", err, watchword.SubjectNew)
}

// partly fails the hand-over of some commands.
type partly struct {
	command.Store
	fail map[watchword.CommandID]error
}

func (p partly) AddHandover(ctx context.Context, t watchword.TenantID, id watchword.CommandID, h command.Handover, e audit.EntryOf[command.Row]) (command.Row, int64, error) {
	if err := p.fail[id]; err != nil {
		return command.Row{}, 0, err
	}
	return p.Store.AddHandover(ctx, t, id, h, e)
}

func TestHandoverContinuesAfterFailures(t *testing.T) {
	fail := map[watchword.CommandID]error{}
	s := newSetup(t, options{store: func(st command.Store) command.Store { return partly{st, fail} }})
	for i := range 3 {
		s.order(command.Call{ID: watchword.CommandID(fmt.Sprint("cmd_", i))})
	}
	l := s.Attach(tenant, "lamp-1")
	defer l.Close()
	disk := errors.New("the disk is full")
	for _, c := range []struct {
		name string
		fail map[watchword.CommandID]error
		want []watchword.CommandID
		more bool
		err  watchword.Code
	}{
		{"one that was cancelled meanwhile is passed over", map[watchword.CommandID]error{"cmd_1": watchword.Refuse(watchword.Conflict, "over")}, []watchword.CommandID{"cmd_0", "cmd_2"}, false, ""},
		{"one that was signed too often too", map[watchword.CommandID]error{"cmd_0": watchword.Refuse(watchword.Busy, "often")}, []watchword.CommandID{"cmd_1", "cmd_2"}, false, ""},
		{"where the store fails, what went before is given", map[watchword.CommandID]error{"cmd_1": disk}, []watchword.CommandID{"cmd_0"}, true, ""},
		{"where nothing went before, the failure is", map[watchword.CommandID]error{"cmd_0": disk}, nil, false, watchword.Internal},
	} {
		clear(fail)
		for id, err := range c.fail {
			fail[id] = err
		}
		cs, more, err := l.Take(t.Context(), 0, "", 10)
		wantCode(t, c.name, err, c.err)
		if more != c.more || len(cs) != len(c.want) {
			t.Errorf("%s: got %d, more %v", c.name, len(cs), more)
			continue
		}
		for i, want := range c.want {
			if cs[i].ID != want {
				t.Errorf("%s: got %s, want %s", c.name, cs[i].ID, want)
			}
		}
	}
}

func TestCommandsGoToTheNewestDelivery(t *testing.T) {
	s := newSetup(t, options{})
	rung := map[string]int{}
	ring := func(name string) func() { return func() { rung[name]++ } }
	first := s.AttachFunc(tenant, "lamp-1", ring("first"))
	other := s.AttachFunc(tenant, "lamp-2", ring("other"))
	defer other.Close()
	s.order(command.Call{})
	second := s.AttachFunc(tenant, "lamp-1", ring("second"))
	s.order(command.Call{})
	if got := fmt.Sprint(rung); got != "map[first:1 second:1]" {
		t.Errorf("rung: %s", got)
	}
	if cs := s.next(first, 0, ""); cs != nil {
		t.Errorf("the line of before got %d", len(cs))
	}
	if cs := s.next(second, 0, ""); len(cs) != 2 {
		t.Errorf("the newest line got %d", len(cs))
	}
	second.Close()
	if rung["first"] != 2 {
		t.Errorf("the line of before was rung %d times after the newest closed, want 2", rung["first"])
	}
	if cs := s.next(first, 0, ""); len(cs) != 2 {
		t.Errorf("the line of before got %d", len(cs))
	}
	second.Close() // again: nothing
	first.Close()
	if cs := s.next(first, 0, ""); cs != nil {
		t.Errorf("a closed line got %d", len(cs))
	}
	s.order(command.Call{})
	if rung["first"] != 2 || rung["second"] != 1 || rung["other"] != 0 {
		t.Errorf("rung: %v", rung)
	}
	// One of three that closes in the middle leaves the others as they are.
	a, b, c := s.AttachFunc(tenant, "lamp-1", ring("a")), s.AttachFunc(tenant, "lamp-1", ring("b")), s.AttachFunc(tenant, "lamp-1", ring("c"))
	b.Close()
	if cs := s.next(c, 0, ""); len(cs) != 3 {
		t.Errorf("the newest got %d", len(cs))
	}
	c.Close()
	if cs := s.next(a, 0, ""); len(cs) != 3 || rung["b"] != 0 {
		t.Errorf("the first got %d; rung: %v", len(cs), rung)
	}
	a.Close()
}

func TestDeliveryWaitsForCommands(t *testing.T) {
	s := newSetup(t, options{})
	l := s.Attach(tenant, "lamp-1")
	if cs, err := l.Next(t.Context(), 0, "", 10, time.Millisecond); err != nil || cs != nil {
		t.Errorf("after its pause: %v, %v", cs, err)
	}
	if cs, err := l.Next(ended(), 0, "", 10, time.Minute); err != nil || cs != nil {
		t.Errorf("after its context: %v, %v", cs, err)
	}
	got := make(chan []command.SealedCommand, 1)
	wait := func(l *command.Delivery) {
		cs, err := l.Next(short(t), 0, "", 10, time.Minute)
		if err != nil {
			t.Error(err)
		}
		got <- cs
	}
	go wait(l)
	row := s.order(command.Call{})
	if cs := testwait.For(t, "the command", got); len(cs) != 1 || cs[0].ID != row.ID {
		t.Errorf("got %+v", cs)
	}
	taken := make(chan error, 1)
	go func() {
		_, err := l.Next(short(t), 1, "", 10, time.Minute)
		taken <- err
	}()
	newer := s.Attach(tenant, "lamp-1")
	wantCode(t, "a newer connection", testwait.For(t, "the end of the older line", taken), watchword.Conflict)
	l.Close() // what was taken over leaves the newer one as it is
	if cs := s.next(newer, 0, ""); len(cs) != 1 {
		t.Errorf("the newer line got %d", len(cs))
	}
	newer.Close()
}

func TestAcknowledgements(t *testing.T) {
	s := newSetup(t, options{})
	one, two, three := s.order(command.Call{}), s.order(command.Call{}), s.order(command.Call{})
	l := s.Attach(tenant, "lamp-1")
	defer l.Close()
	cs, _, err := l.Take(t.Context(), 0, "", 2)
	must(t, err)
	if len(cs) != 2 {
		t.Fatalf("got %d", len(cs))
	}
	w := s.Watch(tenant, one.ID)
	defer w.Close()
	if _, err := l.AcknowledgeUpTo(t.Context(), 2, 2); watchword.CodeOf(err) != watchword.Superseded {
		t.Errorf("a device of a higher epoch: %v", err)
	}
	for _, c := range []struct {
		name                string
		epoch, seq, after   int64
		first, second, last watchword.CommandState
	}{
		{"of an earlier epoch", 0, 2, 0, watchword.Sent, watchword.Sent, watchword.Queued},
		{"nothing", 1, 0, 0, watchword.Sent, watchword.Sent, watchword.Queued},
		{"below nothing", 1, -1, 0, watchword.Sent, watchword.Sent, watchword.Queued},
		{"the first", 1, 1, 1, watchword.Delivered, watchword.Sent, watchword.Queued},
		{"more than it was given", 1, 3, 3, watchword.Delivered, watchword.Delivered, watchword.Queued},
	} {
		after, err := l.AcknowledgeUpTo(t.Context(), c.epoch, c.seq)
		must(t, err)
		if after != c.after {
			t.Errorf("%s: goes on after %d, want %d", c.name, after, c.after)
		}
		for id, want := range map[watchword.CommandID]watchword.CommandState{one.ID: c.first, two.ID: c.second, three.ID: c.last} {
			if got := s.state(id); got != want {
				t.Errorf("%s: %s is %s, want %s", c.name, id, got, want)
			}
		}
	}
	if row := w.Wait(ended(), one); row.State != watchword.Delivered {
		t.Errorf("who waits was told %s", row.State)
	}
}

// logOf is a log as a service asks it.
type logOf struct {
	size  int64 // of the cosigned checkpoint; 0: none
	asked []int64
	from  []int64
}

func (l *logOf) LatestCosigned(seq int64) (ledger.Checkpoint, []byte, bool) {
	l.asked = append(l.asked, seq)
	return ledger.Checkpoint{Origin: "hub.example", Size: l.size}, []byte("note"), seq <= l.size
}

func (l *logOf) ProveAt(_ context.Context, c ledger.Checkpoint, note []byte, seq int64) (ledger.Proof, error) {
	return ledger.Proof{Index: seq - 1, Body: []byte("{}"), Checkpoint: append([]byte("hub.example\n"+fmt.Sprint(c.Size)+"\n\n"), note...)}, nil
}

func (l *logOf) ConsistencyProof(_ context.Context, _ ledger.Checkpoint, size int64) ([]ledger.Hash, error) {
	l.from = append(l.from, size)
	return nil, nil
}

// A device that executes only logged commands gets its commands when a checkpoint has them, in
// order, each with the proof from the size that it saw last.
func TestADeliveryThatNeedsLogProofs(t *testing.T) {
	log := &logOf{}
	s := newSetup(t, options{service: command.Options{Log: log}})
	rung := 0
	l := s.AttachFunc(tenant, "lamp-1", func() { rung++ })
	defer l.Close()
	l.RequireLogProofs(0, 3)
	s.order(command.Call{})
	take := func() []command.SealedCommand {
		t.Helper()
		cs, _, err := l.Take(t.Context(), 0, "", 10)
		must(t, err)
		return cs
	}
	s.CheckpointPublished()
	if rung != 1 { // by the order alone
		t.Errorf("rung %d times before it asked, want 1", rung)
	}
	if cs := take(); cs != nil {
		t.Errorf("got %d that no checkpoint has", len(cs))
	}
	rung = 0
	s.CheckpointPublished()
	s.CheckpointPublished()
	if rung != 1 {
		t.Errorf("rung %d times by two checkpoints, want once, since it has not asked again", rung)
	}
	log.size = log.asked[0]
	cs := take()
	if len(cs) != 1 || len(log.from) != 1 || log.from[0] != 3 {
		t.Fatalf("got %d, proved from %v", len(cs), log.from)
	}
	plain, cty, err := s.opens["lamp-1"].Decrypt(cs[0].JWE, 1<<20)
	must(t, err)
	logged, err := ledger.ParseLoggedJWS(plain)
	if err != nil || cty != ledger.LoggedType {
		t.Errorf("the content is %q: %v", cty, err)
	}
	_ = logged
	rung = 0
	s.CheckpointPublished()
	if rung != 0 {
		t.Error("rung though it has all")
	}
	if take(); len(log.from) != 2 || log.from[1] != log.size {
		t.Errorf("proved from %v, want from %d, the size that it was given last", log.from, log.size)
	}
	// One that has seen more than there is gets nothing.
	l.RequireLogProofs(0, log.size)
	if cs := take(); len(cs) != 1 {
		t.Errorf("one that has seen all of it gets %d", len(cs))
	}
	l.RequireLogProofs(0, log.size+1)
	_, _, err = l.Take(t.Context(), 0, "", 10)
	wantCode(t, "a longer log was seen", err, watchword.Conflict)
	// A closed line is not rung.
	log.size = 0
	l.RequireLogProofs(0, 0)
	take()
	rung = 0
	l.Close()
	s.CheckpointPublished()
	if rung != 0 {
		t.Error("a closed line was rung")
	}
}
