package policy_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
)

func TestADocumentIsReplacedUnderItsVersion(t *testing.T) {
	now := time.Unix(9, 0).UTC()
	none := policy.Stored{Name: "p"}
	there := policy.Stored{Name: "p", Version: 3, Source: []byte("old"), Changed: time.Unix(1, 0).UTC()}
	gone := policy.Stored{Name: "p", Version: 3, Source: []byte{}, Deleted: true}
	for _, c := range []struct {
		name      string
		was       policy.Stored
		source    string
		ifVersion int64
		version   int64 // 0: it stays
		want      watchword.Code
	}{
		{"the first of its name", none, "new", -1, 1, ""},
		{"where there must be none, there is none", none, "new", 0, 1, ""},
		{"where there must be one, there is none", none, "new", 1, 0, watchword.PreconditionFailed},
		{"any is replaced", there, "new", -1, 4, ""},
		{"the version that was compared is replaced", there, "new", 3, 4, ""},
		{"an older version was compared", there, "new", 2, 0, watchword.PreconditionFailed},
		{"where there must be none, there is one", there, "new", 0, 0, watchword.PreconditionFailed},
		{"the same text changes nothing", there, "old", -1, 0, ""},
		{"the same text under another version is refused all the same", there, "old", 2, 0, watchword.PreconditionFailed},
		{"one that was deleted comes back with a larger version", gone, "new", 0, 4, ""},
		{"an empty text is a change where one was deleted", gone, "", -1, 4, ""},
		{"the version of one that was deleted is none", gone, "new", 3, 0, watchword.PreconditionFailed},
	} {
		got, changed, err := c.was.Replace([]byte(c.source), c.ifVersion, now)
		if watchword.CodeOf(err) != c.want || changed != (c.version > 0) {
			t.Errorf("%s: changed %v, %v", c.name, changed, err)
		}
		want := c.was
		if c.version > 0 {
			want = policy.Stored{Name: "p", Version: c.version, Source: []byte(c.source), Changed: now}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	for _, c := range []struct {
		name      string
		was       policy.Stored
		ifVersion int64
		want      watchword.Code
	}{
		{"any is deleted", there, -1, ""},
		{"the version that was compared is deleted", there, 3, ""},
		{"another version was compared", there, 2, watchword.PreconditionFailed},
		{"0 is the version of none", there, 0, watchword.PreconditionFailed},
		{"there never was one", none, -1, watchword.NotFound},
		{"it was deleted before", gone, -1, watchword.NotFound},
	} {
		got, err := c.was.Delete(c.ifVersion, now)
		if watchword.CodeOf(err) != c.want || err == nil && (got.Exists() || len(got.Source) != 0 || got.Version != 3 || !got.Changed.Equal(now)) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
}
