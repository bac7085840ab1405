package watchword_test

import (
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
)

func TestSubjectNameIsBounded(t *testing.T) {
	for name, want := range map[string]watchword.Code{
		"": "", "Lampe im Büro, 2. Stock": "", "灯 (左)": "", strings.Repeat("é", watchword.MaxSubjectName/2): "",
		strings.Repeat("é", watchword.MaxSubjectName/2) + "x": watchword.BadRequest,
		"a\nb": watchword.BadRequest, "\x00": watchword.BadRequest, "\x7f": watchword.BadRequest, "\u0085": watchword.BadRequest, "\u2028": watchword.BadRequest,
		"\u202eexe.lamp": watchword.BadRequest, "\xff": watchword.BadRequest,
	} {
		if got := watchword.CodeOf(watchword.CheckSubjectName(name)); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

// An address of a network interface with colons is refused as an id, and the error shows the id that it can have.
func TestIDThatIsAHardwareAddressGetsAHint(t *testing.T) {
	for id, hint := range map[string]string{
		"00:1A:2b:3c:4d:5e": "write the address as 00-1a-2b-3c-4d-5e", "00:1a:2b:3c:4d:5e:6f:70": "write the address as 00-1a-2b-3c-4d-5e-6f-70",
		"a:b": "", "00:1a": "", "": "",
	} {
		err := watchword.CheckSubjectID(id)
		if watchword.CodeOf(err) != watchword.BadRequest || strings.Contains(err.Error(), "write the address") != (hint != "") || !strings.Contains(err.Error(), hint) {
			t.Errorf("%q: %v, want the hint %q", id, err, hint)
		}
	}
	for _, id := range []string{"00-1a-2b-3c-4d-5e", "001a.2b3c.4d5e", "lamp-1"} {
		if err := watchword.CheckSubjectID(id); err != nil {
			t.Errorf("%q: %v", id, err)
		}
	}
}
