package mqtt

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// A reason string begins with a code of docs/errors.md, for errors of the protocol too, and has no private cause.
func TestReasonStringsBeginWithACode(t *testing.T) {
	private := errors.New("the disk of shelf 7")
	refusals := map[string]error{
		"a member": watchword.RefuseField("state", "must be one JSON object"),
		"a cause":  watchword.Wrap(private, watchword.Unavailable, "persistent state cannot be written"),
		"a fault":  watchword.Wrap(private, watchword.Internal, "a stored message cannot be decoded"),
		"a rule":   &watchword.Error{Code: watchword.Denied, Detail: "no rule allows this", Rule: "lamps:4"},
		"no code":  private,
		"a stop":   errShuttingDown,
	}
	for _, c := range watchword.Codes {
		refusals[string(c)] = watchword.Refuse(c, "text")
	}
	for r := range 256 {
		refusals[fmt.Sprintf("reason code %#x", r)] = protocolError(packet.Reason(r), packet.CONNECT, "text")
	}
	for name, err := range refusals {
		text := publicText(err)
		code, detail, _ := strings.Cut(text, ": ")
		if !slices.Contains(watchword.Codes, watchword.Code(code)) {
			t.Errorf("%s: %q does not begin with a code", name, text)
		}
		if strings.Contains(text, "shelf") || watchword.Code(code) == watchword.Internal && detail != "" {
			t.Errorf("%s: %q tells a private cause", name, text)
		}
	}
	for name, want := range map[string]string{
		"a member": "bad_request: state: must be one JSON object", "a rule": "denied: no rule allows this (lamps:4)",
		"reason code 0x95": "too_large: text", "reason code 0x8c": "denied: text", "reason code 0x8d": "timed_out: text", "reason code 0x82": "bad_request: text",
	} {
		if got := publicText(refusals[name]); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}
