package rest

import (
	"context"
	"math/rand/v2"
	"time"
)

// PollPace spaces the rounds of a polling loop: rounds without a result follow each other with
// growing pauses. It is not safe for concurrent use.
type PollPace struct {
	// Least is the time from the start of a round without a result to the next round. It doubles
	// with each further one, up to Most.
	Least, Most time.Duration

	began       time.Time // start of this round
	emptyRounds int       // consecutive rounds without a result
}

// Wait ends a round and returns when the next one may start: at once where this one brought a
// result. A tenth of the pause is random, so that clients do not poll in step. It returns ctx's
// error if ctx ends first.
func (p *PollPace) Wait(ctx context.Context, brought bool) error {
	defer func() { p.began = time.Now() }()
	if brought {
		p.emptyRounds = 0
		return ctx.Err()
	}
	pause := p.Most
	if shift := min(p.emptyRounds, 30); p.Least<<shift < p.Most {
		pause = p.Least << shift
	}
	p.emptyRounds++
	pause += rand.N(pause/10 + 1)
	if !p.began.IsZero() {
		pause -= time.Since(p.began)
	}
	if pause <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
