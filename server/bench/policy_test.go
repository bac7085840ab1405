package bench_test

import (
	"fmt"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
)

// thousandPolicies is 1,000 policies, of which ten apply to the device that asks.
func thousandPolicies(tb testing.TB) *policy.Grant {
	tb.Helper()
	var docs []*policy.Document
	for i := range 1000 {
		src := fmt.Sprintf(`for = { kind = "k%d" }
[[allow]]
publish = ["plant/${site}/%d/+/lux", "plant/${site}/%d/state"]
subscribe = ["plant/${site}/%d/scene/#"]
[[deny]]
publish = ["plant/${site}/%d/secret/#"]
`, i%100, i, i, i, i)
		d, err := policy.Parse(fmt.Sprintf("p%d", i), []byte(src))
		if err != nil {
			tb.Fatal(err)
		}
		docs = append(docs, d)
	}
	return policy.NewSet(docs...).GrantFor(policy.Subject{ID: "lamp-1", Kind: watchword.Device, Labels: watchword.Labels{"kind": "k42", "site": "plant-1"}})
}

func BenchmarkDecide(b *testing.B) {
	g := thousandPolicies(b)
	for _, q := range []struct {
		name string
		want bool
		ask  func() policy.Decision
	}{
		{"publish/own", true, func() policy.Decision { return g.Publish("devices/lamp-1/events/lux") }},
		{"publish/by-policy", true, func() policy.Decision { return g.Publish("plant/plant-1/942/a/lux") }},
		{"publish/denied", false, func() policy.Decision { return g.Publish("plant/plant-1/942/secret/a") }},
		{"publish/no-rule", false, func() policy.Decision { return g.Publish("plant/plant-2/942/a/lux") }},
		{"subscribe/by-policy", true, func() policy.Decision { return g.Subscribe("plant/plant-1/942/scene/+/x") }},
		{"subscribe/no-rule", false, func() policy.Decision { return g.Subscribe("plant/#") }},
	} {
		b.Run(q.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if q.ask().Allowed != q.want {
					b.Fatal("decided wrongly")
				}
			}
		})
	}
}

func TestAuthorizationDoesNotAllocate(t *testing.T) {
	g := thousandPolicies(t)
	for name, ask := range map[string]func(){
		"publish":   func() { g.Publish("plant/plant-1/942/a/lux") },
		"denied":    func() { g.Publish("plant/plant-1/942/secret/a") },
		"subscribe": func() { g.Subscribe("plant/plant-1/942/scene/+/x") },
	} {
		if n := testing.AllocsPerRun(1000, ask); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
