// Package logbudget bounds what others can have a server print. In come the records of
// all its parts, out they go to another [slog.Handler], clipped and within a budget;
// what is left out is counted, and the count is printed. A record is somebody's by its
// attributes: subject, device, client (an MQTT client identifier, which begins with its
// subject) or remote.
package logbudget

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/watchword-iot/watchword/internal/rates"
)

// The bounds. There are three budgets, so that nobody's records hide those of another
// kind: of subjects, of strangers, who are known by address alone, and of the server's
// own. Of each, Burst lines may come at once after a quiet time, and Rate a second in a
// long flood; where less than half of the burst is left, each subject, or network of a
// stranger, has SourceRate lines of each second.
const (
	Burst      = 4000
	Rate       = 100
	SourceRate = 20

	maxSources = 10_000   // that are told apart in one second
	maxText    = 512      // bytes of one attribute, or of the message
	maxStack   = 16 << 10 // of the one named "stack"
)

// Handler is a [slog.Handler] with the budgets. It is safe for concurrent use.
type Handler struct {
	next   slog.Handler
	shared *budgets
	source string // of attributes that were given by With; "" for none
}

type budgets struct {
	out   slog.Handler // as it was given, for the counts
	total atomic.Int64 // left out since the start

	mu    sync.Mutex
	kinds [kinds]budget
}

// The kinds of records, by whose they are.
const (
	subjects = iota
	strangers
	own
	kinds
)

var kindNames = [kinds]string{"subject", "stranger", "server"}

type budget struct {
	have    float64
	at      time.Time
	second  time.Time      // when sources began to be counted
	sources map[string]int // lines in this second
	left    map[string]int64
}

// New returns a handler that passes on to next what fits.
func New(next slog.Handler) *Handler {
	b := &budgets{out: next}
	for i := range b.kinds {
		b.kinds[i] = budget{have: Burst, sources: map[string]int{}, left: map[string]int64{}}
	}
	return &Handler{next: next, shared: b}
}

// Enabled is next's.
func (h *Handler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

// WithAttrs returns a handler under the same budgets.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	out := *h
	clipped := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		clipped[i] = clip(a)
		if s := sourceOf(a); s != "" {
			out.source = better(out.source, s)
		}
	}
	out.next = h.next.WithAttrs(clipped)
	return &out
}

// WithGroup returns a handler under the same budgets.
func (h *Handler) WithGroup(name string) slog.Handler {
	out := *h
	out.next = h.next.WithGroup(name)
	return &out
}

// Handle passes r on, clipped, or counts it.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	source := h.source
	r.Attrs(func(a slog.Attr) bool {
		source = better(source, sourceOf(a))
		return true
	})
	kind := own
	switch {
	case strings.HasPrefix(source, subjectPrefix):
		kind = subjects
	case source != "", r.Level < slog.LevelInfo: // a library names the peer of a connection in its text, and in no attribute
		kind = strangers
	}
	if !h.shared.take(kind, source, r.Message, time.Now()) {
		return nil
	}
	out := slog.NewRecord(r.Time, r.Level, text(r.Message, maxText), r.PC)
	r.Attrs(func(a slog.Attr) bool {
		out.AddAttrs(clip(a))
		return true
	})
	return h.next.Handle(ctx, out)
}

// LeftOut returns how many records were left out since the start.
func (h *Handler) LeftOut() int64 { return h.shared.total.Load() }

// Run prints each second what was left out in it, if anything was, until ctx ends, and
// then once more.
func (h *Handler) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			h.shared.say(ctx, now)
		case <-ctx.Done():
			h.shared.say(context.WithoutCancel(ctx), time.Now())
			return nil
		}
	}
}

// say prints the counts, a line for each kind and message.
func (b *budgets) say(ctx context.Context, now time.Time) {
	for kind := range b.kinds {
		b.mu.Lock()
		left := b.kinds[kind].left
		if len(left) > 0 {
			b.kinds[kind].left = map[string]int64{}
		}
		b.mu.Unlock()
		for message, n := range left {
			r := slog.NewRecord(now, slog.LevelWarn, "log lines left out", 0)
			r.AddAttrs(slog.String("of", kindNames[kind]), slog.String("line", text(message, maxText)), slog.Int64("lines", n))
			if b.out.Enabled(ctx, r.Level) {
				_ = b.out.Handle(ctx, r) // there is nowhere left to say so
			}
		}
	}
}

// take reports whether one more line fits, and counts it if not.
func (b *budgets) take(kind int, source, message string, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := &b.kinds[kind]
	if d := now.Sub(k.at); d > 0 {
		if !k.at.IsZero() {
			k.have = min(Burst, k.have+d.Seconds()*Rate)
		}
		k.at = now
	}
	if now.Sub(k.second) >= time.Second {
		k.second = now
		clear(k.sources)
	}
	fits := k.have >= 1
	if n, known := k.sources[source]; source != "" && (known || len(k.sources) < maxSources) {
		k.sources[source] = n + 1
		fits = fits && (k.have >= Burst/2 || n < SourceRate)
	}
	if !fits {
		b.total.Add(1)
		if _, known := k.left[message]; !known && len(k.left) >= maxSources {
			message = "another"
		}
		k.left[message]++ // messages are the program's own: few
		return false
	}
	k.have--
	return true
}

const subjectPrefix = "s:"

// sourceOf is whose a record is by one of its attributes; "" where it does not say.
func sourceOf(a slog.Attr) string {
	v := a.Value.Resolve()
	if v.Kind() != slog.KindString || v.String() == "" {
		return ""
	}
	switch s := v.String(); a.Key {
	case "subject", "device":
		return subjectPrefix + text(s, maxText)
	case "client":
		id, _, _ := strings.Cut(s, "/")
		return subjectPrefix + text(id, maxText)
	case "remote":
		return network(s)
	}
	return ""
}

// better prefers a subject to an address, and what was said first.
func better(old, s string) string {
	if old == "" || !strings.HasPrefix(old, subjectPrefix) && strings.HasPrefix(s, subjectPrefix) {
		return s
	}
	return old
}

// network is whom an address is counted with.
func network(s string) string {
	a, err := netip.ParseAddr(s)
	if ap, perr := netip.ParseAddrPort(s); perr == nil {
		a, err = ap.Addr(), nil
	}
	if err != nil {
		return "an address"
	}
	return rates.Network(a.Unmap()).String()
}

// clip bounds the texts of an attribute.
func clip(a slog.Attr) slog.Attr {
	v := a.Value.Resolve()
	most := maxText
	if a.Key == "stack" {
		most = maxStack
	}
	switch v.Kind() {
	case slog.KindString:
		if s := v.String(); len(s) > most {
			return slog.String(a.Key, text(s, most))
		}
	case slog.KindAny:
		if err, ok := v.Any().(error); ok {
			return slog.String(a.Key, text(err.Error(), most))
		}
	case slog.KindGroup:
		in := v.Group()
		out := make([]slog.Attr, len(in))
		for i := range in {
			out[i] = clip(in[i])
		}
		return slog.Attr{Key: a.Key, Value: slog.GroupValue(out...)}
	}
	return a
}

// text is at most so many bytes of s, and a mark where it is less than all.
func text(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most] + "…"
}
