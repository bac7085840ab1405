// Package lockrank has mutexes whose order is checked under the race detector. A package that uses
// it gives each of its locks a kind with a rank. A goroutine that holds a lock may lock another one
// only if that has a higher rank; two locks of one kind are never held together. Without the race
// detector the types are those of package sync, and nothing is recorded or checked.
package lockrank

// Info describes all locks of one kind.
type Info struct {
	Name string // in reports: package, type and field
	Rank int    // locks are taken in ascending order; no two kinds that meet have the same
	// Blocking says that a lock may be held while its holder waits for a store or a network: see [Block].
	Blocking bool
}

// Kind is the type of all locks of one kind. Its zero value must be usable.
type Kind interface{ LockInfo() Info }
