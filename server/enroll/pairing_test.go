package enroll_test

import (
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/enroll"
)

func TestUserCodeIsParsedLeniently(t *testing.T) {
	for _, tc := range []struct{ name, typed, want string }{
		{"as it is shown", "BCDF-GHJK", "BCDFGHJK"},
		{"without the dash", "BCDFGHJK", "BCDFGHJK"},
		{"in small letters", "wxzq-vtsr", "WXZQVTSR"},
		{"with the dash elsewhere", "BC-DF-GH-JK", "BCDFGHJK"},
		{"too short", "BCDF-GHJ", ""},
		{"too long", "BCDF-GHJK-L", ""},
		{"with a vowel, which no code has", "BCDF-GHJA", ""},
		{"with a digit, which no code has", "BCDF-GHJ0", ""},
		{"a letter that becomes one of ours when it is made big", "BCDF-GHJſ", ""},
		{"nothing", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := enroll.ParseUserCode(tc.typed)
			if got != tc.want || (err == nil) != (tc.want != "") {
				t.Fatalf("got %q, %v", got, err)
			}
			if err != nil && watchword.CodeOf(err) != watchword.BadRequest {
				t.Errorf("got %v", err)
			}
			if back, err := enroll.ParseUserCode(enroll.FormatUserCode(got)); err == nil && back != got {
				t.Errorf("shown and read again it is %q", back)
			}
		})
	}
}
