package httpapi

import (
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
)

func TestEveryCodeHasAStatus(t *testing.T) {
	for _, c := range watchword.Codes {
		s, ok := statusOf[c]
		if !ok || s < 400 || s > 599 {
			t.Errorf("code %s has status %d", c, s)
		}
	}
	if len(statusOf) != len(watchword.Codes) {
		t.Errorf("%d statuses for %d codes", len(statusOf), len(watchword.Codes))
	}
}

func TestInternalCauseIsNotPublic(t *testing.T) {
	secret := "the disk said secret things"
	for _, err := range []error{
		watchword.Wrap(errText(secret), watchword.Internal, "inner detail"),
		errText(secret),
		watchword.Wrap(errText(secret), watchword.Unavailable, "the store does not answer"),
	} {
		p := newProblem(err)
		if strings.Contains(p.Detail, secret) || p.Status < 500 {
			t.Errorf("%+v", p)
		}
		if p.Code == watchword.Internal && p.Detail != "" {
			t.Errorf("a fault of ours is shown as more than one word: %+v", p)
		}
	}
}

type errText string

func (e errText) Error() string { return string(e) }
