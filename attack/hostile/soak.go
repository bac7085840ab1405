package hostile

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Plan is a run of one device through many cases.
type Plan struct {
	// Seed orders the cases: the devices of one run have one seed, and Number of Devices takes its
	// share of them, again and again.
	Seed            uint64
	Number, Devices int
	// For is how long it goes on; the case that is under way then is met to its end.
	For time.Duration
	// MaxCase is how long one case lasts at most, and a tenth of it at least.
	MaxCase time.Duration
	Limits  Limits
	// TCP says that bytes are not judged: what the kernel holds for the device would count.
	TCP bool
	// OnCase, if not nil, is told of each case that was met.
	OnCase func(name string, out Outcome, err error)
}

// SoakResult is what was seen of a device in a run.
type SoakResult struct {
	Cases         int             // that it met, with a good server before and after each
	Orders        int             // commands that it was given by the good server, all done once
	Worst         Outcome         // the most of each, of all cases
	RecoveryTimes []time.Duration // how long after each return of the good server it had obeyed, sorted
}

// Soak lets a device that has enrolled and runs meet cases in the order of a seed, with a good server
// before and after each, and returns what it did not hold, by case.
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
