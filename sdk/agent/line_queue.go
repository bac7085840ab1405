package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
)

// Bounds of the file of a [LineQueue], in bytes.
const (
	DefaultQueueBytes = 16 << 20
	MinQueueBytes     = 64 << 10  // room for a line
	MaxQueueBytes     = 256 << 20 // half of it is in memory while the file is rewritten
)

const (
	queueIdleBytes = 64 << 10 // a file without lines that are to be sent is emptied from this size on
	queueSyncEvery = time.Second
	queueHeader    = 16         // bytes: a magic number and the generation of the file
	queueMagic     = "wwlines1" // 8 bytes
	recordHeader   = 8          // bytes: length and checksum of what follows
	maxStream      = 1024       // bytes of the name of a stream
)

// LineQueue publishes the lines of a text through a file, so that what was read and not yet published survives the end of the
// process. A line is removed when publish has returned nil for it, or has refused it as [Lines] says; a line whose
// acknowledgement was lost, or came just before the end of the process, may be published twice. The order is kept.
//
// The file has at most the given number of bytes. When it is full, or cannot be written, nothing is read until there is room:
// the writer of the text waits. The file is synced every second: a power cut loses at most the lines of the last second, and
// may repeat lines.
type LineQueue struct {
	path  string
	limit int64
	log   *slog.Logger
	disk  durable.Disk

	mu         sync.Mutex
	f          *os.File
	generation uint64
	size       int64         // of the file
	sent       int64         // offset up to which lines were published
	dirty      bool          // written since the last sync
	changed    chan struct{} // closed and replaced when size or sent changes
}

// OpenLineQueue opens the file at path, or creates it with mode 0600. A path beside it, path + ".sent", has the place up to
// which lines were published. Damaged records at the end of the file, as after a power cut, are removed and logged. limit is
// from [MinQueueBytes] to [MaxQueueBytes]; 0 is [DefaultQueueBytes]. The caller makes sure that no other process has the file
// open. Codes: file_untrusted, key_exposed.
func OpenLineQueue(path string, limit int64, log *slog.Logger) (*LineQueue, error) {
	if limit == 0 {
		limit = DefaultQueueBytes
	}
	if limit < MinQueueBytes || limit > MaxQueueBytes {
		return nil, watchword.Refuse(watchword.ConfigInvalid, "the file of lines must have from %d to %d bytes", MinQueueBytes, MaxQueueBytes)
	}
	q := &LineQueue{path: path, limit: limit, log: log, disk: durable.OS{}, changed: make(chan struct{})}
	if err := durable.CheckPrivate(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	q.f = f
	if err := q.recover(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return q, nil
}

// recover reads the header, finds the end of the records, and cuts off what follows.
func (q *LineQueue) recover() error {
	info, err := q.f.Stat()
	if err != nil {
		return err
	}
	head := make([]byte, queueHeader)
	if _, err := q.f.ReadAt(head, 0); err != nil || string(head[:8]) != queueMagic {
		if err != nil && err != io.EOF {
			return err
		}
		if info.Size() > 0 {
			q.log.Error("the file of lines is damaged; its lines are lost", slog.String("path", q.path), slog.Int64("bytes", info.Size()))
		}
		return q.begin()
	}
	q.generation = binary.BigEndian.Uint64(head[8:])
	q.size, q.sent = queueHeader, queueHeader
	marked := q.readSent()
	for q.size < info.Size() {
		r, err := q.read(q.size, info.Size())
		if errors.Is(err, errDamaged) {
			break
		} else if err != nil {
			return err
		}
		q.size += r.bytes
		if q.size <= marked {
			q.sent = q.size
		}
	}
	if q.size < info.Size() {
		q.log.Warn("the end of the file of lines is damaged, as after a power cut, and is removed", slog.String("path", q.path), slog.Int64("bytes", info.Size()-q.size))
		if err := q.f.Truncate(q.size); err != nil {
			return err
		}
	}
	if marked > q.sent { // records of published lines are lost: the place must not apply to the lines that follow
		return q.writeSent(true)
	}
	return nil
}

// begin makes the file empty.
func (q *LineQueue) begin() error {
	if err := q.f.Truncate(0); err != nil {
		return err
	}
	q.generation = newGeneration()
	if _, err := q.f.WriteAt(queueStart(q.generation), 0); err != nil {
		return err
	}
	q.size, q.sent = queueHeader, queueHeader
	return nil
}

func queueStart(generation uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte(queueMagic), generation)
}

// newGeneration returns the number of a new content of the file: a place in an earlier one is then not taken for one in it.
func newGeneration() uint64 { return uint64(time.Now().UnixNano()) }

// readSent returns the offset that was stored for this generation of the file, or 0.
func (q *LineQueue) readSent() int64 {
	b, err := durable.ReadTrusted(q.path+".sent", 64)
	if err != nil || len(b) != 20 || binary.BigEndian.Uint32(b[16:]) != queueSum(b[:16]) || binary.BigEndian.Uint64(b) != q.generation {
		return 0 // lines are published again
	}
	return int64(binary.BigEndian.Uint64(b[8:]))
}

// writeSent stores the offset up to which lines were published. The write is in place and needs no space, once the file exists.
func (q *LineQueue) writeSent(sync bool) error {
	b := binary.BigEndian.AppendUint64(nil, q.generation)
	b = binary.BigEndian.AppendUint64(b, uint64(q.sent))
	b = binary.BigEndian.AppendUint32(b, queueSum(b))
	f, err := os.OpenFile(q.path+".sent", os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil && sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func queueSum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// queuedLine is a record of the file.
type queuedLine struct {
	number int64 // of the line in its input
	stream string
	line   []byte
	bytes  int64 // of the record
}

var errDamaged = errors.New("a record is damaged")

func (l queuedLine) encode() []byte {
	b := make([]byte, recordHeader, recordHeader+10+len(l.stream)+len(l.line))
	b = binary.BigEndian.AppendUint64(b, uint64(l.number))
	b = binary.BigEndian.AppendUint16(b, uint16(len(l.stream)))
	b = append(append(b, l.stream...), l.line...)
	binary.BigEndian.PutUint32(b, uint32(len(b)-recordHeader))
	binary.BigEndian.PutUint32(b[4:], queueSum(b[recordHeader:]))
	return b
}

// read reads the record at an offset of a file of so many bytes.
func (q *LineQueue) read(at, end int64) (l queuedLine, err error) {
	head := make([]byte, recordHeader)
	if at+recordHeader > end {
		return l, errDamaged
	}
	if _, err := q.f.ReadAt(head, at); err != nil {
		return l, err
	}
	n := int64(binary.BigEndian.Uint32(head))
	if n < 10 || n > 10+maxStream+watchword.MaxDocument || at+recordHeader+n > end {
		return l, errDamaged
	}
	b := make([]byte, n)
	if _, err := q.f.ReadAt(b, at+recordHeader); err != nil {
		return l, err
	}
	names := int(binary.BigEndian.Uint16(b[8:]))
	if queueSum(b) != binary.BigEndian.Uint32(head[4:]) || 10+names > len(b) {
		return l, errDamaged
	}
	return queuedLine{int64(binary.BigEndian.Uint64(b)), string(b[10 : 10+names]), b[10+names:], recordHeader + n}, nil
}

// signal wakes those that wait for a change. q.mu is held.
func (q *LineQueue) signal() {
	close(q.changed)
	q.changed = make(chan struct{})
}

// put appends a line. ok is false if there is no room; then changed is closed when there may be.
func (q *LineQueue) put(l queuedLine) (changed <-chan struct{}, ok bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := l.encode()
	if q.size+int64(len(b)) > q.limit && q.sent-queueHeader >= q.limit/2-MinQueueBytes/2 || q.sent == q.size && q.size > queueIdleBytes {
		if err := q.compact(); err != nil {
			return q.changed, false, err
		}
	}
	if q.size+int64(len(b)) > q.limit {
		return q.changed, false, nil
	}
	if len(bytes.TrimSpace(l.line)) == 0 {
		return nil, true, nil // it is not published
	}
	if _, err := q.f.WriteAt(b, q.size); err != nil { // what was written of it is overwritten, or is cut off at the next start
		return q.changed, false, err
	}
	q.size, q.dirty = q.size+int64(len(b)), true
	q.signal()
	return nil, true, nil
}

// compact replaces the file by one with only the lines that are to be sent.
func (q *LineQueue) compact() error {
	generation := newGeneration()
	rest := make([]byte, queueHeader+q.size-q.sent)
	copy(rest, queueStart(generation))
	if _, err := q.f.ReadAt(rest[queueHeader:], q.sent); err != nil && (err != io.EOF || q.size > q.sent) {
		return err
	}
	kept, err := durable.Replace(q.disk, q.path, rest)
	if err != nil && kept {
		return err
	}
	f, oerr := os.OpenFile(q.path, os.O_RDWR, 0o600)
	if oerr != nil {
		return errors.Join(err, oerr)
	}
	_ = q.f.Close() // the old file is removed
	q.f, q.generation, q.size, q.sent, q.dirty = f, generation, int64(len(rest)), queueHeader, false
	q.signal()
	return err
}

// first returns the first line that is to be sent. If there is none, changed is closed when there may be one.
func (q *LineQueue) first() (l queuedLine, changed <-chan struct{}, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.sent == q.size {
		return l, q.changed, nil
	}
	l, err = q.read(q.sent, q.size)
	return l, nil, err
}

// remove removes the first line that is to be sent.
func (q *LineQueue) remove(bytes int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sent += bytes
	if err := q.writeSent(false); err != nil {
		q.log.Warn("the file of lines does not record that a line was published; after a restart it is published again", slog.Any("err", err))
	}
	q.signal()
}

// waiting returns the number of bytes that are to be sent, and a channel that is closed when it may have changed.
func (q *LineQueue) waiting() (int64, <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.size - q.sent, q.changed
}

// sync makes what was appended durable.
func (q *LineQueue) sync() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.dirty {
		return nil
	}
	q.dirty = false
	return q.f.Sync()
}

// Close syncs and closes the file; if all lines were published it removes it.
func (q *LineQueue) Close() error {
	err := q.sync()
	q.mu.Lock()
	defer q.mu.Unlock()
	err = errors.Join(err, q.f.Close())
	if q.sent < q.size {
		return err
	}
	for _, path := range []string{q.path, q.path + ".sent"} {
		if rerr := os.Remove(path); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}

// Lines publishes each line of r as an event of stream, as the function [Lines] does, through the file: lines that an earlier
// process left are published first, on their own streams. It returns nil when r has ended and every line was published, or
// when ctx ends; then the file has the lines that were not. If r was closed it returns [os.ErrClosed].
func (q *LineQueue) Lines(ctx context.Context, r io.Reader, stream string, publish func(ctx context.Context, stream string, v any) error) error {
	if len(stream) > maxStream {
		return watchword.RefuseField("stream", "must have at most %d bytes", maxStream)
	}
	all, cancel := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()
	tasks.Go(func() { q.sendLoop(all, publish) })
	tasks.Go(func() { q.syncLoop(all) })
	store := newLineReader(newContextReader(ctx, r), nil, q.log)
	store.take = func(ctx context.Context, line []byte) {
		q.store(ctx, queuedLine{number: store.number, stream: stream, line: line}, publish)
	}
	err := store.readAll(ctx)
	if ctx.Err() != nil {
		q.storeBuffered(store, stream)
		return nil
	}
	if err == nil {
		q.drained(ctx)
	}
	return err
}

// storeBuffered stores the lines that were read and not stored when the context ended.
func (q *LineQueue) storeBuffered(from *lineReader, stream string) {
	lost := 0
	for {
		buffered, _ := from.r.Peek(from.r.Buffered()) // no more than there is
		if !bytes.Contains(buffered, []byte("\n")) {
			break
		}
		line, _, err := from.next()
		if err != nil {
			break
		}
		if _, ok, err := q.put(queuedLine{number: from.number, stream: stream, line: line}); !ok {
			if lost++; lost == 1 {
				q.log.Error("lines that were read are lost: the file of lines has no room", slog.Int64("line", from.number), slog.Any("err", err))
			}
		}
	}
	if lost > 1 {
		q.log.Error("further lines were lost", slog.Int("lines", lost-1))
	}
}

// contextReader is a reader whose Read ends with ctx. What a read that goes on then gets is discarded.
type contextReader struct {
	ctx  context.Context
	want chan []byte
	got  chan readResult
}

type readResult struct {
	b   []byte
	err error
}

func newContextReader(ctx context.Context, r io.Reader) *contextReader {
	c := &contextReader{ctx, make(chan []byte), make(chan readResult)}
	go func() {
		for {
			select {
			case b := <-c.want:
				n, err := r.Read(b)
				select {
				case c.got <- readResult{b[:n], err}:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return c
}

// Read reads into a buffer of its own first: an earlier Read that was abandoned must not write to b.
func (c *contextReader) Read(b []byte) (int, error) {
	select {
	case c.want <- make([]byte, len(b)):
	case <-c.ctx.Done():
		return 0, c.ctx.Err()
	}
	select {
	case r := <-c.got:
		return copy(b, r.b), r.err
	case <-c.ctx.Done():
		return 0, c.ctx.Err()
	}
}

// drained waits until every line was published, or ctx ends.
func (q *LineQueue) drained(ctx context.Context) {
	for {
		n, changed := q.waiting()
		if n == 0 {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// store appends a line, and waits until there is room. If the file cannot be written, as on a full disk, the line is published
// without it, after those before it.
func (q *LineQueue) store(ctx context.Context, l queuedLine, publish func(context.Context, string, any) error) {
	told := false
	for {
		changed, ok, err := q.put(l)
		if ok {
			return
		}
		if ctx.Err() != nil {
			q.log.Error("a line that was read is lost: the file of lines has no room", slog.Int64("line", l.number), slog.Any("err", err))
			return
		}
		if err != nil {
			q.log.Warn("a line is published without the file of lines", slog.Int64("line", l.number), slog.Any("err", err))
			if q.drained(ctx); ctx.Err() == nil {
				q.sender(publish).sendLine(ctx, l)
			}
			return
		}
		if !told {
			told = true
			q.log.Warn("the file of lines is full: standard input is not read until there is room", slog.Int64("line", l.number), slog.Int64("bytes", q.limit))
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// lineSender publishes queued lines.
type lineSender struct {
	*lineReader
	stream string
}

func (q *LineQueue) sender(publish func(context.Context, string, any) error) *lineSender {
	s := &lineSender{}
	s.lineReader = newLineReader(nil, func(ctx context.Context, v any) error { return publish(ctx, s.stream, v) }, q.log)
	return s
}

func (s *lineSender) sendLine(ctx context.Context, l queuedLine) {
	s.number, s.stream = l.number, l.stream
	s.send(ctx, l.line)
}

// sendLoop publishes the lines of the file in their order until ctx ends.
func (q *LineQueue) sendLoop(ctx context.Context, publish func(context.Context, string, any) error) {
	s := q.sender(publish)
	pause := retryDelay{}
	for ctx.Err() == nil {
		l, changed, err := q.first()
		switch {
		case err != nil:
			q.log.Error("the file of lines cannot be read", slog.String("path", q.path), slog.Any("err", err))
			sleep(ctx, pause.next(nil))
		case changed != nil:
			select {
			case <-changed:
			case <-ctx.Done():
			}
		default:
			if s.sendLine(ctx, l); ctx.Err() == nil {
				q.remove(l.bytes)
			}
			pause = retryDelay{}
		}
	}
}

func (q *LineQueue) syncLoop(ctx context.Context) {
	tick := time.NewTicker(queueSyncEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := q.sync(); err != nil {
				q.log.Warn("the file of lines cannot be synced", slog.String("path", q.path), slog.Any("err", err))
			}
		case <-ctx.Done():
			return
		}
	}
}
