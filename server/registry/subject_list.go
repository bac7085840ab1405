package registry

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/watchword-iot/watchword"
)

// Order is what a list of subjects is sorted by; subjects that are equal in it are in order of their ids.
type Order string

// The orders of lists. The empty one is OrderID.
const (
	OrderID      Order = "id"
	OrderCreated Order = "created"
	OrderChanged Order = "changed"
	OrderState   Order = "state"

	OrderLastSeen Order = "last_seen" // never is before all times
)

// ListQuery chooses a page of subjects of one kind. Empty fields choose all.
type ListQuery struct {
	Kind       watchword.Kind
	State      watchword.State
	Selector   watchword.Selector
	Search     string // part of the id, of the name, or of a label as key=value; the case of letters does not count
	Order      Order
	Descending bool
	After      *Position // nil: from the start
	Limit      int
}

// Position is a place in a list: after the subject that has these values.
type Position struct {
	Millis int64               `json:"t,omitempty"` // of OrderCreated, OrderChanged and OrderLastSeen
	State  watchword.State     `json:"s,omitempty"` // of OrderState
	ID     watchword.SubjectID `json:"i"`
}

// PositionOf returns the place of a subject in an order.
func PositionOf(s *watchword.Subject, o Order) Position {
	p := Position{ID: s.ID}
	switch o {
	case OrderCreated:
		p.Millis = s.Created.UnixMilli()
	case OrderChanged:
		p.Millis = s.Changed.UnixMilli()
	case OrderLastSeen:
		if !s.LastSeen.IsZero() {
			p.Millis = s.LastSeen.UnixMilli()
		}
	case OrderState:
		p.State = s.State
	}
	return p
}

// Compare compares two places of one order, ascending.
func (p Position) Compare(q Position) int {
	return cmp.Or(cmp.Compare(p.Millis, q.Millis), cmp.Compare(p.State, q.State), cmp.Compare(p.ID, q.ID))
}

// Matches reports whether the query chooses a subject.
func (q *ListQuery) Matches(s *watchword.Subject) bool {
	return s.Kind == q.Kind && (q.State == "" || s.State == q.State) && q.Selector.Matches(s.Labels) && (q.Search == "" || found(s, strings.ToLower(q.Search)))
}

func found(s *watchword.Subject, part string) bool {
	if strings.Contains(strings.ToLower(string(s.ID)), part) || strings.Contains(strings.ToLower(s.Name), part) {
		return true
	}
	for k, v := range s.Labels {
		if strings.Contains(strings.ToLower(k+"="+v), part) {
			return true
		}
	}
	return false
}

// Walk reads subjects of one kind in an order, from an index that has it. State or Label restrict an OrderID to subjects that have
// them; at most one of them is set.
type Walk struct {
	Kind       watchword.Kind
	Order      Order
	Descending bool
	State      watchword.State
	Label      *watchword.LabelTest // of one value
	After      *Position
}

const (
	// listBatch is how many subjects a list reads at once where not all of them are chosen.
	listBatch = 1000
	// listExamined limits the subjects that one page looks at: where few are chosen, a page is short, or empty, and the list goes on.
	listExamined = 20 * listBatch
	// listGathered is how many subjects a list reads and sorts in memory, where that is all that have a label.
	listGathered = 2000
)

// ListPage returns a page of subjects without their keys, and where the list continues; nil at its end. It reads by the label or the state
// that fewest subjects have, and looks at most at listExamined of them.
func (r *Registry) ListPage(ctx context.Context, t watchword.TenantID, q ListQuery) (page []watchword.Subject, next *Position, err error) {
	if q.Order == "" {
		q.Order = OrderID
	}
	walk, gather, err := r.planList(ctx, t, &q)
	if err != nil {
		return nil, nil, err
	}
	if gather != nil {
		all, whole, err := r.gather(ctx, t, gather, &q)
		if err != nil || whole {
			return cutList(all, &q), nextAfter(all, &q), err
		}
	}
	return r.walk(ctx, t, walk, &q)
}

// planList chooses how a list is read: the walk that passes the fewest subjects, and, where a label is so rare that the subjects which
// have it can be sorted in memory, the tests that select them (gather; nil: none).
func (r *Registry) planList(ctx context.Context, t watchword.TenantID, q *ListQuery) (w Walk, gather *watchword.LabelTest, err error) {
	w = Walk{Kind: q.Kind, Order: q.Order, Descending: q.Descending, After: q.After}
	if q.Order == OrderID && q.State != "" {
		w.State = q.State
	}
	var tests []watchword.LabelTest
	for _, l := range q.Selector {
		if !l.Not && len(l.Values) > 0 {
			tests = append(tests, l)
		}
	}
	if len(tests) == 0 {
		return w, nil, nil
	}
	states, err := r.store.SubjectCounts(ctx, t, q.Kind)
	if err != nil {
		return w, nil, err
	}
	fewest := states[w.State] // of the walk so far
	if w.State == "" {
		for _, n := range states {
			fewest += n
		}
	}
	rarest := int64(-1)
	for _, l := range tests {
		n := int64(0)
		for _, v := range l.Values {
			one, err := r.store.LabelCount(ctx, t, q.Kind, l.Key, v)
			if err != nil {
				return w, nil, err
			}
			n += one
		}
		if q.Order == OrderID && len(l.Values) == 1 && n <= fewest {
			fewest, w.Label, w.State = n, &l, ""
		}
		if rarest < 0 || n < rarest {
			rarest, gather = n, &l
		}
	}
	if rarest > listGathered || w.Label != nil && fewest <= rarest {
		gather = nil // too many; or the walk passes as few, and in order
	}
	return w, gather, nil
}

// gather returns all subjects that q chooses, in order, from those that have a label. whole is false where these are too many by now.
func (r *Registry) gather(ctx context.Context, t watchword.TenantID, l *watchword.LabelTest, q *ListQuery) (all []watchword.Subject, whole bool, err error) {
	values := slices.Compact(slices.Sorted(slices.Values(l.Values)))
	read := 0
	for _, v := range values {
		some, err := r.store.WalkSubjects(ctx, t, Walk{Kind: q.Kind, Order: OrderID, Label: &watchword.LabelTest{Key: l.Key, Values: []string{v}}}, 2*listGathered-read+1)
		if err != nil {
			return nil, false, err
		}
		if read += len(some); read > 2*listGathered {
			return nil, false, nil
		}
		for _, s := range some {
			if q.Matches(&s) {
				all = append(all, s)
			}
		}
	}
	slices.SortFunc(all, func(a, b watchword.Subject) int { return q.compare(PositionOf(&a, q.Order), PositionOf(&b, q.Order)) })
	if q.After != nil {
		at, _ := slices.BinarySearchFunc(all, *q.After, func(s watchword.Subject, p Position) int {
			if q.compare(PositionOf(&s, q.Order), p) <= 0 {
				return -1
			}
			return 1
		})
		all = all[at:]
	}
	return all, true, nil
}

// compare compares places in the direction of the list.
func (q *ListQuery) compare(a, b Position) int {
	if q.Descending {
		return b.Compare(a)
	}
	return a.Compare(b)
}

func cutList(all []watchword.Subject, q *ListQuery) []watchword.Subject {
	return all[:min(len(all), q.Limit)]
}

func nextAfter(all []watchword.Subject, q *ListQuery) *Position {
	if len(all) <= q.Limit || q.Limit == 0 {
		return nil
	}
	p := PositionOf(&all[q.Limit-1], q.Order)
	return &p
}

// walk reads subjects in order until the page is full, and skips those that q does not choose.
func (r *Registry) walk(ctx context.Context, t watchword.TenantID, w Walk, q *ListQuery) (page []watchword.Subject, next *Position, err error) {
	all := q.Search == "" && (q.State == "" || q.State == w.State) && (len(q.Selector) == 0 || len(q.Selector) == 1 && w.Label != nil) // the walk passes no others
	for examined := 0; ; {
		n := listBatch
		if all {
			n = q.Limit + 1 - len(page)
		}
		batch, err := r.store.WalkSubjects(ctx, t, w, n)
		if err != nil {
			return nil, nil, err
		}
		for _, s := range batch {
			if !q.Matches(&s) {
				continue
			}
			if page = append(page, s); len(page) > q.Limit {
				return cutList(page, q), nextAfter(page, q), nil
			}
		}
		if len(batch) < n {
			return page, nil, nil
		}
		last := PositionOf(&batch[n-1], q.Order)
		w.After = &last
		if examined += n; examined >= listExamined {
			return page, &last, nil
		}
	}
}

// Totals returns how many subjects of a kind there are in each state.
func (r *Registry) Totals(ctx context.Context, t watchword.TenantID, kind watchword.Kind) (map[watchword.State]int64, error) {
	return r.store.SubjectCounts(ctx, t, kind)
}

// LabelTotal is how many subjects have a label with a value.
type LabelTotal struct {
	Key   string
	Value string
	Count int64
}

// LabelTotals returns at most limit labels of subjects of a kind, in order of key and value, after the given one; of one key alone if
// it is not empty.
func (r *Registry) LabelTotals(ctx context.Context, t watchword.TenantID, kind watchword.Kind, key string, after LabelTotal, limit int) ([]LabelTotal, error) {
	return r.store.LabelCounts(ctx, t, kind, key, after.Key, after.Value, limit)
}
