package storetest

import (
	"fmt"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/twin"
)

func twins(t *T) {
	t.enrolled("lamp-1")
	e := t.entry(audit.ConfigSet, "lamp-1")
	w, err := t.Twin(t.ctx, tenant, "lamp-1")
	t.must(err)
	if w.Config != nil || w.State != nil || w.ConfigVersion != 0 || w.StateVersion != 0 {
		t.Fatalf("an empty twin: %+v", w)
	}
	_, err = t.Twin(t.ctx, tenant, "nobody")
	t.wantCode(watchword.NotFound, err)
	w, err = t.SetConfig(t.ctx, tenant, "lamp-1", []byte("c1"), 0, t.now, e)
	t.must(err)
	equal(t, "version", w.ConfigVersion, 1)
	_, err = t.SetConfig(t.ctx, tenant, "lamp-1", []byte("c2"), 0, t.now, e)
	t.wantCode(watchword.PreconditionFailed, err)
	w, err = t.SetConfig(t.ctx, tenant, "lamp-1", []byte("c2"), -1, t.now, e)
	t.must(err)
	equal(t, "version", w.ConfigVersion, 2)
	t.must(t.ReportState(t.ctx, tenant, watchword.AuthorityVersions{}, "lamp-1", []byte("s1"), t.now))
	_, err = t.Revoke(t.ctx, tenant, "lamp-1", t.now, t.entry(audit.DeviceRevoke, "lamp-1"))
	t.must(err)
	t.enroll("lamp-1", "lamp-1 again")
	_, err = t.SetConfig(t.ctx, tenant, "lamp-1", []byte("c1"), -1, t.now, t.entry(audit.ConfigSet, "lamp-1"))
	t.must(err)
	_, err = t.SetConfig(t.ctx, tenant, "lamp-1", []byte("c2"), -1, t.now, t.entry(audit.ConfigSet, "lamp-1"))
	t.must(err)
	t.must(t.ReportState(t.ctx, tenant, watchword.AuthorityVersions{}, "lamp-1", []byte("s1"), t.now))
	t.must(t.ReportState(t.ctx, tenant, t.versions("lamp-1"), "lamp-1", []byte("s2"), t.now))
	w, err = t.Twin(t.ctx, tenant, "lamp-1")
	t.must(err)
	equal(t, "reporter", w.ReportedBy, "lamp-1")
	equal(t, "its incarnation", w.ReportedByIncarnation, 2)
	all, err := t.ReportedStates(t.ctx, tenant, "", 1)
	t.must(err)
	equal(t, "reporter in the list", fmt.Sprint(all[0].ReportedBy, " ", all[0].ReportedByIncarnation), "lamp-1 2")
	equal(t, "config", string(w.Config), "c2")
	equal(t, "state", string(w.State), "s2")
	equal(t, "reports", w.StateVersion, 2)
	t.enrolled("lamp-2")
	t.enrolled("lamp-3") // says nothing
	t.must(t.ReportState(t.ctx, tenant, watchword.AuthorityVersions{}, "lamp-2", []byte("s3"), t.now))
	for _, c := range []struct {
		tenant watchword.TenantID
		after  watchword.SubjectID
		limit  int
		want   string
	}{{tenant, "", 10, "lamp-1=s2 lamp-2=s3 "}, {tenant, "", 1, "lamp-1=s2 "}, {tenant, "lamp-1", 10, "lamp-2=s3 "}, {tenant, "lamp-2", 10, ""}, {otherTenant, "", 10, ""}} {
		ws, err := t.ReportedStates(t.ctx, c.tenant, c.after, c.limit)
		t.must(err)
		got := ""
		for _, w := range ws {
			got += string(w.Device) + "=" + string(w.State) + " "
		}
		equal(t, "states", got, c.want)
	}
	t.wantCode(watchword.NotFound, t.ReportState(t.ctx, tenant, watchword.AuthorityVersions{}, "nobody", []byte("s"), t.now))
	_, err = t.SetConfig(t.ctx, tenant, "nobody", []byte("c"), -1, t.now, e)
	t.wantCode(watchword.NotFound, err)

	t.must(t.SetFunctions(t.ctx, tenant, watchword.AuthorityVersions{}, "lamp-1", []twin.Function{{Name: "b", Schema: []byte("{}")}, {Name: "a"}}, t.now))
	fs, err := t.Functions(t.ctx, tenant, "lamp-1")
	t.must(err)
	if len(fs) != 2 || fs[0].Name != "a" || fs[0].Schema != nil || string(fs[1].Schema) != "{}" {
		t.Fatalf("functions: %+v", fs)
	}
	t.must(t.SetFunctions(t.ctx, tenant, watchword.AuthorityVersions{}, "lamp-1", nil, t.now))
	fs, err = t.Functions(t.ctx, tenant, "lamp-1")
	t.must(err)
	equal(t, "functions", len(fs), 0)
	t.wantCode(watchword.NotFound, t.SetFunctions(t.ctx, tenant, watchword.AuthorityVersions{}, "nobody", nil, t.now))
}
