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
	lineRetryMin = 500 * time.Millisecond // the first pause of a line, or of a read, that is tried again
	lineRetryMax = time.Minute            // the longest, unless the server asks for more
	faultTries   = 5                      // of a line that the server answers with an error of its own
	lineReports  = 20                     // lines that are reported as passed over in each second
)

// Lines publishes each line of r in order, until r ends or ctx does: as JSON
// ([json.RawMessage]) where it is JSON, else as a JSON string (string) of all its
// characters, and as bytes ([]byte) where it is not UTF-8. A line ends with "\n" or "\r\n";
// lines of white space alone are passed over. It holds one line at a time.
//
// A line over 32 KiB, and one that publish refuses for what it is or where it goes (denied,
// bad_request, too_large and the like), is passed over; one that publish cannot bring through
// now (unavailable, rate_limited, no session) is tried again after a pause that grows to a minute, and
// r is not read meanwhile: it may be published twice where an answer was lost. After five answers of
// internal it is passed over. An error of reading is no end: it is tried again too.
//
// log is told of each such line with its number, from 1, its length in bytes and the code, of at most 20
// that are passed over in a second, and of how many more.
//
// The error is nil at the end of r and of ctx; else r was closed ([os.ErrClosed]).
func Lines(ctx context.Context, r io.Reader, publish func(ctx context.Context, v any) error, log *slog.Logger) error {
	l := &lineReader{r: bufio.NewReaderSize(r, watchword.MaxDocument+len("\r\n")), publish: publish, log: log}
	pause := retryDelay{}
	for ctx.Err() == nil {
		line, size, err := l.next()
		switch {
		case size > watchword.MaxDocument:
			l.skip(size, watchword.Refuse(watchword.TooLarge, "a line may have %d bytes", watchword.MaxDocument))
		case err == nil || errors.Is(err, io.EOF):
			l.send(ctx, line)
		case size > 0:
			l.skip(size, err) // nobody knows what was lost
		}
		switch {
		case err == nil:
			pause = retryDelay{}
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, os.ErrClosed):
			return err
		default:
			wait := pause.next(nil)
			log.Warn("lines cannot be read", slog.Duration("pause", wait), slog.Any("err", err))
			sleep(ctx, wait)
		}
	}
	return nil
}

// lineReader is one call of Lines.
type lineReader struct {
	r       *bufio.Reader
	publish func(context.Context, any) error
	log     *slog.Logger
	number  int64 // of the line that was read last

	second     time.Time // in which reported were
	reported   int
	unreported int64 // passed over since the last that was told
}

// next reads a line, without its end. size is its length; of a line over MaxDocument line
// is nil. An error comes with what was read before it.
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

// send publishes a line, as often as it takes.
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

// isLineError reports whether an error of publishing is about what was published, or where:
// the same line would meet it again, and the next one may not. All other errors are about the
// device, its session or the server.
func isLineError(err error) bool {
	switch watchword.CodeOf(err) {
	case watchword.BadRequest, watchword.TooLarge, watchword.UnsupportedMediaType, watchword.MethodNotAllowed, watchword.NotFound,
		watchword.Conflict, watchword.PreconditionFailed, watchword.Denied, watchword.ArgsInvalid:
		return true
	}
	return false
}

// isUnexpected reports whether an error is one that nobody foresaw. A deadline was.
func isUnexpected(err error) bool {
	return watchword.CodeOf(err) == watchword.Internal && !errors.Is(err, context.DeadlineExceeded)
}

// retryDelay grow after each error; no two are alike.
type retryDelay struct{ last time.Duration }

// next is the next pause: at least what the server asks for.
func (p *retryDelay) next(err error) time.Duration {
	p.last = min(max(2*p.last, lineRetryMin), lineRetryMax)
	pause := p.last/2 + rand.N(p.last/2)
	if e, ok := errors.AsType[*watchword.Error](err); ok {
		pause = max(pause, e.RetryAfter)
	}
	return pause
}

// sleep returns early where ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
