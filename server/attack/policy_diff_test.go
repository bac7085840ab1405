package attack_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/sdk/device"
)

// The live sessions that a diff lists are those that the edit then changes: over MQTT and over HTTP, with tokens that have the
// permission and tokens that have not.
func TestADiffListsLiveSessions(t *testing.T) {
	srv := serve(t, nil)
	ctx := t.Context()
	const before = "for = { kind = \"lamp\" }\n[[allow]]\npublish = [\"plant/${id}/lux\"]\nsubscribe = [\"plant/#\"]\n[[allow]]\nget = [\"/v1/events\"]\nsubscribe = [\"devices/+/events/#\"]\n"
	_, err := srv.admin.ApplyPolicy(ctx, "lamps", []byte(before), -1)
	must(t, err)
	lamp := srv.enroll("lamp-1", device.Options{}, watchword.Labels{"kind": "lamp"})
	reader := srv.enroll("lamp-2", device.Options{}, watchword.Labels{"kind": "lamp"})
	other := srv.enroll("meter-1", device.Options{}, watchword.Labels{"kind": "meter"})
	whole := connectPaho(t, lamp, "")
	whole.subscribe(t, "plant/#")
	assertion, err := lamp.Assertion(time.Minute)
	must(t, err)
	form := assertionForm(assertion)
	form.Set("scope", "pub:topic:plant/lamp-1/lux")
	narrow := srv.request("POST", "/oauth/token", "", form.Encode(), formType)
	_, err = dialPaho(t, lamp, "lamp-1/narrow", narrow.member(t, "access_token"))
	must(t, err)
	connectPaho(t, other, "") // the policy is not for it
	stream := srv.stream("/v1/events", srv.token(reader))
	next(t, stream, "session")

	byTransport := func(d api.PolicyDiff) (out []string) {
		for _, s := range d.LiveSessions {
			line := string(s.Subject) + " " + s.Transport
			for word, is := range map[string]bool{" gains": s.Gains, " loses": s.Loses, " ends": s.Ends} {
				if is {
					line += word
				}
			}
			out = append(out, line)
		}
		slices.Sort(out)
		return out
	}
	shows := func(what, text string, want ...string) api.PolicyDiff {
		t.Helper()
		var source []byte
		if text != "" {
			source = []byte(text)
		}
		d, err := srv.admin.DiffPolicy(ctx, "lamps", source)
		must(t, err)
		if got := byTransport(d); !slices.Equal(got, want) || d.Sessions != len(want) || d.Refused != nil || d.Version != 1 {
			t.Errorf("%s: got %q of %d, refused %v, version %d; want %q", what, got, d.Sessions, d.Refused, d.Version, want)
		}
		return d
	}
	shows("the same text", before)
	shows("one topic less", strings.Replace(before, "plant/#", "plant/+/lux", 1), "lamp-1 mqtt loses", "lamp-2 sse loses")
	shows("the topic of the narrow token", strings.Replace(before, "${id}/lux", "none", 1), "lamp-1 mqtt loses", "lamp-1 mqtt loses", "lamp-2 sse loses")
	shows("a proof", "proof = \"required\"\n"+before, "lamp-1 mqtt ends", "lamp-1 mqtt ends", "lamp-2 sse ends")
	if d := shows("the deletion", "", "lamp-1 mqtt loses", "lamp-1 mqtt loses", "lamp-2 sse loses"); d.Groups[0].Sessions != 3 || !d.Delete {
		t.Errorf("the groups are %+v", d.Groups)
	}

	// Nothing of that was applied; the edit changes what was shown.
	next := strings.Replace(before, "[[allow]]\nget = [\"/v1/events\"]\nsubscribe = [\"devices/+/events/#\"]\n", "", 1)
	d := shows("the events", next, "lamp-1 mqtt loses", "lamp-2 sse loses")
	_, err = srv.admin.ApplyPolicy(ctx, "lamps", []byte(next), d.Version)
	must(t, err)
	for range stream { // ends
	}
	if ss, err := srv.admin.Sessions(ctx, "lamp-1"); err != nil || len(ss) != 2 {
		t.Errorf("the sessions of lamp-1 are %+v, %v", ss, err)
	}
	if _, err = srv.admin.ApplyPolicy(ctx, "lamps", []byte(before), d.Version); watchword.CodeOf(err) != watchword.PreconditionFailed {
		t.Errorf("an edit that was compared with an older version: %v", err)
	}
	// Who may not apply it is told so.
	s, err := srv.admin.CreateOperator(ctx, "vera", "viewer", 0)
	must(t, err)
	a := srv.request("POST", "/v1/policies/diff?name=lamps&delete=true", srv.enrollSubject(s), "")
	if a.status != http.StatusOK || !strings.Contains(a.body, `"refused":{"code":"denied"`) {
		t.Errorf("a viewer: %d %s", a.status, a.body)
	}
	for _, tc := range []struct{ query, body, kind, code string }{
		{"name=lamps&delete=true", "x = 1", "application/toml", "bad_request"},
		{"name=lamps&delete=yes", "", "application/toml", "bad_request"},
		{"name=la/mps", before, "application/toml", "bad_request"},
		{"name=lamps", before, "application/json", "unsupported_media_type"},
		{"name=no-such&delete=true", "", "", "not_found"},
		{"name=lamps", "for = 7", "application/toml", "policy_invalid"},
	} {
		head := []string{}
		if tc.kind != "" {
			head = append(head, "Content-Type: "+tc.kind)
		}
		if a := srv.request("POST", "/v1/policies/diff?"+tc.query, srv.narrowed(srv.operatorSigner(), "operator", ""), tc.body, head...); !strings.Contains(a.body, `"code":"`+tc.code+`"`) {
			t.Errorf("%+v: %d %s", tc, a.status, a.body)
		}
	}
}
