package token_test

import (
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/token"
)

func TestTokenIssueRule(t *testing.T) {
	holds := func(with func(*token.SubjectState)) token.SubjectState {
		h := token.SubjectState{Kind: watchword.Device, State: watchword.Active, Incarnation: 2, HasKey: true}
		if with != nil {
			with(&h)
		}
		return h
	}
	state := func(s watchword.State) token.SubjectState { return holds(func(h *token.SubjectState) { h.State = s }) }
	for _, c := range []struct {
		name string
		h    token.SubjectState
		used bool
		want watchword.Code
	}{
		{"an active subject gets one", holds(nil), false, ""},
		{"no subject gets none", token.SubjectState{}, false, watchword.ClientInvalid},
		{"a new subject gets none", state(watchword.New), false, watchword.SubjectNew},
		{"a suspended subject gets none", state(watchword.Suspended), false, watchword.SubjectSuspended},
		{"a revoked subject gets none", state(watchword.Revoked), false, watchword.SubjectRevoked},
		{"a key that does not count gets none", holds(func(h *token.SubjectState) { h.HasKey = false }), false, watchword.ClientInvalid},
		{"a key of an earlier life gets none", holds(func(h *token.SubjectState) { h.Incarnation = 3 }), false, watchword.ClientInvalid},
		{"an assertion that was spent gets none", holds(nil), true, watchword.TokenReplayed},
		{"of a suspended subject that is said, not the replay", state(watchword.Suspended), true, watchword.SubjectSuspended},
	} {
		if err := (token.Record{Subject: "lamp-1", Incarnation: 2}).Issue(c.h, c.used); watchword.CodeOf(err) != c.want {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for _, c := range []struct {
		name    string
		h       token.SubjectState
		revoked bool
		want    bool
	}{
		{"a token of an active subject stands", holds(nil), false, false},
		{"a token of a suspended subject stands", state(watchword.Suspended), false, false},
		{"a token that was revoked is revoked", holds(nil), true, true},
		{"a revoked subject takes its tokens along", state(watchword.Revoked), false, true},
		{"a deleted one too", token.SubjectState{}, false, true},
		{"another life too", holds(func(h *token.SubjectState) { h.Incarnation = 3 }), false, true},
	} {
		if got := (token.Record{Incarnation: 2, Revoked: c.revoked}).WithSubjectState(c.h).Revoked; got != c.want {
			t.Errorf("%s: revoked %v", c.name, got)
		}
	}
	for _, c := range []struct {
		token, key bool
		want       watchword.Code
	}{{false, false, ""}, {true, false, watchword.TokenRevoked}, {false, true, watchword.IssuerRevoked}, {true, true, watchword.TokenRevoked}} {
		if err := token.CheckNotRevoked(c.token, c.key); watchword.CodeOf(err) != c.want {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
