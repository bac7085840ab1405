package policy

// What one rule of a grant takes of memory beside its texts, with its line in [Grant.Perm] or [Grant.Deny]; and one label
// of a rule about calls.
const (
	ruleBytes      = 256
	ruleLabelBytes = 96
)

// Bytes is about what the grant takes of memory. Schemas of bounds are shared with the documents and do not count.
func (g *Grant) Bytes() (n int) {
	for _, r := range []*rules{&g.Allowed, &g.Denied} {
		for i := range r.Topics {
			n += ruleBytes + 2*len(r.Topics[i].Filter)
		}
		for i := range r.Paths {
			n += ruleBytes + 2*len(r.Paths[i].Filter)
		}
		for i := range r.Calls {
			c := &r.Calls[i]
			n += ruleBytes + 2*(len(c.Device)+len(c.Function))
			for name, value := range c.Labels {
				n += ruleLabelBytes + 2*(len(name)+len(value))
			}
		}
	}
	return n
}
