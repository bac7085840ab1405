package hostile

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Plan is a run of many cases against one device.
type Plan struct {
	// Seed decides the order of cases: the devices of one run share a seed, and device Number of
	// Devices runs its share of them, repeatedly.
	Seed            uint64
	Number, Devices int
	// For is how long the run lasts; the current case is finished.
	For time.Duration
	// MaxCase is the longest duration of one case; the shortest is a tenth of it.
	MaxCase time.Duration
	Limits  Limits
	// TCP turns the byte limits off, since the kernel's buffers would count.
	TCP bool
	// OnCase, if not nil, is called after each case.
	OnCase func(name string, out Outcome, err error)
}

// SoakResult is what was measured in a run.
type SoakResult struct {
	Cases         int             // cases, with a good server before and after each
	Orders        int             // commands of the good server, all executed once
	Worst         Outcome         // maxima over all cases
	RecoveryTimes []time.Duration // time from each return of the good server to the next executed command, sorted
}

// Soak runs cases against an enrolled, running device in the order of a seed, with a good server
// before and after each, and returns the limits that it exceeded, by case.
func Soak(ctx context.Context, s *Server, d Device, p Plan) (seen SoakResult, err error) {
	r := rand.New(rand.NewPCG(p.Seed, 1))
	lasts := rand.New(rand.NewPCG(p.Seed, uint64(p.Number)+2))
	begun := time.Now()
	var errs []error
	for ctx.Err() == nil && time.Since(begun) < p.For {
		cs := Cases()
		r.Shuffle(len(cs), func(i, k int) { cs[i], cs[k] = cs[k], cs[i] })
		for i, c := range cs {
			if i%p.Devices != p.Number || c.Slow {
				continue
			}
			if ctx.Err() != nil || time.Since(begun) >= p.For {
				break
			}
			if p.TCP {
				c.Bytes = 0
			}
			l := p.Limits
			l.Duration = p.MaxCase/10 + time.Duration(lasts.Int64N(int64(p.MaxCase*9/10)))
			out, err := c.Run(ctx, s, d, l)
			if ctx.Err() != nil {
				break
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", c.Name, err))
			}
			if p.OnCase != nil {
				p.OnCase(c.Name, out, err)
			}
			seen.add(out)
		}
	}
	slices.Sort(seen.RecoveryTimes)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.commands {
		if o.Done != nil {
			seen.Orders++
		}
	}
	return seen, errors.Join(errs...)
}

func (s *SoakResult) add(o Outcome) {
	s.Cases++
	s.RecoveryTimes = append(s.RecoveryTimes, o.RecoveryTime)
	m := &s.Worst
	m.Attempts += o.Attempts
	m.PerSecond, m.PerMinute, m.Largest, m.RecoveryTime = max(m.PerSecond, o.PerSecond), max(m.PerMinute, o.PerMinute), max(m.Largest, o.Largest), max(m.RecoveryTime, o.RecoveryTime)
}
