package logbudget_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword/internal/logbudget"
	"github.com/watchword-iot/watchword/internal/testwait"
)

// printed runs f with a logger under a budget, and returns what was printed.
func printed(t *testing.T, f func(log *slog.Logger, h *logbudget.Handler)) string {
	t.Helper()
	var out bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		h := logbudget.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			_ = h.Run(ctx) // nil always
			close(done)
		}()
		f(slog.New(h), h)
		cancel()
		testwait.For(t, "the end of the handler", done)
	})
	return out.String()
}

func TestOneSourceCannotUseAllLogBudget(t *testing.T) {
	const flood, seconds = 30_000, 10
	var left int64
	out := printed(t, func(log *slog.Logger, h *logbudget.Handler) {
		for s := range seconds {
			for range flood {
				log.Info("publish refused", slog.String("subject", "lamp-1"), slog.String("remote", "192.0.2.1:1"))
			}
			log.Info("publish refused", slog.String("subject", "lamp-2"), slog.Int("second", s))
			log.With(slog.String("client", "lamp-1/2")).Info("will refused") // lamp-1 by another name
			log.With(slog.String("client", "lamp-3/2")).Info("will refused")
			log.Info("request refused", slog.String("remote", "192.0.2.1:1"))
			log.Error("housekeeping")
			time.Sleep(time.Second)
		}
		left = h.LeftOut()
	})
	for what, want := range map[string][2]int{
		"subject=lamp-1":         {logbudget.Burst/2 + 1, logbudget.Burst/2 + seconds*(logbudget.SourceRate+logbudget.Rate)},
		"subject=lamp-2":         {seconds, seconds},
		"client=lamp-3/2":        {seconds, seconds},
		"\"request refused\"":    {seconds, seconds},
		"msg=housekeeping":       {seconds, seconds},
		"\"log lines left out\"": {seconds, 2 * seconds}, // one for each message
	} {
		if n := strings.Count(out, what); n < want[0] || n > want[1] {
			t.Errorf("%d lines of %s, want %d to %d", n, what, want[0], want[1])
		}
	}
	var counted int64
	for line := range strings.Lines(out) {
		var n int64
		if i := strings.Index(line, "lines="); i > 0 {
			if _, err := fmt.Sscanf(line[i:], "lines=%d", &n); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(line, "of=subject line=") {
				t.Errorf("%s", line)
			}
		}
		counted += n
	}
	if all := int64(strings.Count(out, "subject=lamp-1")) + counted; counted != left || all < seconds*flood || all > seconds*(flood+1) {
		t.Errorf("%d of lamp-1 are printed or counted, %d counted, %d left out", all, counted, left)
	}
}

func TestLogBudgetOfAllSources(t *testing.T) {
	const sources, seconds = 20_000, 5
	for _, key := range []string{"subject", "remote"} {
		out := printed(t, func(log *slog.Logger, _ *logbudget.Handler) {
			for range seconds {
				for n := range sources {
					log.Info("refused", slog.String(key, fmt.Sprintf("2001:db8:0:%x::1", n)))
				}
				log.Error("housekeeping")
				time.Sleep(time.Second)
			}
		})
		if n := strings.Count(out, "msg=refused"); n < logbudget.Burst || n > logbudget.Burst+seconds*logbudget.Rate {
			t.Errorf("by %s: %d lines", key, n)
		}
		if n := strings.Count(out, "housekeeping"); n != seconds {
			t.Errorf("by %s: the server's own: %d lines", key, n)
		}
	}
}

func TestTextsAreClipped(t *testing.T) {
	long := strings.Repeat("é", 30_000)
	out := printed(t, func(log *slog.Logger, _ *logbudget.Handler) {
		log = log.With(slog.String("topic", long))
		log.Info(long, slog.Any("err", errors.New(long)), slog.Group("of", slog.String("x", long)), slog.Int("n", 7))
		log.Error("panic", slog.String("stack", strings.Repeat("x", 100_000)))
	})
	lines := strings.SplitAfter(out, "\n")
	if n := len(lines[0]); n < 2000 || n > 2300 || !strings.Contains(lines[0], "n=7") || strings.ContainsRune(lines[0], '\uFFFD') {
		t.Errorf("%d bytes: %s", n, lines[0])
	}
	if n := len(lines[1]); n < 16<<10 || n > 18<<10 {
		t.Errorf("a stack of %d bytes", n)
	}
}

func TestLinesOfARequestHaveItsTrace(t *testing.T) {
	out := printed(t, func(log *slog.Logger, _ *logbudget.Handler) {
		ctx := logbudget.WithTrace(context.Background(), "trace_1")
		log.InfoContext(ctx, "of a request")
		log.With(slog.String("part", "x")).InfoContext(ctx, "of a request too")
		log.Info("of none")
	})
	for _, line := range []string{`msg="of a request" trace_id=trace_1`, `msg="of a request too" part=x trace_id=trace_1`} {
		if !strings.Contains(out, line) {
			t.Errorf("no %s: %s", line, out)
		}
	}
	if strings.Count(out, "trace_id") != 2 {
		t.Errorf("a line of no request has a trace: %s", out)
	}
}
