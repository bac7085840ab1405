package registry_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/registry"
	"github.com/watchword-iot/watchword/server/sqlite"
)

// fleet is a registry over a store of n devices: all have the label kind, every tenth has site, and every hundredth rare and a name.
func fleet(t *testing.T, n int) (*registry.Registry, *sqlite.Store, []watchword.Subject) {
	t.Helper()
	st, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "db"), sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	random := rand.New(rand.NewPCG(uint64(n), 7))
	var all []watchword.Subject
	errs := make(chan error, n)
	for i := range n {
		at := time.Unix(1_700_000_000+int64(random.IntN(n/2+1)), 0).UTC()
		s := watchword.Subject{
			Tenant: watchword.DefaultTenant, ID: watchword.SubjectID(fmt.Sprintf("dev-%05d", i)), Kind: watchword.Device, Created: at, Changed: at.Add(time.Duration(random.IntN(1000)) * time.Second),
			State: []watchword.State{watchword.New, watchword.New, watchword.New, watchword.Suspended, watchword.Revoked}[random.IntN(5)], Labels: watchword.Labels{"kind": fmt.Sprint("k", i%2)},
		}
		if i%10 == 0 {
			s.Labels["site"] = fmt.Sprint("s", random.IntN(5))
		}
		if i%100 == 7 {
			s.Labels["rare"], s.Name = "yes", fmt.Sprint("Büro ", i)
		}
		all = append(all, s)
		go func() { // together they share few commits
			errs <- st.CreateSubject(t.Context(), s, nil, audit.Entry{Tenant: s.Tenant, At: at, Kind: audit.DeviceCreate, Object: string(s.ID), Outcome: audit.Done})
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	return registry.New(st, registry.NewDirectory(st), nil, nil), st, all
}

func selector(t *testing.T, tests string) watchword.Selector {
	t.Helper()
	s, err := watchword.ParseSelector(strings.Fields(tests))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// The pages of each list, in each order and both ways, are what a filter and a sort of all devices give.
func TestListPagesEqualAFilteredSort(t *testing.T) {
	reg, _, all := fleet(t, 400)
	for _, tests := range []string{"", "site=s1", "site=s1,s2", "site", "!site", "kind!=k0", "kind=k1 rare=yes", "kind=k0,k1 site!=s0,s1", "rare=no"} {
		for _, state := range []watchword.State{"", watchword.Suspended} {
			for _, search := range []string{"", "BÜRO", "site=s", "dev-0039"} {
				for _, order := range []registry.Order{"", registry.OrderID, registry.OrderCreated, registry.OrderChanged, registry.OrderState, registry.OrderLastSeen} {
					for _, descending := range []bool{false, true} {
						q := registry.ListQuery{Kind: watchword.Device, State: state, Selector: selector(t, tests), Search: search, Order: order, Descending: descending, Limit: 50}
						var want, got []watchword.SubjectID
						chosen := slices.DeleteFunc(slices.Clone(all), func(s watchword.Subject) bool { return !q.Matches(&s) })
						slices.SortFunc(chosen, func(a, b watchword.Subject) int {
							c := registry.PositionOf(&a, order).Compare(registry.PositionOf(&b, order))
							if descending {
								return -c
							}
							return c
						})
						for _, s := range chosen {
							want = append(want, s.ID)
						}
						for {
							page, next, err := reg.ListPage(t.Context(), watchword.DefaultTenant, q)
							if err != nil || len(page) > q.Limit {
								t.Fatalf("%+v: %d devices, %v", q, len(page), err)
							}
							for _, s := range page {
								got = append(got, s.ID)
							}
							if q.After = next; next == nil {
								break
							}
						}
						if !slices.Equal(got, want) {
							t.Fatalf("%q, state %q, search %q, order %q, descending %t:\n%v\nwant\n%v", tests, state, search, order, descending, got, want)
						}
					}
				}
			}
		}
	}
}

// What a page reads does not grow with the devices that it does not show: rows of the store are counted.
func TestListReadsWhatItConcerns(t *testing.T) {
	small, smallStore, _ := fleet(t, 500)
	large, largeStore, _ := fleet(t, 3000)
	for name, x := range map[string]struct {
		q    registry.ListQuery
		most int64 // rows read of the large fleet
	}{
		"all":                        {registry.ListQuery{}, 11},
		"newest":                     {registry.ListQuery{Order: registry.OrderCreated, Descending: true}, 11},
		"by state":                   {registry.ListQuery{State: watchword.Suspended}, 11},
		"by a label":                 {registry.ListQuery{Selector: selector(t, "rare=yes")}, 11 + 5},
		"by a label that none has":   {registry.ListQuery{Selector: selector(t, "rare=no kind=k1")}, 5},
		"by two labels":              {registry.ListQuery{Selector: selector(t, "kind=k1 rare=yes")}, 30 + 6},
		"by a label, sorted by time": {registry.ListQuery{Selector: selector(t, "rare=yes"), Order: registry.OrderChanged}, 30 + 5},
		"one of several labels":      {registry.ListQuery{Selector: selector(t, "site=s1,s2,s9")}, 150 + 8},
		"by a label and a state":     {registry.ListQuery{Selector: selector(t, "rare=yes"), State: watchword.New}, 30 + 5},
	} {
		x.q.Kind, x.q.Limit = watchword.Device, 10
		read := func(reg *registry.Registry, st *sqlite.Store) (int64, int64) {
			statements, rows := st.Reads()
			if _, _, err := reg.ListPage(t.Context(), watchword.DefaultTenant, x.q); err != nil {
				t.Fatal(err)
			}
			statementsAfter, rowsAfter := st.Reads()
			return statementsAfter - statements, rowsAfter - rows
		}
		fewer, _ := read(small, smallStore)
		statements, rows := read(large, largeStore)
		if rows > x.most || statements > fewer {
			t.Errorf("%s: %d rows by %d statements, want at most %d by %d", name, rows, statements, x.most, fewer)
		}
	}
	// A search of a large fleet looks at all devices, in batches.
	statements, rows := largeStore.Reads()
	page, next, err := large.ListPage(t.Context(), watchword.DefaultTenant, registry.ListQuery{Kind: watchword.Device, Search: "no device has this", Limit: 10})
	statementsAfter, rowsAfter := largeStore.Reads()
	if err != nil || next != nil || len(page) > 0 || rowsAfter-rows != 3000 || statementsAfter-statements != 4 {
		t.Errorf("a search: %d devices, %v, %d rows by %d statements, %v", len(page), next, rowsAfter-rows, statementsAfter-statements, err)
	}
}
