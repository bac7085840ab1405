package bus_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/bus"
)

// BenchmarkPublish is one event from its publisher to all readers, whose filter matches or does not.
func BenchmarkPublish(b *testing.B) {
	for _, devices := range []int{1, 100, 10_000} {
		names := make([]watchword.SubjectID, devices)
		for i := range names {
			names[i] = watchword.SubjectID(fmt.Sprintf("lamp-%d", i))
		}
		for _, readers := range []int{0, 1, 10, 100} {
			for _, filter := range []string{"devices/+/events/#", "devices/none/events/#"} {
				b.Run(fmt.Sprintf("%d devices, %d readers of %s", devices, readers, filter), func(b *testing.B) {
					h := newEvents(b)
					subs := make([]*bus.Reader, readers)
					for i := range subs {
						subs[i] = h.read("t", filter, "")
						defer subs[i].Close()
					}
					at, data := time.Unix(1_800_000_000, 0), []byte("42")
					n := 0
					for b.Loop() {
						h.publish(&bus.Event{Tenant: "t", Device: names[n%devices], Stream: "lux", At: at, Data: data})
						n++
						if filter == "devices/none/events/#" {
							continue
						}
						for _, s := range subs {
							<-s.Ready()
							s.Next()
						}
					}
				})
			}
		}
	}
}
