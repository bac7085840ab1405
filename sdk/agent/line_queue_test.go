package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
)

func openQueue(t *testing.T, path string, limit int64) *LineQueue {
	t.Helper()
	q, err := OpenLineQueue(path, limit, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// killed closes the file of a queue as the end of its process does.
func (q *LineQueue) killed(t *testing.T) {
	t.Helper()
	if err := q.f.Close(); err != nil {
		t.Error(err)
	}
}

func collect(to *[]string) func(context.Context, string, any) error {
	return func(_ context.Context, stream string, v any) error {
		*to = append(*to, stream+" "+published(v))
		return nil
	}
}

// What was read and not published is published by the next process, in order and on its own stream; what was published is
// not published again.
func TestLinesSurviveTheEndOfTheProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lines.queue")
	in := "1\ntext\n\xff\n{\"a\":4}\n5\n"
	q := openQueue(t, path, 0)
	var got []string
	ctx, cancel := context.WithCancel(t.Context())
	stuck := make(chan struct{}, 100)
	ended := make(chan error, 1)
	r, w := io.Pipe()
	go func() {
		ended <- q.Lines(ctx, r, "a", func(ctx context.Context, stream string, v any) error {
			if len(got) == 2 {
				stuck <- struct{}{}
				<-ctx.Done()
				return ctx.Err()
			}
			return collect(&got)(ctx, stream, v)
		})
	}()
	if _, err := io.WriteString(w, in); err != nil {
		t.Fatal(err)
	}
	testwait.For(t, "the third line", stuck)
	for bounded := testwait.Within(); ; time.Sleep(time.Millisecond) {
		bounded.Check(t, "five lines in the file")
		n := 0
		for at := int64(queueHeader); ; n++ {
			q.mu.Lock()
			l, err := q.read(at, q.size)
			q.mu.Unlock()
			if err != nil {
				break
			}
			at += l.bytes
		}
		if n == 5 {
			break
		}
	}
	cancel()
	_ = w.Close() // ends a read that goes on
	if err := testwait.For(t, "the end", ended); err != nil {
		t.Fatal(err)
	}
	q.killed(t)
	q = openQueue(t, path, 0)
	if err := q.Lines(t.Context(), strings.NewReader("6\n"), "b", collect(&got)); err != nil {
		t.Fatal(err)
	}
	if want := []string{"a 1", `a "text"`, `a bytes "\xff"`, `a {"a":4}`, "a 5", "b 6"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(path + "*"); len(left) > 0 {
		t.Errorf("files are left: %v", left)
	}
}

// A full file stops the reading, and nothing is lost or repeated while it is emptied and rewritten many times over.
func TestAFullQueueStopsReading(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lines.queue")
	q := openQueue(t, path, MinQueueBytes)
	const lines = 3000
	long := strings.Repeat("x", 100)
	var read atomic.Int64
	release := make(chan struct{})
	ended := make(chan error, 1)
	r, w := io.Pipe()
	go func() {
		for i := range lines {
			if _, err := fmt.Fprintf(w, "%s%d\n", long, i); err != nil {
				t.Error(err)
			}
			read.Store(int64(i))
		}
		_ = w.Close() // the end of the text
	}()
	n := 0
	go func() {
		ended <- q.Lines(t.Context(), r, "s", func(_ context.Context, _ string, v any) error {
			<-release
			if want := fmt.Sprintf("%s%d", long, n); v != want {
				t.Errorf("got %v, want %s", v, want)
			}
			n++
			return nil
		})
	}()
	for bounded := testwait.Within(); ; time.Sleep(time.Millisecond) {
		bounded.Check(t, "a full file")
		if size, _ := q.waiting(); size+200 > MinQueueBytes-queueHeader {
			break
		}
	}
	close(release)
	most := int64(0)
	for done := false; !done; {
		select {
		case err := <-ended:
			if done = true; err != nil {
				t.Error(err)
			}
		case <-time.After(time.Millisecond):
			if info, err := os.Stat(path); err == nil {
				most = max(most, info.Size())
			}
		}
	}
	if n != lines || most > MinQueueBytes {
		t.Errorf("%d lines, a file of %d bytes", n, most)
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
}

// A file that was cut off or changed at any byte gives a prefix of its lines, and can be used again.
func TestADamagedQueueKeepsWhatItCan(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lines.queue")
	q := openQueue(t, path, 0)
	for i := range 3 {
		if _, ok, err := q.put(queuedLine{int64(i + 1), "s", fmt.Append(nil, i), 0}); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	q.remove(first(t, q).bytes)
	q.killed(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sent, err := os.ReadFile(path + ".sent")
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, file, sent []byte, repeats bool) int {
		t.Helper()
		for p, b := range map[string][]byte{path: file, path + ".sent": sent} {
			if err := os.WriteFile(p, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var got []string
		q := openQueue(t, path, 0)
		if err := q.Lines(t.Context(), strings.NewReader("new\n"), "s", collect(&got)); err != nil {
			t.Fatal(err)
		}
		q.killed(t)
		all := []string{"s 0", "s 1", "s 2"}
		if !repeats {
			all = all[1:]
		}
		if old := got[:len(got)-1]; got[len(got)-1] != `s "new"` || len(old) > len(all) || !slices.Equal(old, all[:len(old)]) {
			t.Fatalf("%s: got %q", what, got)
		}
		return len(got)
	}
	if n := check("whole", whole, sent, false); n != 3 {
		t.Errorf("a whole file: %d lines", n)
	}
	for n := range len(whole) {
		check(fmt.Sprintf("cut to %d", n), whole[:n], sent, false)
		b := slices.Clone(whole)
		b[n] ^= 4
		check(fmt.Sprintf("byte %d changed", n), b, sent, n >= 8 && n < queueHeader) // another generation: the place is not of it
	}
	// Where records of published lines are lost, the place does not apply to the lines that follow.
	for p, b := range map[string][]byte{path: whole[:queueHeader+1], path + ".sent": sent} {
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	q = openQueue(t, path, 0)
	if _, ok, err := q.put(queuedLine{1, "s", []byte("0"), 0}); !ok || err != nil {
		t.Fatal(ok, err)
	}
	q.killed(t)
	q = openQueue(t, path, 0)
	if l := first(t, q); string(l.line) != "0" {
		t.Errorf("got %q", l.line)
	}
	q.killed(t)
	for n := range len(sent) {
		b := slices.Clone(sent)
		b[n] ^= 4
		if got := check(fmt.Sprintf("byte %d of the place changed", n), whole, b, true); got != 4 {
			t.Errorf("byte %d of the place changed: %d lines", n, got)
		}
	}
}

func first(t *testing.T, q *LineQueue) queuedLine {
	t.Helper()
	l, _, err := q.first()
	if err != nil || l.bytes == 0 {
		t.Fatal(l, err)
	}
	return l
}

// At the end of the context Lines returns though the input has no end, and what was read is in the file.
func TestTheEndOfTheContextStoresWhatWasRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lines.queue")
	q := openQueue(t, path, 0)
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	defer w.Close()
	ended := make(chan error, 1)
	go func() {
		ended <- q.Lines(ctx, r, "s", func(ctx context.Context, _ string, _ any) error {
			cancel() // while the lines behind the first one are in memory, or in the file
			return &watchword.Error{Code: watchword.Unavailable}
		})
	}()
	var want []string
	var in strings.Builder
	for i := range 1000 {
		want = append(want, fmt.Sprintf("s %d", i))
		fmt.Fprintln(&in, i)
	}
	if _, err := io.WriteString(w, in.String()); err != nil {
		t.Fatal(err)
	}
	if err := testwait.For(t, "the end", ended); err != nil {
		t.Error(err)
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
	q = openQueue(t, path, 0)
	var got []string
	if err := q.Lines(t.Context(), strings.NewReader(""), "s", collect(&got)); err != nil || !slices.Equal(got, want) {
		t.Errorf("%d lines of %d, %v", len(got), len(want), err)
	}
	q.killed(t)
}

// A refused line is removed, and one that waits is not.
func TestARefusedLineLeavesTheQueue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lines.queue")
	q := openQueue(t, path, 0)
	var got []string
	err := q.Lines(t.Context(), strings.NewReader("1\n2\n3\n"), "s", func(ctx context.Context, stream string, v any) error {
		if published(v) == "2" {
			return &watchword.Error{Code: watchword.Denied}
		}
		return collect(&got)(ctx, stream, v)
	})
	if err != nil || !slices.Equal(got, []string{"s 1", "s 3"}) {
		t.Errorf("got %q %v", got, err)
	}
	if n, _ := q.waiting(); n != 0 {
		t.Errorf("%d bytes wait", n)
	}
	q.killed(t)
}

// Lines are published without the file where it cannot be written, in order.
func TestLinesPassWithoutRoomOnTheDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lines.queue")
	q := openQueue(t, path, 0)
	if _, ok, err := q.put(queuedLine{1, "s", []byte("1"), 0}); !ok || err != nil {
		t.Fatal(ok, err)
	}
	readOnly, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	q.killed(t)
	q.f = readOnly // each write fails
	var got []string
	if err := q.Lines(t.Context(), strings.NewReader("2\n3\n"), "s", collect(&got)); err != nil || !slices.Equal(got, []string{"s 1", "s 2", "s 3"}) {
		t.Errorf("got %q %v", got, err)
	}
	q.killed(t)
}

func TestQueueBounds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lines.queue")
	for _, limit := range []int64{1, MinQueueBytes - 1, MaxQueueBytes + 1} {
		if _, err := OpenLineQueue(path, limit, slog.Default()); watchword.CodeOf(err) != watchword.ConfigInvalid {
			t.Errorf("%d bytes: %v", limit, err)
		}
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenLineQueue(path, 0, slog.Default()); watchword.CodeOf(err) != watchword.KeyExposed {
		t.Errorf("a file that others can read: %v", err)
	}
	if _, err := os.Stat(path + ".sent"); err == nil {
		t.Error("a place was written")
	}
}
