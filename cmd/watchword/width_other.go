//go:build !unix

package main

import "os"

// width returns 0: the width of the terminal is unknown.
func width(*os.File) int { return 0 }
