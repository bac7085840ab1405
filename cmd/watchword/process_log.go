package main

import (
	"log/slog"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/cmd/internal/logfile"
	"github.com/watchword-iot/watchword/internal/logbudget"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/server"
)

// processLog is the log of a command that runs until it is stopped. Level and file can be changed while it runs.
type processLog struct {
	*slog.Logger // also [slog.Default]
	level        slog.LevelVar
	file         *logfile.File
	terminal     bool // standard error is one
}

// openLog makes the log of the whole process. It goes to standard error where no file is named. Codes: config_invalid, file_untrusted.
func (a *app) openLog(c server.LogConfig) (*processLog, error) {
	l := &processLog{file: logfile.New(a.err), terminal: a.err.IsTerminal()}
	if err := l.use(c.File); err != nil {
		return nil, err
	}
	l.setLevel(c.Level)
	o, to := &slog.HandlerOptions{Level: &l.level}, terminal.New(l.file, false)
	var h slog.Handler = slog.NewTextHandler(to, o)
	if c.Format == "json" {
		h = slog.NewJSONHandler(to, o)
	}
	l.Logger = slog.New(h)
	slog.SetDefault(l.Logger)
	return l, nil
}

// setLevel sets the level. Where none is configured it is info; on a terminal warn, since lines about requests would cover what its
// user types. text was checked with the configuration.
func (l *processLog) setLevel(text string) {
	var level slog.Level
	switch {
	case text != "":
		_ = level.UnmarshalText([]byte(text))
	case l.terminal && l.file.Path() == "":
		level = slog.LevelWarn
	}
	l.level.Set(level)
}

// use writes to another file from now on, or to standard error where path is empty. On an error the file before stays in use. Codes:
// config_invalid, file_untrusted.
func (l *processLog) use(path string) error {
	err := l.file.Use(path)
	if err == nil || watchword.CodeOf(err) == watchword.FileUntrusted {
		return err
	}
	return watchword.Wrap(err, watchword.ConfigInvalid, "the log file cannot be opened: %s", err)
}

// bound limits the lines that clients can cause, for a server.
func (l *processLog) bound() {
	l.Logger = slog.New(logbudget.New(l.Handler()))
	slog.SetDefault(l.Logger)
}

// reopen opens the file again, which logrotate may have renamed. Codes: those of use.
func (l *processLog) reopen() error { return l.use(l.file.Path()) }
