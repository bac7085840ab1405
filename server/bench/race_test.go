//go:build race

package bench_test

// The race detector lets pools lose what they keep: allocations are counted without it.
const racing = true
