package bus

import (
	"context"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/quota"
)

// What was refused is not retained, in whichever order two refusals of one topic come.
func TestRefusedRetainedLeavesNothing(t *testing.T) {
	for _, swapped := range []bool{false, true} {
		r := RetainedStore{quota: newRetainedQuota(Options{})}
		set := func(payload string) func() {
			undo, err := r.set("a", retainedAt("a", []byte(payload)), Owner{})
			if err != nil {
				t.Fatal(err)
			}
			return undo
		}
		one, two := set("1"), set("2")
		if swapped {
			one, two = two, one
		}
		one()
		two()
		if x := r.records.find([]byte("a")); x != nil {
			t.Errorf("%q was refused, and is retained", x.encoded)
		}
		if n := r.quota.bytes.Total(); n != 0 {
			t.Errorf("%d bytes are counted of nothing", n)
		}
	}
}

// retainedBy is what a test does with retained messages of one topic each.
type retainedBy struct {
	*testing.T
	RetainedStore
}

func (r *retainedBy) set(who Owner, topic, payload string) (undo func(), err error) {
	if payload == "" {
		return r.RetainedStore.set(topic, nil, who)
	}
	return r.RetainedStore.set(topic, retainedAt(topic, []byte(payload)), who)
}

func (r *retainedBy) must(who Owner, topic, payload string) (*Retained, func()) {
	r.Helper()
	undo, err := r.set(who, topic, payload)
	if err != nil {
		r.Fatal(err)
	}
	return r.records.find([]byte(topic)), undo
}

// holds fails unless the accounts hold so many messages, and bytes where there are any.
func (r *retainedBy) holds(counts map[Owner]int64) {
	r.Helper()
	for who, n := range counts {
		key := quota.Key{Subject: who.Subject}
		messages, bytes := r.quota.messages.Used(key), r.quota.bytes.Used(key)
		if messages != n || (bytes == 0) != (n == 0) {
			r.Errorf("%v has %d messages of %d bytes, want %d", who, messages, bytes, n)
		}
	}
}

// Whatever is refused or undone, every account holds what its subject has.
func TestAccountsFollowRefusedAndUndoneMessages(t *testing.T) {
	one, two := Owner{"one", 1}, Owner{"two", 1}
	r := &retainedBy{t, RetainedStore{quota: newRetainedQuota(Options{SubjectRetainedBytes: 4000, RetainedBytes: 1 << 20})}}
	first, _ := r.must(one, "a", "1")
	if _, err := r.set(one, "a", strings.Repeat("x", 5000)); watchword.CodeOf(err) != watchword.Busy {
		t.Errorf("%v", err)
	}
	r.holds(map[Owner]int64{one: 1, two: 0})
	if r.records.find([]byte("a")) != first || first.removed {
		t.Error("what was there is gone, though what came is refused")
	}
	number := first.number
	_, undo := r.must(two, "a", "2")
	if !first.removed {
		t.Error("what was replaced does not know it")
	}
	r.holds(map[Owner]int64{one: 0, two: 1})
	undo()
	if r.records.find([]byte("a")) != first || first.removed || first.number != number || first.owner.identity() != one {
		t.Error("what was there is not there again as it was")
	}
	r.holds(map[Owner]int64{one: 1, two: 0})
	_, undo = r.must(one, "a", "")
	r.holds(map[Owner]int64{one: 0, two: 0})
	undo()
	r.holds(map[Owner]int64{one: 1, two: 0})
	r.must(one, "a", "")
	if n := r.quota.bytes.Total(); n != 0 || len(r.owners.bySubject) != 0 {
		t.Errorf("%d bytes of %d owners are left", n, len(r.owners.bySubject))
	}
}

// A deleted owner retains nothing any more, and nothing of it is restored.
func TestDeletedOwnerRetainsNothing(t *testing.T) {
	one, two := Owner{"one", 1}, Owner{"two", 1}
	r := &retainedBy{t, RetainedStore{quota: newRetainedQuota(Options{})}}
	r.must(one, "a", "1")
	x, _ := r.must(one, "b", "1")
	_, undo := r.must(two, "a", "2")
	x.owner.removed = true
	if _, err := r.set(one, "c", "1"); watchword.CodeOf(err) != watchword.SubjectRevoked {
		t.Errorf("%v", err)
	}
	undo()
	if r.records.find([]byte("a")) != nil {
		t.Error("what was retained by who is gone came back")
	}
	r.holds(map[Owner]int64{one: 1, two: 0})
	r.must(Owner{"one", 2}, "c", "another life")
}

// What took the place of a message that is to be swept stays.
func TestSweepKeepsNewerMessages(t *testing.T) {
	one := Owner{"one", 1}
	r := &retainedBy{t, RetainedStore{quota: newRetainedQuota(Options{})}}
	x, _ := r.must(one, "a", "1")
	y, _ := r.must(one, "a", "2")
	if topics := r.removeAll([]*Retained{x}); topics != nil || r.records.find([]byte("a")) != y {
		t.Errorf("%q was swept", topics)
	}
	r.holds(map[Owner]int64{one: 1})
}

// An authority that may publish everything.
type everything struct{}

func (everything) MayPublish(string) bool { return true }

// An answer that is older than a change does not count.
func TestStaleOwnerDecisionIsIgnored(t *testing.T) {
	for name, id := range map[string]watchword.SubjectID{"of the subject": "one", "of policy": "", "of another": "two"} {
		t.Run(name, func(t *testing.T) {
			r := &retainedBy{t, RetainedStore{quota: newRetainedQuota(Options{})}}
			x, _ := r.must(Owner{"one", 1}, "a", "x")
			if err := r.CheckOwner(t.Context(), x.owner, func(context.Context, Owner) (PublishAuthority, error) {
				r.OwnerChanged(id)
				return everything{}, nil
			}); err != nil {
				t.Fatal(err)
			}
			if _, known := x.owner.mayDeliver([]byte("a")); known != (id == "two") {
				t.Errorf("decided: %v", known)
			}
		})
	}
}
