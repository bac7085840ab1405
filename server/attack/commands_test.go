package attack_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
)

// If no further request may wait, an order is accepted nevertheless, and the caller is answered at once with the state of
// the command.
func TestNoDelayWhenAllDelaySlotsAreUsed(t *testing.T) {
	const most = 1024 // limit of each class for one subject
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	first, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: d.ID(), Function: "reset"})
	must(t, err)
	var waits sync.WaitGroup
	defer testwait.All(t, "the answers to those that wait", &waits)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for n := 0; n < most; n += 128 { // separate connections, opened before the crowd: HTTP/2 allows 250 requests over one
		one, err := admin.Local(srv.dir)
		must(t, err)
		_, err = one.Command(ctx, first.ID, 0)
		must(t, err)
		for range 128 {
			waits.Go(func() {
				for ctx.Err() == nil { // its minute may pass before all are there, or the one that looks has its place
					_, _ = one.Command(ctx, first.ID, time.Minute)
					select {
					case <-time.After(100 * time.Millisecond): // answered at once
					case <-ctx.Done():
					}
				}
			})
		}
	}
	wait := testwait.Within()
	for n := 0; n < most; { // until there is no place
		wait.Check(t, fmt.Sprintf("%d waits, of which there are %d", most, n))
		n = 0
		ss, err := srv.admin.Sessions(t.Context(), "")
		must(t, err)
		for _, s := range ss {
			if s.Transport == "wait" {
				n++
			}
		}
	}
	c, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: d.ID(), Function: "reset", WaitReceipt: time.Minute})
	must(t, err)
	if c.State != watchword.Queued {
		t.Errorf("%s", c.State)
	}
	c, err = srv.admin.Command(t.Context(), first.ID, time.Minute)
	must(t, err)
	if c.ID != first.ID || c.State != watchword.Queued || string(c.Args) != "{}" {
		t.Errorf("the answer to one more that waits: %+v", c)
	}
}
