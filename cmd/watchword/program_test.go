package main

import "testing"

func TestHintsNameExistingCommands(t *testing.T) {
	for _, tc := range []struct{ what, self, inPath, called, want string }{
		{"installed", "/usr/bin/watchword", "/usr/bin/watchword", "watchword", "watchword"},
		{"by go run", "/tmp/go-build123/b001/exe/watchword", "", "/tmp/go-build123/b001/exe/watchword", "go run ./cmd/watchword"},
		{"by go run beside an installed one", "/tmp/go-build123/b001/exe/watchword", "/usr/bin/watchword", "/tmp/go-build123/b001/exe/watchword", "go run ./cmd/watchword"},
		{"built in the folder", "/home/a/watchword/watchword", "", "./watchword", "./watchword"},
		{"built in the folder beside an installed one", "/home/a/watchword/watchword", "/usr/bin/watchword", "./watchword", "./watchword"},
		{"without a path in its name", "/home/a/watchword", "", "watchword", "/home/a/watchword"},
	} {
		if got := programName(tc.self, tc.inPath, tc.called); got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.what, got, tc.want)
		}
	}
}
