package policy

// Memory that one rule of a grant takes, beside its texts, with its item in [Grant.Perm] or
// [Grant.Deny]; and that one label of a call rule takes.
const (
	ruleBytes      = 256
	ruleLabelBytes = 96
)

// Bytes estimates the memory of the grant. Schemas of bounds are shared with the documents and do
// not count.
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
