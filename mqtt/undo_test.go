package mqtt

import "testing"

// What was refused is not retained, in whichever order two refusals of one topic come.
func TestRefusalsOfOneTopicLeaveNothing(t *testing.T) {
	for _, swapped := range []bool{false, true} {
		r := retained{quota: newRetainQuota(&Options{})}
		set := func(payload string) func() {
			undo, err := r.set(&message{topic: "a", payload: []byte(payload)}, owner{})
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
			t.Errorf("%q was refused, and is retained", x.packet)
		}
		if n := r.quota.bytes.Total(); n != 0 {
			t.Errorf("%d bytes are counted of nothing", n)
		}
	}
}
