package rest

import (
	"context"
	"math/rand/v2"
	"time"
)

// PollPace keeps a loop that asks again and again from turning as fast as the server
// answers: rounds that bring nothing follow each other with pauses that grow. It is for
// one goroutine.
type PollPace struct {
	// Least is the time from the beginning of a round that brought nothing to the next
	// one. It doubles with each more, up to Most.
	Least, Most time.Duration

	began       time.Time // of this round
	emptyRounds int       // rounds that brought nothing, in a row
}

// Wait ends a round and returns when the next one may begin: at once where this one
// brought something. A tenth of the time is chance, so that many clients do not ask at
// once. It returns ctx's error where that ends first.
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
