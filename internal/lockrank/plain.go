//go:build !race || !(amd64 || arm64)

package lockrank

import "sync"

// Mutex is a [sync.Mutex] of a kind.
type Mutex[K Kind] struct{ sync.Mutex }

// RWMutex is a [sync.RWMutex] of a kind.
type RWMutex[K Kind] struct{ sync.RWMutex }

// Block states that the caller is about to wait for a store or a network. Under the race detector
// it fails where the goroutine holds a lock that is not [Info.Blocking].
func Block() {}
