package audit

import (
	"testing"

	"github.com/watchword-iot/watchword"
)

func TestEveryCodeSaysWhetherItsRefusalsAreRecorded(t *testing.T) {
	if len(requestRefusals) != len(watchword.Codes) {
		t.Errorf("%d codes in the table, and %d that there are", len(requestRefusals), len(watchword.Codes))
	}
	for _, c := range watchword.Codes {
		when := requestRefusals[c]
		if when == 0 {
			t.Errorf("%s is not in the table", c)
		}
		for _, known := range []bool{false, true} {
			if got, want := ShouldRecord(RequestRefuse, c, known), when == always || when == authenticatedOnly && known; got != want {
				t.Errorf("%s, known %v: %v", c, known, got)
			}
		}
	}
}

// The recorder asks the table itself: no endpoint can record more or less than another.
func TestRecorderFollowsRefusalTable(t *testing.T) {
	for _, tc := range []struct {
		kind  string
		code  watchword.Code
		actor watchword.SubjectID
		want  bool
	}{
		{RequestRefuse, watchword.Denied, "", true},
		{RequestRefuse, watchword.Denied, "lamp-1", true},
		{RequestRefuse, watchword.TokenReplayed, "", true},
		{RequestRefuse, watchword.CodeInvalid, "", true},
		{RequestRefuse, watchword.OrderInvalid, "lamp-1", true},
		{RequestRefuse, watchword.DPoPNonce, "", false},
		{RequestRefuse, watchword.NotFound, "lamp-1", false},
		{RequestRefuse, watchword.BadRequest, "lamp-1", false},
		{RequestRefuse, watchword.Internal, "lamp-1", false},
		{RequestRefuse, watchword.ScopeInvalid, "", false},
		{RequestRefuse, watchword.ScopeInvalid, "lamp-1", true},
		{RequestRefuse, watchword.TokenTooLarge, "", false},
		{RequestRefuse, watchword.TokenTooLarge, "lamp-1", true},
		{RequestRefuse, "", "lamp-1", false},
		{DeviceEnroll, watchword.NotFound, "op", true},
		{DeviceEnroll, watchword.Conflict, "op", true},
		{DeviceEnroll, watchword.Unavailable, "op", false},
		{PairingReject, watchword.NotFound, "op", true},
		{PairingReject, watchword.Internal, "op", false},
		{TokenRevoke, watchword.Denied, "lamp-1", true},
		{TokenRevoke, watchword.NotFound, "lamp-1", false},
		{DeviceRekey, watchword.Conflict, "lamp-1", true},
		{DeviceRekey, watchword.ProofInvalid, "lamp-1", false},
		{PolicyApply, watchword.Conflict, "op", true},
	} {
		r := NewRecorder(nil)
		r.Refused(Entry{Kind: tc.kind, Code: tc.code, Actor: tc.actor, Outcome: Refused})
		if got := len(r.refusals.queue)+len(r.unauthenticated.queue) == 1; got != tc.want {
			t.Errorf("%s %s of %q: recorded %v", tc.kind, tc.code, tc.actor, got)
		}
	}
}
