// Package logbudget limits the log lines that clients can cause. Records of all parts go in; those
// within a budget go to another [slog.Handler], with long texts clipped; the others are counted,
// and the counts are logged. A record belongs to a source by its attributes: subject, device,
// client (an MQTT client identifier, which begins with its subject) or remote.
package logbudget

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/internal/truncate"
)

// Limits. There are three budgets, so that records of one kind do not displace those of another: of
// subjects, of unauthenticated peers, and of the server itself. Each allows a burst of Burst lines
// and then Rate lines a second; while less than half of the burst is left, each subject, or network
// of unauthenticated peers, has SourceRate lines a second.
const (
	Burst      = 4000
	Rate       = 100
	SourceRate = 20

	maxSources = 10_000   // distinguished within one second
	maxText    = 512      // bytes of one attribute, or of the message
	maxStack   = 16 << 10 // bytes of the attribute "stack"
)

// Handler is a [slog.Handler] that applies the budgets. It is safe for concurrent use.
type Handler struct {
	next   slog.Handler
	shared *sharedBudgets
	source string // source by the attributes of WithAttrs; "" for none
}

type sharedBudgets struct {
	out   slog.Handler // the unwrapped handler, for the counts
	total atomic.Int64 // records left out since the start

	mu    sync.Mutex
	kinds [kindCount]lineBudget
}

// Kinds of records.
const (
	kindSubject = iota
	kindUnauthenticated
	kindServer
	kindCount
)

var kindNames = [kindCount]string{"subject", "stranger", "server"}

type lineBudget struct {
	available float64
	at        time.Time
	second    time.Time      // when sources were last reset
	sources   map[string]int // lines of each source in this second
	leftOut   map[string]int64
}

// New returns a handler that passes records within the budgets to next.
func New(next slog.Handler) *Handler {
	b := &sharedBudgets{out: next}
	for i := range b.kinds {
		b.kinds[i] = lineBudget{available: Burst, sources: map[string]int{}, leftOut: map[string]int64{}}
	}
	return &Handler{next: next, shared: b}
}

// Enabled returns the wrapped handler's answer.
func (h *Handler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

// WithAttrs returns a handler with the same budgets.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	out := *h
	clipped := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		clipped[i] = truncateAttr(a)
		if s := sourceOf(a); s != "" {
			out.source = preferredSource(out.source, s)
		}
	}
	out.next = h.next.WithAttrs(clipped)
	return &out
}

// WithGroup returns a handler with the same budgets.
func (h *Handler) WithGroup(name string) slog.Handler {
	out := *h
	out.next = h.next.WithGroup(name)
	return &out
}

type traceKey struct{}

// WithTrace returns a context whose records get the attribute trace_id: all lines that a request causes, whichever part writes them.
func WithTrace(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, traceKey{}, id)
}

// Handle passes r on with its texts clipped, or counts it.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	source := h.source
	r.Attrs(func(a slog.Attr) bool {
		source = preferredSource(source, sourceOf(a))
		return true
	})
	kind := kindServer
	switch {
	case strings.HasPrefix(source, subjectPrefix):
		kind = kindSubject
	case source != "", r.Level < slog.LevelInfo: // net/http names the peer in the text only
		kind = kindUnauthenticated
	}
	if !h.shared.take(kind, source, r.Message, time.Now()) {
		return nil
	}
	out := slog.NewRecord(r.Time, r.Level, truncate.Text(r.Message, maxText), r.PC)
	if trace, ok := ctx.Value(traceKey{}).(string); ok {
		out.AddAttrs(slog.String("trace_id", trace))
	}
	r.Attrs(func(a slog.Attr) bool {
		out.AddAttrs(truncateAttr(a))
		return true
	})
	return h.next.Handle(ctx, out)
}

// LeftOut returns how many records were left out since the start.
func (h *Handler) LeftOut() int64 { return h.shared.total.Load() }

// Run logs, each second, how many records were left out in it, until ctx ends, and then once more.
func (h *Handler) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			h.shared.printCounts(ctx, now)
		case <-ctx.Done():
			h.shared.printCounts(context.WithoutCancel(ctx), time.Now())
			return nil
		}
	}
}

// printCounts logs the counts, a line for each kind and message.
func (b *sharedBudgets) printCounts(ctx context.Context, now time.Time) {
	for kind := range b.kinds {
		b.mu.Lock()
		left := b.kinds[kind].leftOut
		if len(left) > 0 {
			b.kinds[kind].leftOut = map[string]int64{}
		}
		b.mu.Unlock()
		for message, n := range left {
			r := slog.NewRecord(now, slog.LevelWarn, "log lines left out", 0)
			r.AddAttrs(slog.String("of", kindNames[kind]), slog.String("line", truncate.Text(message, maxText)), slog.Int64("lines", n))
			if b.out.Enabled(ctx, r.Level) {
				_ = b.out.Handle(ctx, r) // an error of the log cannot be logged
			}
		}
	}
}

// take counts a line and reports whether it is within the budget.
func (b *sharedBudgets) take(kind int, source, message string, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := &b.kinds[kind]
	if d := now.Sub(k.at); d > 0 {
		if !k.at.IsZero() {
			k.available = min(Burst, k.available+d.Seconds()*Rate)
		}
		k.at = now
	}
	if now.Sub(k.second) >= time.Second {
		k.second = now
		clear(k.sources)
	}
	fits := k.available >= 1
	if n, known := k.sources[source]; source != "" && (known || len(k.sources) < maxSources) {
		k.sources[source] = n + 1
		fits = fits && (k.available >= Burst/2 || n < SourceRate)
	}
	if !fits {
		b.total.Add(1)
		if _, known := k.leftOut[message]; !known && len(k.leftOut) >= maxSources {
			message = "another"
		}
		k.leftOut[message]++ // few, since messages are constants of the program
		return false
	}
	k.available--
	return true
}

const subjectPrefix = "s:"

// sourceOf returns the source that an attribute names; "" for none.
func sourceOf(a slog.Attr) string {
	v := a.Value.Resolve()
	if v.Kind() != slog.KindString || v.String() == "" {
		return ""
	}
	switch s := v.String(); a.Key {
	case "subject", "device":
		return subjectPrefix + truncate.Text(s, maxText)
	case "client":
		id, _, _ := strings.Cut(s, "/")
		return subjectPrefix + truncate.Text(id, maxText)
	case "remote":
		return addressPrefix(s)
	}
	return ""
}

// preferredSource prefers a subject to an address, and the first source to later ones.
func preferredSource(old, s string) string {
	if old == "" || !strings.HasPrefix(old, subjectPrefix) && strings.HasPrefix(s, subjectPrefix) {
		return s
	}
	return old
}

// addressPrefix returns the network that an address is counted with.
func addressPrefix(s string) string {
	a, err := netip.ParseAddr(s)
	if ap, perr := netip.ParseAddrPort(s); perr == nil {
		a, err = ap.Addr(), nil
	}
	if err != nil {
		return "an address"
	}
	return fair.Network(a.Unmap()).String()
}

// truncateAttr clips the texts of an attribute.
func truncateAttr(a slog.Attr) slog.Attr {
	v := a.Value.Resolve()
	limit := maxText
	if a.Key == "stack" {
		limit = maxStack
	}
	switch v.Kind() {
	case slog.KindString:
		if s := v.String(); len(s) > limit {
			return slog.String(a.Key, truncate.Text(s, limit))
		}
	case slog.KindAny:
		if err, ok := v.Any().(error); ok {
			return slog.String(a.Key, truncate.Text(err.Error(), limit))
		}
	case slog.KindGroup:
		in := v.Group()
		out := make([]slog.Attr, len(in))
		for i := range in {
			out[i] = truncateAttr(in[i])
		}
		return slog.Attr{Key: a.Key, Value: slog.GroupValue(out...)}
	}
	return a
}
