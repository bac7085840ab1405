package server_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/server"
)

// What people rely on and what ends within a week is listed by the API, in the process log, at /readyz and as a metric: the last key
// of an operator or a service, and the certificate in files.
func TestEndingsAreListed(t *testing.T) {
	dir, log := t.TempDir(), &lockedBuffer{}
	c := config(t, filepath.Join(dir, "data"))
	c.Server.TLSCert, c.Server.TLSKey = certificate(t, dir, 1) // ends in an hour
	o := (&machine{}).options(log, time.Time{})
	info, stop := runAt(t, c, o)
	info.CAFile = c.Server.TLSCert
	owner := func() *admin.Client {
		jwk, err := os.ReadFile(filepath.Join(c.Data, "operator.jwk"))
		check(t, err)
		key, err := jose.ParsePrivateJWK(jwk, jose.ForSigning)
		check(t, err)
		return client(t, info, "operator", key, nil)
	}
	cl := owner()
	enroll := func(all admin.Subjects, id watchword.SubjectID, keyTTL time.Duration) {
		t.Helper()
		link, err := all.Link(t.Context(), id, 0, keyTTL)
		check(t, err)
		redeem(t, info, server.Recovery{Operator: id, Code: link.Code})
	}
	const day = 24 * time.Hour
	for _, s := range []struct {
		id   watchword.SubjectID
		keys []time.Duration // lifetimes; 0: no end
	}{{"short", []time.Duration{2 * time.Hour}}, {"both", []time.Duration{3 * time.Hour, 0}}, {"two", []time.Duration{2 * day, time.Hour}}, {"later", []time.Duration{8 * day, time.Hour}}} {
		_, err := cl.CreateOperator(t.Context(), s.id, "viewer", 0)
		check(t, err)
		for _, life := range s.keys {
			enroll(cl.Operators(), s.id, life)
		}
	}
	_, err := cl.CreateService(t.Context(), "billing", nil, 0)
	check(t, err)
	enroll(cl.Services(), "billing", 6*day)
	want := []string{"tls_certificate " + c.Server.TLSCert, "operator_key short", "operator_key two", "service_key billing"}
	list, err := cl.Notices(t.Context())
	check(t, err)
	var got []string
	for _, e := range list.Endings {
		if got = append(got, fmt.Sprint(e.Kind, " ", e.Name)); e.Action == "" || time.Until(e.EndsAt) > 7*day {
			t.Errorf("%+v", e)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("listed %q, want %q", got, want)
	}
	if e := list.Endings[2]; time.Until(e.EndsAt) < day { // the last of its keys counts
		t.Errorf("%+v", e)
	}
	check(t, cl.Operators().RevokeKey(t.Context(), "short", mustKeys(t, cl, "short")[0].ID))
	_, err = cl.Operators().Suspend(t.Context(), "two", "")
	check(t, err)
	stop()

	info, _ = runAt(t, c, o)
	for _, line := range []string{"kind=tls_certificate", "kind=service_key name=billing"} {
		if n := strings.Count(log.String(), line); n == 0 {
			t.Errorf("the process log has no %s", line)
		}
	}
	if strings.Contains(log.String(), "name=short") || strings.Contains(log.String(), "name=two") {
		t.Error("the log warns of an operator that is suspended, or has no key any more")
	}
	_, body, err := fetch(t, "GET", "http://"+info.Metrics+"/readyz", "")
	check(t, err)
	if !strings.Contains(body, "warning: service_key billing ends at ") {
		t.Errorf("/readyz says %s", body)
	}
	_, body, err = fetch(t, "GET", "http://"+info.Metrics+"/metrics", "")
	check(t, err)
	if !strings.Contains(body, "watchword_endings 2\n") {
		t.Errorf("the metric is not 2")
	}
}

func mustKeys(t *testing.T, cl *admin.Client, id watchword.SubjectID) []api.DeviceKey {
	t.Helper()
	keys, err := cl.Operators().Keys(t.Context(), id)
	check(t, err)
	return keys
}

// A trust bundle that an offline root must replace is listed; one that the server signs again by itself is not.
func TestEndingBundleIsListed(t *testing.T) {
	dir, m := t.TempDir(), &machine{synced: true}
	c := config(t, filepath.Join(dir, "data"))
	once(t, c)
	m.set(80*24*time.Hour, true)
	logOf := func() string {
		log := &lockedBuffer{}
		_, stop := runAt(t, c, m.options(log, time.Time{}))
		stop()
		return log.String()
	}
	if log := logOf(); strings.Contains(log, "kind=trust_bundle") {
		t.Errorf("with the root here: %s", log)
	}
	check(t, server.TakeRootOffline(t.Context(), c, filepath.Join(dir, "root.jwk"), quiet))
	m.set(160*24*time.Hour, true)
	if log := logOf(); !strings.Contains(log, "kind=trust_bundle") {
		t.Errorf("with the root offline: %s", log)
	}
}
