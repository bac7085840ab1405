//go:build race

package server_test

// slow is how much longer the race detector makes everything take.
const slow = 4
