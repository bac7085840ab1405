package command_test

import (
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/command"
)

func TestBoundsOfUnfinishedCommands(t *testing.T) {
	for _, c := range []struct {
		bounds  command.Bounds
		by, all int64
		setting string // that Detail names; empty where one more is allowed
	}{
		{command.Bounds{}, 1e9, 1e9, ""},
		{command.Bounds{PerOrderer: 1}, 0, 1e9, ""},
		{command.Bounds{PerOrderer: 1}, 1, 1, "limits.subject_commands"},
		{command.Bounds{PerOrderer: 5, Total: 9}, 4, 8, ""},
		{command.Bounds{PerOrderer: 5, Total: 9}, 5, 8, "limits.subject_commands"},
		{command.Bounds{PerOrderer: 5, Total: 9}, 6, 9, "limits.subject_commands"},
		{command.Bounds{PerOrderer: 5, Total: 9}, 0, 9, "limits.commands"},
		{command.Bounds{PerOrderer: 5, Total: 9}, 0, 10, "limits.commands"},
		{command.Bounds{Total: 1}, 1e9, 0, ""},
		{command.Bounds{Total: 1}, 0, 1, "limits.commands"},
	} {
		err := c.bounds.Refusal(c.by, c.all)
		switch {
		case c.setting == "" && err != nil:
			t.Errorf("%+v, %d of %d: %v", c.bounds, c.by, c.all, err)
		case c.setting != "" && (watchword.CodeOf(err) != watchword.Busy || !strings.Contains(err.Error(), "("+c.setting+")")):
			t.Errorf("%+v, %d of %d: %v, want busy by %s", c.bounds, c.by, c.all, err, c.setting)
		}
	}
}
