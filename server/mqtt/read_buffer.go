package mqtt

import "sync"

// Sizes of read buffers: an idle connection keeps little or none, a busy one borrows one, and one
// in the middle of a long packet has what that needs.
const (
	smallReadBuffer = 512
	largeReadBuffer = 16 << 10
)

var readBuffers = sync.Pool{New: func() any { b := make([]byte, largeReadBuffer); return &b }}

// readBuffer is the buffer that a connection reads into.
type readBuffer struct {
	buf      []byte
	buffered int // bytes of buf to be handled
	pooled   *[]byte
}

// borrow makes room for a typical read; the buffer is returned at the next consume that leaves
// nothing.
func (i *readBuffer) borrow() {
	if i.buf == nil {
		i.resize(largeReadBuffer)
	}
}

// room returns the space for the next read: at least one byte.
func (i *readBuffer) room() []byte {
	if i.buf == nil {
		i.buf = make([]byte, smallReadBuffer)
	}
	return i.buf[i.buffered:]
}

// consume removes the first used bytes after a read. rest is the length of the next packet, 0 if
// unknown.
func (i *readBuffer) consume(used, rest int) {
	filled := i.buffered == len(i.buf)
	copy(i.buf, i.buf[used:i.buffered])
	i.buffered -= used
	want := max(rest, i.buffered+1)
	switch {
	case want > len(i.buf), filled && len(i.buf) == smallReadBuffer:
		i.resize(want)
	case i.buffered == 0 && !filled && len(i.buf) > smallReadBuffer:
		i.release()
	}
}

// resize makes room for want bytes and for what is buffered.
func (i *readBuffer) resize(want int) {
	var b *[]byte
	if want > largeReadBuffer {
		own := make([]byte, want)
		b = &own
	} else {
		b = readBuffers.Get().(*[]byte)
	}
	copy(*b, i.buf[:i.buffered])
	i.release()
	i.buf = *b
	if want <= largeReadBuffer {
		i.pooled = b
	}
}

// release returns a borrowed buffer and frees the rest.
func (i *readBuffer) release() {
	if i.pooled != nil {
		readBuffers.Put(i.pooled)
	}
	i.buf, i.pooled = nil, nil
}
