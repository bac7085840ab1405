package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"time"
	"unicode/utf8"

	"github.com/watchword-iot/watchword"
)

const (
	lineRetryMin = 500 * time.Millisecond // first pause before a line, or a read, is tried again
	lineRetryMax = time.Minute            // longest pause, unless the server states a longer one
	faultTries   = 5                      // attempts for a line that the server answers with internal
	lineReports  = 20                     // skipped lines that are reported in each second
)

// Lines publishes each line of r in order, until r ends or ctx does: as JSON ([json.RawMessage]) if it is JSON, else as a
// JSON string (string) of all its characters, and as bytes ([]byte) if it is not UTF-8. A line ends with "\n" or "\r\n";
// lines of white space are skipped. Lines holds one line at a time.
//
// It skips a line over 32 KiB, and a line that publish refuses because of its content or topic (denied, bad_request,
// too_large and the like). A line that publish cannot send now (unavailable, rate_limited, no session) is tried again after
// a pause that grows to a minute, and r is not read meanwhile; such a line may be published twice if an answer was lost.
// After five answers with internal it is skipped. A read error does not end Lines: the read is tried again too.
//
// Each such line is logged with its number, from 1, its length in bytes and the code; of skipped lines at most 20 a second,
// and the number of the others.
//
// The error is nil at the end of r and of ctx; else r was closed ([os.ErrClosed]).
func Lines(ctx context.Context, r io.Reader, publish func(ctx context.Context, v any) error, log *slog.Logger) error {
	return newLineReader(r, publish, log).readAll(ctx)
}

func newLineReader(r io.Reader, publish func(context.Context, any) error, log *slog.Logger) *lineReader {
	l := &lineReader{publish: publish, log: log}
	if r != nil {
		l.r = bufio.NewReaderSize(r, watchword.MaxDocument+len("\r\n"))
	}
	l.take = l.send
	return l
}

// readAll passes each line to take; see [Lines].
func (l *lineReader) readAll(ctx context.Context) error {
	pause := retryDelay{}
	for ctx.Err() == nil {
		line, size, err := l.next()
		switch {
		case size > watchword.MaxDocument:
			l.skip(size, watchword.Refuse(watchword.TooLarge, "a line must have at most %d bytes", watchword.MaxDocument))
		case err == nil || errors.Is(err, io.EOF):
			l.take(ctx, line)
		case size > 0:
			l.skip(size, err) // the length of the lost input is unknown
		}
		switch {
		case err == nil:
			pause = retryDelay{}
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, os.ErrClosed):
			return err
		case ctx.Err() != nil:
			return nil
		default:
			wait := pause.next(nil)
			l.log.Warn("lines cannot be read", slog.Duration("pause", wait), slog.Any("err", err))
			sleep(ctx, wait)
		}
	}
	return nil
}

// lineReader is the state of one call of Lines.
type lineReader struct {
	take    func(ctx context.Context, line []byte) // called with each line of valid length; the bytes are valid until it returns
	r       *bufio.Reader
	publish func(context.Context, any) error
	log     *slog.Logger
	number  int64 // of the line that was read, or is sent

	second     time.Time // the second that reported counts
	reported   int
	unreported int64 // skipped since the last report
}

// next reads a line, without its end. size is its length; for a line over MaxDocument line is nil. An error is returned
// together with the bytes that were read before it.
func (l *lineReader) next() (line []byte, size int64, err error) {
	l.number++
	line, err = l.r.ReadSlice('\n')
	over := false
	for size = int64(len(line)); errors.Is(err, bufio.ErrBufferFull); size += int64(len(line)) {
		over = true
		line, err = l.r.ReadSlice('\n')
	}
	if over {
		return nil, size - int64(len(line)-len(cutEnd(line))), err
	}
	line = cutEnd(line)
	return line, int64(len(line)), err
}

func cutEnd(line []byte) []byte {
	if cut, ok := bytes.CutSuffix(line, []byte("\n")); ok {
		return bytes.TrimSuffix(cut, []byte("\r"))
	}
	return line
}

// send publishes a line, and repeats it as long as necessary.
func (l *lineReader) send(ctx context.Context, line []byte) {
	var v any
	trimmed := bytes.TrimSpace(line)
	switch {
	case len(trimmed) == 0:
		return
	case !utf8.Valid(line):
		v = bytes.Clone(line)
	case json.Valid(trimmed):
		v = json.RawMessage(bytes.Clone(trimmed))
	default:
		v = string(line)
	}
	pause := retryDelay{}
	for tries := 1; ctx.Err() == nil; tries++ {
		err := l.publish(ctx, v)
		switch {
		case err == nil, ctx.Err() != nil:
			return
		case isLineError(err), isUnexpected(err) && tries == faultTries:
			l.skip(int64(len(line)), err)
			return
		}
		wait := pause.next(err)
		l.log.Warn("line waits", slog.Int64("line", l.number), slog.Int("bytes", len(line)), slog.String("code", string(watchword.CodeOf(err))),
			slog.Duration("pause", wait), slog.Any("err", err))
		sleep(ctx, wait)
	}
}

// skip reports a line that is not published.
func (l *lineReader) skip(size int64, err error) {
	if now := time.Now(); now.Sub(l.second) >= time.Second {
		l.second, l.reported = now, 0
	}
	if l.reported >= lineReports {
		l.unreported++
		return
	}
	l.reported++
	l.log.Warn("line passed over", slog.Int64("line", l.number), slog.Int64("bytes", size), slog.String("code", string(watchword.CodeOf(err))),
		slog.Int64("left_out", l.unreported), slog.Any("err", err))
	l.unreported = 0
}

// isLineError reports whether an error of publishing concerns the content or topic of the line: the same line would fail
// again, and the next one may not. All other errors concern the device, its session or the server.
func isLineError(err error) bool {
	switch watchword.CodeOf(err) {
	case watchword.BadRequest, watchword.TooLarge, watchword.UnsupportedMediaType, watchword.MethodNotAllowed, watchword.NotFound,
		watchword.Conflict, watchword.PreconditionFailed, watchword.Denied, watchword.ArgsInvalid:
		return true
	}
	return false
}

// isUnexpected reports whether an error has no code. An expired deadline is an expected error.
func isUnexpected(err error) bool {
	return watchword.CodeOf(err) == watchword.Internal && !errors.Is(err, context.DeadlineExceeded)
}

// retryDelay is a randomized pause that grows after each error.
type retryDelay struct{ last time.Duration }

// next returns the next pause: at least the one that the server states.
func (p *retryDelay) next(err error) time.Duration {
	p.last = min(max(2*p.last, lineRetryMin), lineRetryMax)
	pause := p.last/2 + rand.N(p.last/2)
	if e, ok := errors.AsType[*watchword.Error](err); ok {
		pause = max(pause, e.RetryAfter)
	}
	return pause
}

// sleep waits for d. It returns early if ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
