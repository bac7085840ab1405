//go:build !race

package bench_test

const racing = false
