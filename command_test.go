package watchword

import "testing"

// Only an end that is known is final: not a state that is not there.
func TestFinalStates(t *testing.T) {
	for s, want := range map[CommandState]bool{
		"": false, Queued: false, Sent: false, Delivered: false, Accepted: false,
		Done: true, Refused: true, Failed: true, Interrupted: true, Expired: true, Cancelled: true, Unknown: true, Undeliverable: true,
	} {
		if s.Final() != want {
			t.Errorf("%q is final: %v", s, !want)
		}
	}
}
