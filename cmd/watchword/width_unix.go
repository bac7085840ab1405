//go:build unix

package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// width returns the width of the terminal in characters; 0 if f is no terminal.
func width(f *os.File) int {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}
