package main

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword/internal/terminal"
)

// build is the build information of the program (runtime/debug.BuildInfo). Unknown members are empty.
type build struct {
	Version  string `json:"version"`            // of the module, "devel" for a build from a working tree
	Revision string `json:"revision,omitempty"` // the commit
	Time     string `json:"time,omitempty"`     // of the commit, RFC 3339
	Modified bool   `json:"modified,omitempty"` // the working tree had uncommitted changes
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"` // with its level if the build states one, as "arm GOARM=6"
}

func thisBuild() build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{GoVersion: runtime.Version()}
	}
	return buildOf(info)
}

func buildOf(info *debug.BuildInfo) build {
	b := build{Version: info.Main.Version, Go: info.GoVersion, OS: runtime.GOOS, Arch: runtime.GOARCH}
	if b.Version == "" || b.Version == "(devel)" {
		b.Version = "devel"
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		case "GOARM", "GOAMD64", "GOARM64", "GO386", "GORISCV64":
			b.Arch += " " + s.Key + "=" + s.Value
		}
	}
	return b
}

// version is the module's version alone.
func version() string { return thisBuild().Version }

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version, the commit and the platform of this build", Args: positional(cobra.NoArgs), RunE: func(*cobra.Command, []string) error {
		b := thisBuild()
		return a.print(b, func(w *terminal.Writer) {
			w.Printf("version   %s\n", b.Version)
			if b.Revision != "" {
				changed := ""
				if b.Modified {
					changed = ", and uncommitted changes"
				}
				w.Printf("revision  %s%s\n", b.Revision, changed)
				w.Printf("time      %s\n", b.Time)
			}
			w.Printf("go        %s\nplatform  %s/%s\n", b.Go, b.OS, b.Arch)
		})
	}}
}
