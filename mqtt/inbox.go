package mqtt

import "sync"

// The sizes of what is read into: an idle connection keeps little, a busy one
// borrows, and one in the middle of a long packet has what that packet needs.
const (
	smallBuffer = 512
	readBuffer  = 16 << 10
)

var readBuffers = sync.Pool{New: func() any { b := make([]byte, readBuffer); return &b }}

// inbox is what a connection reads into.
type inbox struct {
	buf      []byte
	have     int // bytes of buf that wait
	small    []byte
	borrowed *[]byte
}

// room returns where the next read goes: at least one byte.
func (i *inbox) room() []byte {
	if i.buf == nil {
		i.small = make([]byte, smallBuffer)
		i.buf = i.small
	}
	return i.buf[i.have:]
}

// consume drops the first used bytes. rest is how long the next packet will be, 0
// if that is not known yet; n is how much the last read brought.
func (i *inbox) consume(used, rest, n int) {
	filled := i.have == len(i.buf)
	copy(i.buf, i.buf[used:i.have])
	i.have -= used
	want := max(rest, i.have+1)
	switch {
	case want > len(i.buf), filled && i.borrowed == nil:
		i.resize(want)
	case i.have == 0 && n < smallBuffer && len(i.buf) > smallBuffer:
		i.release()
		i.buf = i.small
	}
}

// resize makes room for want bytes, and for what there is.
func (i *inbox) resize(want int) {
	if want > readBuffer {
		bigger := make([]byte, want)
		copy(bigger, i.buf[:i.have])
		i.release()
		i.buf = bigger
		return
	}
	b := readBuffers.Get().(*[]byte)
	copy(*b, i.buf[:i.have])
	i.release()
	i.buf, i.borrowed = *b, b
}

// release gives back what was borrowed.
func (i *inbox) release() {
	if i.borrowed != nil {
		readBuffers.Put(i.borrowed)
		i.borrowed = nil
	}
}
