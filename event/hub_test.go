package event_test

import (
	"fmt"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/event"
)

func ev(n int, device watchword.SubjectID) *event.Event {
	return &event.Event{Tenant: "t", ID: fmt.Sprintf("evt_%06d", n), Device: device, Stream: "lux", Data: []byte("1")}
}

func TestASlowReaderLosesItsStreamAndNobodyElsesEvents(t *testing.T) {
	h := event.NewHub()
	slow, _, _ := h.Subscribe("t", "devices/+/events/#", "")
	quick, _, _ := h.Subscribe("t", "devices/+/events/#", "")
	defer quick.Close()
	foreign, _, _ := h.Subscribe("other", "#", "")
	defer foreign.Close()
	for n := range 1000 {
		h.Publish(ev(n, "lamp-1"))
		if e := <-quick.Events; e.ID != ev(n, "").ID {
			t.Fatalf("got %s as number %d", e.ID, n)
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
	for n := range 5000 {
		h.Publish(ev(n, watchword.SubjectID(fmt.Sprintf("lamp-%d", n%2))))
	}
	s, missed, gap := h.Subscribe("t", "devices/lamp-1/events/#", ev(4990, "").ID)
	defer s.Close()
	if gap || len(missed) != 5 || missed[0].ID != ev(4991, "").ID {
		t.Errorf("gap %v, missed %d", gap, len(missed))
	}
	if _, missed, gap := h.Subscribe("t", "devices/+/events/#", ev(1, "").ID); !gap || len(missed) > 4096 {
		t.Errorf("gap %v, missed %d", gap, len(missed))
	}
	if _, missed, gap := h.Subscribe("t", "#", ""); gap || len(missed) != 0 {
		t.Errorf("a new one: gap %v, missed %d", gap, len(missed))
	}
}
