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
	// Most is how long one case lasts at most, and a tenth of it at least.
	Most   time.Duration
	Limits Limits
	// TCP says that bytes are not judged: what the kernel holds for the device would count.
	TCP bool
	// Tell, if not nil, is told of each case that was met.
	Tell func(name string, out Outcome, err error)
}

// Seen is what was seen of a device in a run.
type Seen struct {
	Cases  int             // that it met, with a good server before and after each
	Orders int             // commands that it was given by the good server, all done once
	Out    Outcome         // the most of each, of all cases
	Backs  []time.Duration // how long after each return of the good server it had obeyed, sorted
}

// Soak lets a device that has enrolled and runs meet cases in the order of a seed, with a good server
// before and after each, and returns what it did not hold, by case.
func Soak(ctx context.Context, s *Server, d Device, p Plan) (seen Seen, err error) {
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
			l.Lasts = p.Most/10 + time.Duration(lasts.Int64N(int64(p.Most*9/10)))
			out, err := c.Run(ctx, s, d, l)
			if ctx.Err() != nil {
				break
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", c.Name, err))
			}
			if p.Tell != nil {
				p.Tell(c.Name, out, err)
			}
			seen.add(out)
		}
	}
	slices.Sort(seen.Backs)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.orders {
		if o.Done != nil {
			seen.Orders++
		}
	}
	return seen, errors.Join(errs...)
}

func (s *Seen) add(o Outcome) {
	s.Cases++
	s.Backs = append(s.Backs, o.Back)
	m := &s.Out
	m.Attempts += o.Attempts
	m.Second, m.Minute, m.Largest, m.Back = max(m.Second, o.Second), max(m.Minute, o.Minute), max(m.Largest, o.Largest), max(m.Back, o.Back)
}
