package mqtt

import "sync"

// The sizes of what is read into: an idle connection keeps little or nothing, a
// busy one borrows, and one in the middle of a long packet has what that needs.
const (
	smallBuffer = 512
	readBuffer  = 16 << 10
)

var readBuffers = sync.Pool{New: func() any { b := make([]byte, readBuffer); return &b }}

// inbox is what a connection reads into.
type inbox struct {
	buf      []byte
	have     int // bytes of buf that wait
	borrowed *[]byte
}

// lend makes room for as much as may be there already, to be given back at the
// next [inbox.consume] that leaves nothing.
func (i *inbox) lend() {
	if i.buf == nil {
		i.resize(readBuffer)
	}
}

// room returns where the next read goes: at least one byte.
func (i *inbox) room() []byte {
	if i.buf == nil {
		i.buf = make([]byte, smallBuffer)
	}
	return i.buf[i.have:]
}

// consume drops the first used bytes after a read. rest is how long the next packet
// will be, 0 if that is not known yet.
func (i *inbox) consume(used, rest int) {
	filled := i.have == len(i.buf)
	copy(i.buf, i.buf[used:i.have])
	i.have -= used
	want := max(rest, i.have+1)
	switch {
	case want > len(i.buf), filled && len(i.buf) == smallBuffer:
		i.resize(want)
	case i.have == 0 && !filled && len(i.buf) > smallBuffer:
		i.release()
	}
}

// resize makes room for want bytes, and for what there is.
func (i *inbox) resize(want int) {
	var b *[]byte
	if want > readBuffer {
		own := make([]byte, want)
		b = &own
	} else {
		b = readBuffers.Get().(*[]byte)
	}
	copy(*b, i.buf[:i.have])
	i.release()
	i.buf = *b
	if want <= readBuffer {
		i.borrowed = b
	}
}

// release gives back what was borrowed, and keeps nothing.
func (i *inbox) release() {
	if i.borrowed != nil {
		readBuffers.Put(i.borrowed)
	}
	i.buf, i.borrowed = nil, nil
}
