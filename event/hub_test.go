package event_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/event"
)

func ev(device watchword.SubjectID) *event.Event {
	return &event.Event{Tenant: "t", Device: device, Stream: "lux", At: time.Unix(1_800_000_000, 0), Data: []byte("1")}
}

func TestASlowReaderLosesItsStreamAndNobodyElsesEvents(t *testing.T) {
	h := event.NewHub()
	slow, _, _ := h.Subscribe("t", "devices/+/events/#", "")
	quick, _, _ := h.Subscribe("t", "devices/+/events/#", "")
	defer quick.Close()
	foreign, _, _ := h.Subscribe("other", "#", "")
	defer foreign.Close()
	for n := range 1000 {
		said := ev("lamp-1")
		h.Publish(said)
		if e := <-quick.Events; e != said {
			t.Fatalf("got %s as number %d", e.ID(), n)
		}
	}
	got := 0
	for range slow.Events { // closed by the hub
		got++
	}
	if got == 0 || got >= 1000 {
		t.Errorf("the slow one got %d", got)
	}
	slow.Close() // again is no harm
	if len(foreign.Events) != 0 {
		t.Error("another tenant heard it")
	}
}

func TestWhoComesBackGetsWhatItMissedOrIsToldOfTheGap(t *testing.T) {
	h := event.NewHub()
	var ids []string
	for n := range 5000 {
		e := ev(watchword.SubjectID(fmt.Sprintf("lamp-%d", n%2)))
		h.Publish(e)
		ids = append(ids, e.ID())
	}
	if !slices.IsSorted(ids) || len(slices.Compact(slices.Clone(ids))) != len(ids) {
		t.Error("the ids of one millisecond are not in order, or not different")
	}
	s, missed, gap := h.Subscribe("t", "devices/lamp-1/events/#", ids[4990])
	defer s.Close()
	if gap || len(missed) != 5 || missed[0].ID() != ids[4991] {
		t.Errorf("gap %v, missed %d", gap, len(missed))
	}
	if _, missed, gap := h.Subscribe("t", "devices/+/events/#", ids[1]); !gap || len(missed) > 4096 {
		t.Errorf("gap %v, missed %d", gap, len(missed))
	}
	if _, missed, gap := h.Subscribe("t", "#", ""); gap || len(missed) != 0 {
		t.Errorf("a new one: gap %v, missed %d", gap, len(missed))
	}
}
