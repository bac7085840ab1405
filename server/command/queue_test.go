package command_test

import (
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/command"
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
		_, err := command.Queue{OfOrderer: c.by, Total: c.all}.Add(command.Row{}, c.bounds)
		switch {
		case c.setting == "" && err != nil:
			t.Errorf("%+v, %d of %d: %v", c.bounds, c.by, c.all, err)
		case c.setting != "" && (watchword.CodeOf(err) != watchword.Busy || !strings.Contains(err.Error(), "("+c.setting+")")):
			t.Errorf("%+v, %d of %d: %v, want busy by %s", c.bounds, c.by, c.all, err, c.setting)
		}
	}
}

func TestCommandTargetMustBeActiveDevice(t *testing.T) {
	for _, c := range []struct {
		name   string
		state  watchword.State
		queued int64
		want   watchword.Code
	}{
		{"a new device takes commands", watchword.New, 0, ""},
		{"a suspended device takes commands", watchword.Suspended, 0, ""},
		{"a revoked device takes none", watchword.Revoked, 0, watchword.SubjectRevoked},
		{"a queue with one place left takes one", watchword.Active, command.MaxQueued - 1, ""},
		{"a full queue takes none", watchword.Active, command.MaxQueued, watchword.Busy},
	} {
		q := command.Queue{Device: watchword.Subject{State: c.state, Incarnation: 3}, Seq: 7, OfDevice: c.queued}
		r, err := q.Add(command.Row{ID: "cmd_1"}, command.Bounds{})
		wantCode(t, c.name, err, c.want)
		if err == nil && (r.Seq != 7 || r.Incarnation != 3 || r.State != watchword.Queued || r.ID != "cmd_1") {
			t.Errorf("%s: %+v", c.name, r)
		}
	}
}

func TestARepeatedRequest(t *testing.T) {
	i := command.Idempotency{Caller: "alice", Key: "k", Hash: [32]byte{1}}
	wantCode(t, "the same request", i.Repeats(i.Hash[:]), "")
	wantCode(t, "another request under the key", i.Repeats(make([]byte, 32)), watchword.Conflict)
	wantCode(t, "a hash that is cut short", i.Repeats(i.Hash[:31]), watchword.Conflict)
	if at := time.Unix(1, 0); i.Until(at).Sub(at) <= 24*time.Hour {
		t.Error("the key is forgotten before its command ends")
	}
}
