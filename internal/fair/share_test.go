package fair

import "testing"

// fill lets k subjects take all that they can of most: in turns, or one after the other. It
// returns the least and the most that one has, and what all have.
func fill(k, most, part int, turns bool) (least, largest, used int) {
	own := make([]int, k)
	for took := true; took; {
		took = false
		for i := range own {
			for Share(own[i], used, most, part) {
				own[i]++
				used++
				took = true
				if turns {
					break
				}
			}
		}
	}
	least = own[0]
	for _, n := range own {
		least, largest = min(least, n), max(largest, n)
	}
	return least, largest, used
}

func TestShare(t *testing.T) {
	const most = 1 << 19
	for _, part := range []int{2, 4, 8} {
		if _, one, _ := fill(1, most, part, false); one != most/part {
			t.Errorf("one alone has %d, not a part of %d", one, part)
		}
		for _, k := range []int{2, 4, 20, 200} {
			if least, largest, _ := fill(k, most, part, true); largest-least > 1 {
				t.Errorf("%d at once have %d to %d each", k, least, largest)
			}
		}
	}
	for k, want := range map[int]int{4: 23_000, 20: 2_700, 200: 80, 1000: 8} {
		for _, turns := range []bool{true, false} {
			_, _, used := fill(k, most, 4, turns)
			left := 0
			for Share(left, used, most, 4) {
				left++
				used++
			}
			if left < want {
				t.Errorf("%d who take all (at once: %v) leave %d to the next one, want %d", k, turns, left, want)
			}
			t.Logf("%d (at once: %v) leave %d", k, turns, left)
		}
	}
	for _, tc := range []struct {
		own, used int
		want      bool
	}{{0, 99, true}, {1, 99, false}, {0, 100, false}, {0, 101, false}, {1, 101, false}, {24, 24, true}, {25, 25, false}} {
		if got := Share(tc.own, tc.used, 100, 4); got != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}
