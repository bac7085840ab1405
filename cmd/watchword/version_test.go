package main

import (
	"runtime"
	"runtime/debug"
	"testing"
)

func TestVersionMatchesBuildInfo(t *testing.T) {
	for name, tc := range map[string]struct {
		info debug.BuildInfo
		want build
	}{
		"a release": {
			debug.BuildInfo{GoVersion: "go1.26.8", Main: debug.Module{Version: "v1.2.3"}},
			build{Version: "v1.2.3", Go: "go1.26.8", OS: runtime.GOOS, Arch: runtime.GOARCH},
		},
		"a working tree": {
			debug.BuildInfo{GoVersion: "go1.26.8", Main: debug.Module{Version: "(devel)"}, Settings: []debug.BuildSetting{
				{Key: "vcs.revision", Value: "4baa8bc5"},
				{Key: "vcs.time", Value: "2026-11-28T08:00:00Z"},
				{Key: "vcs.modified", Value: "true"},
				{Key: "GOARM", Value: "6"},
			}},
			build{"devel", "4baa8bc5", "2026-11-28T08:00:00Z", true, "go1.26.8", runtime.GOOS, runtime.GOARCH + " GOARM=6"},
		},
		"a clean working tree": {
			debug.BuildInfo{GoVersion: "go1.26.8", Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "a"}, {Key: "vcs.modified", Value: "false"}}},
			build{Version: "devel", Revision: "a", Go: "go1.26.8", OS: runtime.GOOS, Arch: runtime.GOARCH},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := buildOf(&tc.info); got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}
