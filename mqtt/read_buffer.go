package mqtt

import "sync"

// The sizes of what is read into: an idle connection keeps little or nothing, a
// busy one borrows, and one in the middle of a long packet has what that needs.
const (
	smallReadBuffer = 512
	largeReadBuffer = 16 << 10
)

var readBuffers = sync.Pool{New: func() any { b := make([]byte, largeReadBuffer); return &b }}

// readBuffer is what a connection reads into.
type readBuffer struct {
	buf      []byte
	buffered int // bytes of buf that wait
	pooled   *[]byte
}

// borrow makes room for as much as may be there already, to be given back at the
// next [largeReadBuffer.consume] that leaves nothing.
func (i *readBuffer) borrow() {
	if i.buf == nil {
		i.resize(largeReadBuffer)
	}
}

// room returns where the next read goes: at least one byte.
func (i *readBuffer) room() []byte {
	if i.buf == nil {
		i.buf = make([]byte, smallReadBuffer)
	}
	return i.buf[i.buffered:]
}

// consume drops the first used bytes after a read. rest is how long the next packet
// will be, 0 if that is not known yet.
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

// resize makes room for want bytes, and for what there is.
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

// release gives back what was borrowed, and keeps nothing.
func (i *readBuffer) release() {
	if i.pooled != nil {
		readBuffers.Put(i.pooled)
	}
	i.buf, i.pooled = nil, nil
}
