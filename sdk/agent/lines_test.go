package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
)

// told returns a log that writes to out, without times and pauses.
func told(out *bytes.Buffer) *slog.Logger {
	return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == "pause" || a.Key == "err" || a.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}}))
}

func published(v any) string {
	if b, ok := v.([]byte); ok {
		return fmt.Sprintf("bytes %q", b)
	}
	b, err := json.Marshal(v)
	return fmt.Sprint(string(b), map[bool]string{true: "", false: fmt.Sprint(err)}[err == nil])
}

func TestLines(t *testing.T) {
	long := strings.Repeat("x", watchword.MaxDocument)
	for _, tc := range []struct {
		name, in string
		want     []string
		log      string
	}{
		{"JSON, text and nothing", "42\n\n{\"a\":1}\nhello world\n  7 \n \t \nlast", []string{`42`, `{"a":1}`, `"hello world"`, `7`, `"last"`}, ""},
		{"text has all its characters", "  a b\t\r\n", []string{`"  a b\t"`}, ""},
		{"a carriage return is the end of a line alone", "a\rb\r\r\n", []string{`"a\rb\r"`}, ""},
		{"bytes that are not UTF-8 are published as they are", "a\xffb \r\n\"\xff\"\nlast\n", []string{`bytes "a\xffb "`, `bytes "\"\xff\""`, `"last"`}, ""},
		{"a line that is just short enough", long + "\n" + long + "\r\n" + long, []string{`"` + long + `"`, `"` + long + `"`, `"` + long + `"`}, ""},
		{"a line over 32 KiB is passed over", "1\n" + long + "x\n3\n", []string{"1", "3"}, "msg=\"line passed over\" line=2 bytes=32769 code=too_large left_out=0\n"},
		{"so is one of two bytes more", long + "xx\n3\n", []string{"3"}, "msg=\"line passed over\" line=1 bytes=32770 code=too_large left_out=0\n"},
		{"so is one that is far longer", "1\r\n" + strings.Repeat(long, 40) + "x\r\n3", []string{"1", "3"}, "msg=\"line passed over\" line=2 bytes=1310721 code=too_large left_out=0\n"},
		{"so is one that ends with all", "1\n" + long + "xx", []string{"1"}, "msg=\"line passed over\" line=2 bytes=32770 code=too_large left_out=0\n"},
		{"so is one without an end", "1\n" + long + long, []string{"1"}, "msg=\"line passed over\" line=2 bytes=65536 code=too_large left_out=0\n"},
	} {
		var got []string
		var log bytes.Buffer
		err := Lines(t.Context(), strings.NewReader(tc.in), func(_ context.Context, v any) error {
			got = append(got, published(v))
			return nil
		}, told(&log))
		if err != nil || strings.Join(got, "|") != strings.Join(tc.want, "|") || log.String() != tc.log {
			t.Errorf("%s: %.200q, log %q, %v", tc.name, got, log.String(), err)
		}
	}
}

func TestRefusedLinesAreSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refuse := func(c watchword.Code) error { return &watchword.Error{Code: c} }
		for _, tc := range []struct {
			name  string
			err   error
			times int // that publish fails
			over  bool
		}{
			{"denied", refuse(watchword.Denied), 1, true},
			{"bad_request", refuse(watchword.BadRequest), 1, true},
			{"too_large", refuse(watchword.TooLarge), 1, true},
			{"an unexpected error", errors.New("?"), faultTries, true},
			{"such an error that ends", errors.New("?"), faultTries - 1, false},
			{"unavailable", refuse(watchword.Unavailable), 50, false},
			{"rate_limited", refuse(watchword.RateLimited), 50, false},
			{"busy", refuse(watchword.Busy), 50, false},
			{"a deadline", fmt.Errorf("x: %w", context.DeadlineExceeded), 50, false},
			{"no session", refuse(watchword.SubjectSuspended), 50, false},
		} {
			var got []string
			var log bytes.Buffer
			failed := 0
			err := Lines(t.Context(), strings.NewReader("1\n2\n3\n"), func(_ context.Context, v any) error {
				if published(v) == "2" && failed < tc.times {
					failed++
					return tc.err
				}
				got = append(got, published(v))
				return nil
			}, told(&log))
			want, waits := "1 2 3", tc.times
			if tc.over {
				want, waits = "1 3", tc.times-1
			}
			if err != nil || strings.Join(got, " ") != want || strings.Count(log.String(), `msg="line waits" line=2 bytes=1 code=`) != waits || strings.Contains(log.String(), `msg="line passed over" line=2 bytes=1 code=`) != tc.over || failed != tc.times {
				t.Errorf("%s: got %v after %d errors (%v), log\n%s", tc.name, got, failed, err, log.String())
			}
		}
	})
}

func TestALineWaitsAsLongAsTheServerAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Time
		_ = Lines(t.Context(), strings.NewReader("1\n"), func(context.Context, any) error {
			if at = append(at, time.Now()); len(at) < 20 {
				return &watchword.Error{Code: watchword.RateLimited, RetryAfter: map[bool]time.Duration{true: 90 * time.Second}[len(at) == 1]}
			}
			return nil
		}, slog.New(slog.DiscardHandler))
		if len(at) != 20 || at[1].Sub(at[0]) != 90*time.Second {
			t.Fatal(at)
		}
		for i := range at[2:] {
			if pause := at[i+2].Sub(at[i+1]); pause < lineRetryMin/2 || pause > lineRetryMax {
				t.Errorf("it waited %s", pause)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		err := Lines(ctx, strings.NewReader("1\n2\n"), func(context.Context, any) error {
			cancel()
			return &watchword.Error{Code: watchword.Unavailable}
		}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Errorf("the end of ctx: %v", err)
		}
	})
}

// failing reads a line, fails three times, reads another, and ends with err.
type failing struct {
	n   int
	err error
}

func (f *failing) Read(b []byte) (int, error) {
	f.n++
	switch f.n {
	case 1:
		return copy(b, "1\nlost"), nil
	case 2, 3, 4:
		return 0, errors.New("input/output error")
	case 5:
		return copy(b, "2\n"), nil
	}
	return 0, f.err
}

func TestAnErrorOfReadingIsNoEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, end := range []error{io.EOF, os.ErrClosed} {
			var got []string
			var log bytes.Buffer
			err := Lines(t.Context(), &failing{err: end}, func(_ context.Context, v any) error {
				got = append(got, published(v))
				return nil
			}, told(&log))
			if (err == nil) != (end == io.EOF) || strings.Join(got, " ") != "1 2" || strings.Count(log.String(), "lines cannot be read") < 3 || !strings.Contains(log.String(), `msg="line passed over" line=2 bytes=4`) {
				t.Errorf("%v: got %v, log\n%s", err, got, log.String())
			}
		}
	})
}

func TestReportsOfLinesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		n := 0
		_ = Lines(t.Context(), strings.NewReader(strings.Repeat("1\n", 1001)), func(context.Context, any) error {
			if n++; n == 1001 {
				time.Sleep(time.Second)
			}
			return &watchword.Error{Code: watchword.Denied}
		}, told(&log))
		if lines := strings.Count(log.String(), "\n"); lines != lineReports+1 || !strings.Contains(log.String(), fmt.Sprintf("line=1001 bytes=1 code=denied left_out=%d\n", 1000-lineReports)) {
			t.Errorf("%d lines:\n%s", lines, log.String())
		}
	})
}
