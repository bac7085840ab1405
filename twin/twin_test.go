package twin_test

import (
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/twin"
)

func TestAConfigurationIsReplacedUnderItsVersion(t *testing.T) {
	now := time.Unix(9, 0)
	for _, c := range []struct {
		name               string
		version, ifVersion int64
		want               watchword.Code
	}{
		{"any version", 4, -1, ""},
		{"the version of now", 4, 4, ""},
		{"an older version", 4, 3, watchword.PreconditionFailed},
		{"a later version", 4, 5, watchword.PreconditionFailed},
		{"never set", 0, 0, ""},
		{"set meanwhile", 1, 0, watchword.PreconditionFailed},
	} {
		got, err := twin.Twin{ConfigVersion: c.version, State: []byte("s"), StateVersion: 2}.Configure([]byte("c"), c.ifVersion, now)
		if watchword.CodeOf(err) != c.want || err == nil && (string(got.Config) != "c" || got.ConfigVersion != c.version+1 || !got.ConfigAt.Equal(now) || got.StateVersion != 2) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
	got := twin.Twin{ConfigVersion: 4, StateVersion: 2}.Report([]byte("s"), "lamp-1", 3, now)
	if got.StateVersion != 3 || got.ReportedBy != "lamp-1" || got.ReportedByIncarnation != 3 || !got.StateAt.Equal(now) || got.ConfigVersion != 4 {
		t.Errorf("a report: %+v", got)
	}
}
