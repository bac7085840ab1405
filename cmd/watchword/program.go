package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// program returns how this program is called in hints, so that a hint works when it is pasted: `watchword` where that is found
// in PATH, `go run ./cmd/watchword` where `go run` built it, else the path of the binary.
var program = sync.OnceValue(func() string {
	self, err := os.Executable()
	if err != nil {
		return "watchword"
	}
	if real, err := filepath.EvalSymlinks(self); err == nil {
		self = real
	}
	inPath := ""
	if found, err := exec.LookPath("watchword"); err == nil {
		if real, err := filepath.EvalSymlinks(found); err == nil {
			inPath = real
		}
	}
	return programName(self, inPath, os.Args[0])
})

// programName returns the name for a binary at self; the command in PATH is the file inPath (empty for none). called is
// os.Args[0].
func programName(self, inPath, called string) string {
	switch {
	case inPath != "" && inPath == self:
		return "watchword"
	case strings.Contains(filepath.ToSlash(self), "/go-build") && strings.HasSuffix(filepath.ToSlash(filepath.Dir(self)), "/exe"):
		return "go run ./cmd/watchword"
	case strings.ContainsRune(called, filepath.Separator) && !strings.ContainsAny(called, " \t"):
		return called
	}
	return self
}

// runnable replaces the program's name at the beginning of a command in a hint.
func runnable(hint string) string { return strings.ReplaceAll(hint, "watchword ", program()+" ") }
