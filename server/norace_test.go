//go:build !race

package server_test

const slow = 1
