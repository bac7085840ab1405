//go:build race && (amd64 || arm64)

package lockrank

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"unsafe"
)

// Mutex is a [sync.Mutex] of a kind.
type Mutex[K Kind] struct{ mu sync.Mutex }

// Lock is [sync.Mutex.Lock]. It ends the process where the order of locks is broken.
func (m *Mutex[K]) Lock() {
	var k K
	info := k.LockInfo()
	check(info)
	m.mu.Lock()
	push(info, unsafe.Pointer(m))
}

// Unlock is [sync.Mutex.Unlock]. It ends the process where another goroutine holds the lock.
func (m *Mutex[K]) Unlock() {
	var k K
	pop(k.LockInfo(), unsafe.Pointer(m))
	m.mu.Unlock()
}

// RWMutex is a [sync.RWMutex] of a kind. Locking for reading counts as locking.
type RWMutex[K Kind] struct{ mu sync.RWMutex }

// Lock is [sync.RWMutex.Lock], checked as [Mutex.Lock].
func (m *RWMutex[K]) Lock() {
	var k K
	info := k.LockInfo()
	check(info)
	m.mu.Lock()
	push(info, unsafe.Pointer(m))
}

// Unlock is [sync.RWMutex.Unlock], checked as [Mutex.Unlock].
func (m *RWMutex[K]) Unlock() {
	var k K
	pop(k.LockInfo(), unsafe.Pointer(m))
	m.mu.Unlock()
}

// RLock is [sync.RWMutex.RLock], checked as [Mutex.Lock].
func (m *RWMutex[K]) RLock() {
	var k K
	info := k.LockInfo()
	check(info)
	m.mu.RLock()
	push(info, unsafe.Pointer(m))
}

// RUnlock is [sync.RWMutex.RUnlock], checked as [Mutex.Unlock].
func (m *RWMutex[K]) RUnlock() {
	var k K
	pop(k.LockInfo(), unsafe.Pointer(m))
	m.mu.RUnlock()
}

// Block states that the caller is about to wait for a store or a network. It ends the process where
// the goroutine holds a lock that is not [Info.Blocking].
func Block() {
	if i, found := heldNonBlocking(); found {
		fail(fmt.Sprintf("a goroutine that holds %s waits for a store or a network", i.Name))
	}
}

// fail ends the process. It panics in a goroutine of its own: a panic of the caller could be recovered,
// and the test would stay green.
var fail = func(what string) {
	what = fmt.Sprintf("lockrank: %s\n%s", what, debug.Stack())
	go func() { panic(what) }()
	select {}
}

func check(info Info) {
	if h, found := heldFrom(info.Rank); found {
		fail(fmt.Sprintf("%s (rank %d) is locked by a goroutine that holds %s (rank %d)", info.Name, info.Rank, h.Name, h.Rank))
	}
}

// The held locks are in a table by goroutine. The functions that use it are not instrumented, and the table's own locks are
// hidden from the race detector: otherwise they would order events that the program itself does not order, and hide races.

type held struct {
	goroutine uintptr
	lock      unsafe.Pointer
	info      Info
}

type shard struct {
	mu   sync.Mutex
	n    int
	held [32]held
}

var table [1 << 10]shard

// goroutine returns the address of the runtime's record of the calling goroutine: it identifies the
// goroutine for as long as that lives. (The number that a stack trace begins with costs microseconds.)
func goroutine() uintptr

//go:norace
func mine() (*shard, uintptr) {
	g := goroutine()
	return &table[(g>>7)*0x9E3779B97F4A7C15>>54], g
}

//go:norace
func heldFrom(rank int) (h Info, found bool) {
	s, id := mine()
	runtime.RaceDisable()
	s.mu.Lock()
	for i := 0; i < s.n && !found; i++ {
		if x := &s.held[i]; x.goroutine == id && x.info.Rank >= rank {
			h, found = x.info, true
		}
	}
	s.mu.Unlock()
	runtime.RaceEnable()
	return h, found
}

//go:norace
func heldNonBlocking() (h Info, found bool) {
	s, id := mine()
	runtime.RaceDisable()
	s.mu.Lock()
	for i := 0; i < s.n && !found; i++ {
		if x := &s.held[i]; x.goroutine == id && !x.info.Blocking {
			h, found = x.info, true
		}
	}
	s.mu.Unlock()
	runtime.RaceEnable()
	return h, found
}

//go:norace
func push(info Info, lock unsafe.Pointer) {
	s, id := mine()
	runtime.RaceDisable()
	s.mu.Lock()
	fits := s.n < len(s.held)
	if fits {
		s.held[s.n].goroutine, s.held[s.n].lock, s.held[s.n].info = id, lock, info
		s.n++
	}
	s.mu.Unlock()
	runtime.RaceEnable()
	if !fits {
		fail("more locks are held than the table has room for")
	}
}

//go:norace
func pop(info Info, lock unsafe.Pointer) {
	s, id := mine()
	found := false
	runtime.RaceDisable()
	s.mu.Lock()
	for i := 0; i < s.n && !found; i++ {
		if x := &s.held[i]; x.goroutine == id && x.lock == lock {
			s.n--
			s.held[i] = s.held[s.n]
			s.held[s.n] = held{}
			found = true
		}
	}
	s.mu.Unlock()
	runtime.RaceEnable()
	if !found {
		fail(info.Name + " is unlocked by a goroutine that does not hold it")
	}
}
