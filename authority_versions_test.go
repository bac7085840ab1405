package watchword_test

import (
	"errors"
	"testing"

	"github.com/watchword-iot/watchword"
)

func TestAuthorityVersionsCheck(t *testing.T) {
	b := watchword.AuthorityVersions{Subject: "alice", SubjectVersion: 1, Policies: 2, Target: "lamp-1", TargetVersion: 3}
	for _, c := range []struct {
		name  string
		b     watchword.AuthorityVersions
		v     watchword.Versions
		holds bool
	}{
		{"nothing moved", b, watchword.Versions{Subject: 1, Policies: 2, Target: 3}, true},
		{"the actor moved", b, watchword.Versions{Subject: 2, Policies: 2, Target: 3}, false},
		{"the policies moved", b, watchword.Versions{Subject: 1, Policies: 3, Target: 3}, false},
		{"the target moved", b, watchword.Versions{Subject: 1, Policies: 2, Target: 4}, false},
		{"the stored version is older", b, watchword.Versions{Policies: 2, Target: 3}, false},
		{"the server's own acts have no basis", watchword.AuthorityVersions{}, watchword.Versions{Subject: 9}, true},
		{"an act on the data folder compares nothing", watchword.AuthorityVersions{Local: true}, watchword.Versions{Subject: 9}, true},
	} {
		if err := c.b.Check(c.v); (err == nil) != c.holds || err != nil && !errors.Is(err, watchword.ErrAuthorityChanged) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
