package command_test

import (
	"slices"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/token"
)

// What observes commands sees each state that one enters, and the time from the order to the receipt.
func TestObserveSeesEachState(t *testing.T) {
	var seen []watchword.CommandState
	var last command.Row
	s := newSetup(t, options{service: command.Options{Observe: func(r command.Row) { seen, last = append(seen, r.State), r }}})
	u := s.handed("")
	s.pass(3 * time.Second)
	raw := s.receipt(s.signs["lamp-1"], u, watchword.StatusDone, func(*token.Receipt) {})
	for range 2 { // the same receipt again changes nothing
		_, err := s.ApplyReceipt(t.Context(), tenant, "lamp-1", watchword.AuthorityVersions{Local: true}, raw, "trace")
		must(t, err)
	}
	if took := last.SettledAt.Sub(last.Created); !slices.Equal(seen, []watchword.CommandState{watchword.Queued, watchword.Sent, watchword.Done}) || took < 3*time.Second || took > 4*time.Second || last.Status == "" {
		t.Errorf("seen %v, the last after %s", seen, took)
	}
}
