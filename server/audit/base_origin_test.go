package audit

import "testing"

func TestOriginsOfOneServer(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		same bool
	}{
		{"w.example/log", "w.example/log/44", true},
		{"w.example/log/7", "w.example/log/44-k3j2abcd", true},
		{"w.example/log", "w.example/log", true},
		{"w.example/log", "v.example/log/44-k3j2abcd", false},
		{"w.example/log", "w.example/log/x-44", false},
		{"w.example/log", "w.example/logs/44", false},
	} {
		if sameLog(tc.a, tc.b) != tc.same {
			t.Errorf("%s and %s: same is %t", tc.a, tc.b, !tc.same)
		}
	}
}
