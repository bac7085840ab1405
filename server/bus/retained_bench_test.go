package bus

import (
	"fmt"
	"testing"

	"github.com/watchword-iot/watchword"
)

// BenchmarkRetain is what it takes to put one retained message in the place of another,
// among 100,000, without the store.
func BenchmarkRetain(b *testing.B) {
	r := RetainedStore{tenant: watchword.DefaultTenant, quota: newRetainedQuota(Options{SubjectRetainedMessages: 1 << 20, SubjectRetainedBytes: 1 << 30})}
	who := Owner{"operator", 1}
	topics := make([]string, 100_000)
	for i := range topics {
		topics[i] = fmt.Sprintf("keep/%d/%d", i/1000, i%1000)
	}
	payload := make([]byte, 32)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		topic := topics[i%len(topics)]
		if _, err := r.set(topic, retainedAt(topic, payload), who); err != nil {
			b.Fatal(err)
		}
	}
}
