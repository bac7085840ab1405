package attack_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
)

// Where nobody more can wait, an order is taken all the same, and answered at once.
func TestAnOrderIsTakenWhereNobodyMoreCanWait(t *testing.T) {
	const most = 1024 // of one subject
	h := serve(t, nil)
	d := h.enroll("lamp-1", device.Options{}, nil)
	first, err := h.admin.Send(t.Context(), admin.Order{Device: d.ID(), Function: "reset"})
	must(t, err)
	var waiting sync.WaitGroup
	defer waiting.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range most {
		waiting.Go(func() { _, _ = h.admin.Command(ctx, first.ID, time.Minute) }) // ends with the test
	}
	for n := 0; n < most; {
		list, err := h.admin.Sessions(t.Context(), "")
		must(t, err)
		n = len(list)
	}
	c, err := h.admin.Send(t.Context(), admin.Order{Device: d.ID(), Function: "reset", Wait: time.Minute})
	must(t, err)
	if c.State != watchword.Queued {
		t.Errorf("%s", c.State)
	}
	if _, err := h.admin.Command(t.Context(), first.ID, time.Minute); watchword.CodeOf(err) != watchword.Busy {
		t.Errorf("one more that waits: %v", err)
	}
}
