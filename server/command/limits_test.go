package command_test

import (
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/command"
)

// takes returns the numbers that a line hands over.
func takes(t *testing.T, l *command.Delivery, limit int) (seqs []int64) {
	t.Helper()
	cs, _, err := l.Take(t.Context(), 0, "", limit)
	must(t, err)
	for _, c := range cs {
		seqs = append(seqs, c.Seq)
	}
	return seqs
}

// long is arguments of that many bytes.
func long(n int) []byte {
	b := []byte(`{"text":"`)
	for len(b) < n-2 {
		b = append(b, 'x')
	}
	return append(b, `"}`...)
}

func TestACommandTooLargeForItsClientIsUndeliverable(t *testing.T) {
	for name, fit := range map[string]command.Limits{
		"a large JWE":    {MaxJWE: 2000},
		"a large packet": {MaxPacket: 2100, PacketSize: func(jwe int) int { return jwe + 100 }},
		"both":           {MaxJWE: 2000, MaxPacket: 2050, PacketSize: func(jwe int) int { return jwe }},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSetup(t, options{})
			var large []command.Row
			for range 3 {
				large = append(large, s.order(command.Call{Args: long(2000)}))
			}
			small := s.order(command.Call{})
			w := s.Watch(tenant, large[0].ID)
			defer w.Close()
			l := s.Attach(tenant, "lamp-1")
			defer l.Close()
			l.SetLimits(fit)
			if seqs := takes(t, l, 1); len(seqs) != 1 || seqs[0] != small.Seq {
				t.Errorf("handed over: %v, want %d", seqs, small.Seq)
			}
			limit := max(fit.MaxJWE, 2000)
			if fit.MaxJWE == 0 {
				limit = fit.MaxPacket
			}
			for _, c := range large {
				row, err := s.Command(t.Context(), tenant, c.ID)
				must(t, err)
				if r := row.Reason; row.State != watchword.Undeliverable || !row.SentAt.IsZero() || r.Code != watchword.TooLarge || r.Max != limit || r.Size <= limit || r.Detail == "" {
					t.Errorf("number %d is %s, sent %s, because %+v", c.Seq, row.State, row.SentAt, r)
				}
				hs, err := s.store.Handovers(t.Context(), tenant, c.ID)
				must(t, err)
				if len(hs) != 0 {
					t.Errorf("number %d was handed over %d times", c.Seq, len(hs))
				}
			}
			if row := w.Wait(ended(), large[0]); row.State != watchword.Undeliverable {
				t.Errorf("who waits was told %s", row.State)
			}
		})
	}
}

// The bound is a bound: as many bytes pass.
func TestACommandOfTheMostBytesPasses(t *testing.T) {
	s := newSetup(t, options{})
	l := s.Attach(tenant, "lamp-1")
	defer l.Close()
	first := s.order(command.Call{})
	cs, _, err := l.Take(t.Context(), 0, "", 1)
	must(t, err)
	must(t, l.Acknowledge(t.Context(), []int64{first.Seq}))
	size := len(cs[0].JWE)
	l.SetLimits(command.Limits{MaxJWE: size, MaxPacket: size, PacketSize: func(jwe int) int { return jwe }})
	second := s.order(command.Call{}) // as long as the first
	if seqs := takes(t, l, 10); len(seqs) != 1 || seqs[0] != second.Seq {
		t.Errorf("handed over: %v, want %d", seqs, second.Seq)
	}
	must(t, l.Acknowledge(t.Context(), []int64{second.Seq}))
	for _, fit := range []command.Limits{{MaxJWE: size - 1}, {MaxPacket: size - 1, PacketSize: func(jwe int) int { return jwe }}} {
		l.SetLimits(fit)
		c := s.order(command.Call{})
		if seqs := takes(t, l, 10); len(seqs) != 0 {
			t.Errorf("handed over: %v", seqs)
		}
		row, err := s.Command(t.Context(), tenant, c.ID)
		must(t, err)
		if row.Reason == nil || row.Reason.Size != size || row.Reason.Max != size-1 {
			t.Errorf("because %+v, want %d and %d bytes", row.Reason, size, size-1)
		}
	}
}

// Of a command with its proof it is not known before how long it is: it was not sent all the same.
func TestAProofThatMakesACommandTooLarge(t *testing.T) {
	log := &logOf{size: 1000}
	s := newSetup(t, options{service: command.Options{Log: log}})
	first := s.order(command.Call{})
	l := s.Attach(tenant, "lamp-1")
	defer l.Close()
	l.RequireLogProofs(0, 3)
	cs, _, err := l.Take(t.Context(), 0, "", 10)
	must(t, err)
	size := len(cs[0].JWE)
	sent, err := s.Command(t.Context(), tenant, first.ID)
	must(t, err)
	s.pass(time.Second)
	l.SetLimits(command.Limits{MaxJWE: size - 1})
	second := s.order(command.Call{})
	if seqs := takes(t, l, 10); len(seqs) != 0 {
		t.Errorf("handed over: %v", seqs)
	}
	for id, at := range map[watchword.CommandID]time.Time{first.ID: sent.SentAt, second.ID: {}} {
		row, err := s.Command(t.Context(), tenant, id)
		must(t, err)
		if row.State != watchword.Undeliverable || !row.SentAt.Equal(at) || row.Reason.Max != size-1 {
			t.Errorf("%s is %s, sent %s (want %s), because %+v", id, row.State, row.SentAt, at, row.Reason)
		}
	}
	l.SetLimits(command.Limits{MaxJWE: size + 64}) // the proof names a larger log
	third := s.order(command.Call{})
	if seqs := takes(t, l, 10); len(seqs) != 1 || seqs[0] != third.Seq {
		t.Errorf("handed over: %v, want %d", seqs, third.Seq)
	}
}

// What turns out too large when it is to be written ends too, unless it has ended before.
func TestUnwritableCommandsAreUndeliverable(t *testing.T) {
	s := newSetup(t, options{})
	first, second := s.order(command.Call{}), s.order(command.Call{})
	l := s.Attach(tenant, "lamp-1")
	defer l.Close()
	cs, _, err := l.Take(t.Context(), 0, "", 10)
	must(t, err)
	must(t, l.Acknowledge(t.Context(), []int64{2}))
	for _, c := range cs {
		must(t, l.MarkUndeliverable(t.Context(), c, command.PacketTooLarge(2200, 2100)))
	}
	row, err := s.Command(t.Context(), tenant, first.ID)
	must(t, err)
	if r := row.Reason; row.State != watchword.Undeliverable || !row.SentAt.IsZero() || r.Size != 2200 || r.Max != 2100 {
		t.Errorf("the first is %s, sent %s, because %+v", row.State, row.SentAt, r)
	}
	if got := s.state(second.ID); got != watchword.Delivered {
		t.Errorf("the second is %s", got)
	}
}

// If few commands of a full page fit, those are handed over: the next ones follow with the next call, so that no more are
// handed over than were requested.
func TestAPageWithFewDeliverableCommands(t *testing.T) {
	s := newSetup(t, options{})
	for range 2 {
		s.order(command.Call{Args: long(2000)})
	}
	small := []command.Row{s.order(command.Call{}), s.order(command.Call{}), s.order(command.Call{}), s.order(command.Call{})}
	l := s.Attach(tenant, "lamp-1")
	defer l.Close()
	l.SetLimits(command.Limits{MaxJWE: 2000})
	cs, more, err := l.Take(t.Context(), 0, "", 3)
	must(t, err)
	if len(cs) != 1 || cs[0].Seq != small[0].Seq || !more {
		t.Errorf("%d commands, more %v; want number %d alone, and more", len(cs), more, small[0].Seq)
	}
}

// argsOf is a safe in which the arguments of the first command are others.
type argsOf struct {
	command.Sealer
	context, args string
}

func (a *argsOf) Open(context string, sealed []byte) ([]byte, error) {
	if strings.HasPrefix(context, "args/") && (a.context == "" || a.context == context) {
		a.context = context
		return []byte(a.args), nil
	}
	return a.Sealer.Open(context, sealed)
}

// A command that was kept by a build that checked less, and that no device would take, ends
// and does not keep back those behind it.
func TestACommandThatNoDeviceTakesIsUndeliverable(t *testing.T) {
	s := newSetup(t, options{safe: func(sealer command.Sealer) command.Sealer {
		return &argsOf{Sealer: sealer, args: `{"a":[[[[[[[1]]]]]]]}`}
	}})
	deep, behind := s.order(command.Call{}), s.order(command.Call{})
	l := s.Attach(tenant, "lamp-1")
	defer l.Close()
	if seqs := takes(t, l, 2); len(seqs) != 1 || seqs[0] != behind.Seq {
		t.Errorf("handed over: %v, want %d", seqs, behind.Seq)
	}
	row, err := s.Command(t.Context(), tenant, deep.ID)
	must(t, err)
	if row.State != watchword.Undeliverable || row.Reason.Code != watchword.BadRequest {
		t.Errorf("it is %s, because %+v", row.State, row.Reason)
	}
}
