package mqtt

import "testing"

// What was refused is not retained, in whichever order two refusals of one topic come.
func TestRefusalsOfOneTopicLeaveNothing(t *testing.T) {
	for _, swapped := range []bool{false, true} {
		var r retained
		o := &Options{RetainedMessages: 10, RetainedBytes: 1 << 20}
		set := func(payload string) func() {
			undo, err := r.set(&message{topic: "a", payload: []byte(payload)}, o)
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
		if m := r.find("a"); m != nil {
			t.Errorf("%q was refused, and is retained", m.payload)
		}
	}
}
