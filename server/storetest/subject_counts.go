package storetest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/registry"
)

// subjectCounts holds that the counts by state and by label are those of the subjects after each of many random changes.
func subjectCounts(t *T) {
	random := rand.New(rand.NewPCG(3, 4))
	labels := func() watchword.Labels {
		l := watchword.Labels{}
		for _, k := range []string{"site", "kind", "rack"} {
			if random.IntN(2) == 0 {
				l[k] = fmt.Sprint("v", random.IntN(3))
			}
		}
		return l
	}
	for step := range 150 {
		id := watchword.SubjectID(fmt.Sprint("lamp-", random.IntN(12)))
		e := t.entry(audit.DeviceLabel, string(id))
		var err error
		switch random.IntN(8) {
		case 0, 1:
			kind := watchword.Device
			if random.IntN(4) == 0 {
				kind = watchword.Service
			}
			err = t.CreateSubject(t.ctx, watchword.Subject{Tenant: tenant, ID: id, Kind: kind, State: watchword.New, Labels: labels(), Created: t.now, Changed: t.now}, nil, e)
		case 2, 3:
			_, err = t.SetLabels(t.ctx, tenant, id, labels(), 0, t.now, e)
		case 4:
			_, err = t.Suspend(t.ctx, tenant, id, t.now, e)
		case 5:
			_, err = t.Resume(t.ctx, tenant, id, t.now, e)
		case 6:
			_, err = t.Revoke(t.ctx, tenant, id, t.now, e)
		case 7:
			if err = t.DeleteSubject(t.ctx, tenant, id, t.now, e); err == nil && random.IntN(2) == 0 {
				_ = t.ForgetSubject(t.ctx, tenant, id, e) // refused for a service
			}
		}
		if c := watchword.CodeOf(err); err != nil && c != watchword.NotFound && c != watchword.Conflict {
			t.Fatalf("step %d: %v", step, err)
		}
		t.recount(fmt.Sprintf("step %d", step))
	}
}

// recount compares the counts with the subjects.
func (t *T) recount(when string) {
	t.Helper()
	for _, kind := range []watchword.Kind{watchword.Device, watchword.Service} {
		states, byLabel := map[watchword.State]int64{}, map[string]int64{}
		all, err := t.Subjects(t.ctx, tenant, kind, "", nil, "", 1000)
		t.must(err)
		for _, s := range all {
			states[s.State]++
			for k, v := range s.Labels {
				byLabel[k+"="+v]++
			}
		}
		got, err := t.SubjectCounts(t.ctx, tenant, kind)
		t.must(err)
		if !maps.Equal(got, states) {
			t.Fatalf("%s: %ss by state are counted as %v, and are %v", when, kind, got, states)
		}
		counts, err := t.LabelCounts(t.ctx, tenant, kind, "", "", "", 1000)
		t.must(err)
		counted := map[string]int64{}
		for _, l := range counts {
			counted[l.Key+"="+l.Value] = l.Count
			one, err := t.LabelCount(t.ctx, tenant, kind, l.Key, l.Value)
			t.must(err)
			equal(t, "count of one label", one, l.Count)
		}
		if !maps.Equal(counted, byLabel) {
			t.Fatalf("%s: labels of %ss are counted as %v, and are %v", when, kind, counted, byLabel)
		}
		if !slices.IsSortedFunc(counts, func(a, b registry.LabelTotal) int {
			return slices.Compare([]string{a.Key, a.Value}, []string{b.Key, b.Value})
		}) {
			t.Fatalf("%s: labels in the order %v", when, counts)
		}
		for i, l := range counts { // pages of one, of all labels and of one key
			next, err := t.LabelCounts(t.ctx, tenant, kind, "", l.Key, l.Value, 1)
			t.must(err)
			if i+1 < len(counts) != (len(next) == 1) || len(next) == 1 && next[0] != counts[i+1] {
				t.Fatalf("%s: after %v comes %v", when, l, next)
			}
			next, err = t.LabelCounts(t.ctx, tenant, kind, l.Key, l.Key, l.Value, 1)
			t.must(err)
			if same := i+1 < len(counts) && counts[i+1].Key == l.Key; same != (len(next) == 1) {
				t.Fatalf("%s: after %v of its key comes %v", when, l, next)
			}
		}
	}
}

// subjectWalks holds that each walk passes the subjects that it is for, in its order, from its place on.
func subjectWalks(t *T) {
	random := rand.New(rand.NewPCG(5, 6))
	start := t.now
	for i := range 40 {
		t.now = start.Add(time.Duration(random.IntN(5)) * time.Second)
		id := watchword.SubjectID(fmt.Sprintf("lamp-%02d", random.Perm(40)[i]))
		if _, err := t.Subject(t.ctx, tenant, id); err == nil {
			continue
		}
		t.add(id, watchword.Labels{"site": fmt.Sprint(random.IntN(2))})
		t.now = start.Add(time.Duration(5+random.IntN(5)) * time.Second)
		if random.IntN(3) > 0 {
			t.must(t.SetLastSeen(t.ctx, []registry.Seen{{Tenant: tenant, Subject: id, At: t.now}}))
		}
		if random.IntN(2) == 0 {
			_, err := t.Suspend(t.ctx, tenant, id, t.now, t.entry(audit.DeviceSuspend, string(id)))
			t.must(err)
		}
	}
	t.must(t.CreateSubject(t.ctx, watchword.Subject{Tenant: tenant, ID: "lamp-00s", Kind: watchword.Service, State: watchword.New, Created: t.now, Changed: t.now}, nil, t.entry(audit.DeviceCreate, "lamp-00s")))
	everyone, err := t.Subjects(t.ctx, tenant, watchword.Device, "", nil, "", 100)
	t.must(err)
	for _, o := range []registry.Order{registry.OrderID, registry.OrderCreated, registry.OrderChanged, registry.OrderState, registry.OrderLastSeen} {
		for _, w := range []registry.Walk{{}, {Descending: true}, {State: watchword.Suspended}, {State: watchword.New, Descending: true}, {Label: &watchword.LabelTest{Key: "site", Values: []string{"1"}}}, {Label: &watchword.LabelTest{Key: "site", Values: []string{"0"}}, Descending: true}} {
			if o != registry.OrderID && (w.State != "" || w.Label != nil) {
				continue
			}
			w.Kind, w.Order = watchword.Device, o
			want := slices.Clone(everyone)
			want = slices.DeleteFunc(want, func(s watchword.Subject) bool {
				return w.State != "" && s.State != w.State || w.Label != nil && s.Labels["site"] != w.Label.Values[0]
			})
			slices.SortFunc(want, func(a, b watchword.Subject) int {
				c := registry.PositionOf(&a, o).Compare(registry.PositionOf(&b, o))
				if w.Descending {
					return -c
				}
				return c
			})
			var got []watchword.SubjectID
			for {
				page, err := t.WalkSubjects(t.ctx, tenant, w, 3)
				t.must(err)
				for _, s := range page {
					got = append(got, s.ID)
				}
				if len(page) < 3 {
					break
				}
				p := registry.PositionOf(&page[2], o)
				w.After = &p
			}
			var ids []watchword.SubjectID
			for _, s := range want {
				ids = append(ids, s.ID)
			}
			equal(t, fmt.Sprintf("%+v", w), fmt.Sprint(got), fmt.Sprint(ids))
		}
	}
}

func lastSeen(t *T) {
	before := t.enrolled("lamp-1")
	equal(t, "never", before.LastSeen.IsZero(), true)
	n := t.log()
	for _, x := range []struct {
		after  time.Duration
		stored time.Duration
	}{{0, 0}, {registry.SeenPrecision, 0}, {registry.SeenPrecision + time.Second, registry.SeenPrecision + time.Second}, {time.Minute, registry.SeenPrecision + time.Second}} {
		t.must(t.SetLastSeen(t.ctx, []registry.Seen{{Tenant: tenant, Subject: "ghost", At: t.now}, {Tenant: tenant, Subject: "lamp-1", At: t.now.Add(x.after)}, {Tenant: "other", Subject: "lamp-1", At: t.now.Add(24 * time.Hour)}}))
		s, err := t.Subject(t.ctx, tenant, "lamp-1")
		t.must(err)
		equal(t, fmt.Sprint("seen after ", x.after), s.LastSeen.Sub(t.now), x.stored)
		equal(t, "version", s.Version, before.Version)
		equal(t, "authority version", s.AuthorityVersion, before.AuthorityVersion)
	}
	equal(t, "entries", t.log(), n)
}
