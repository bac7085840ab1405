package attack_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/sdk/admin"
)

// Many concurrent policy edits all succeed, though each edit changes the basis of the others: an edit that waits for
// another is decided when it has its turn. There are more of them than an act is decided again.
func TestManyEditorsOfPoliciesAllSucceed(t *testing.T) {
	const editors = 80
	srv := serve(t, nil)
	start := make(chan struct{})
	var all sync.WaitGroup
	for n := range editors {
		all.Go(func() {
			c, err := admin.Local(srv.dir)
			if err != nil {
				t.Error(err)
				return
			}
			<-start
			name := fmt.Sprintf("p-%d", n)
			_, err = c.ApplyPolicy(t.Context(), name, fmt.Appendf(nil, "subjects = [\"nobody\"]\n[[allow]]\npublish = [\"a/%d\"]\n", n), 0)
			if err == nil && n%2 == 1 {
				err = c.DeletePolicy(t.Context(), name)
			}
			if err != nil {
				t.Errorf("editor %d: %v", n, err)
			}
		})
	}
	close(start)
	testwait.All(t, "all edits", &all)
	ps, err := srv.admin.Policies(t.Context())
	must(t, err)
	left := 0
	for _, p := range ps {
		if len(p.Name) > 2 && p.Name[:2] == "p-" {
			left++
		}
	}
	if left != editors/2 {
		t.Errorf("%d policies are left, want %d", left, editors/2)
	}
}
