package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

const (
	worstTurns   = 5  // each without and with the attack
	worstSeconds = 6  // of one turn
	worstOthers  = 20 // devices beside the attacker
)

// What the others do, in order, with how often a second: all of them together.
var worstActs = [...]struct {
	name string
	rate int
}{
	{"event, QoS 1, published to received by a service that has all events, the attacker's too", 150},
	{"the same event, received by a service that has those of the others alone", 150},
	{"GET /v1/self", 100},
	{"command to verified receipt", 30},
	{"token request", 30},
}

// worst measures what one device with default rights can do to the others, in turns with and without the attack. The server
// is the product's own program, with default limits. Each attack uses a new device, since the messages of an earlier attack
// are delayed long after they were sent.
func (l *benchRun) worst(ctx context.Context) (err error) {
	seconds := max(int(worstSeconds*l.scale), 1)
	calm, control, err := l.worstControl(ctx, seconds)
	if err != nil {
		return err
	}
	w := &attackBench{dir: filepath.Join(l.dir, "worst"), seconds: seconds}
	if err := w.start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.p.stop()) }()
	fmt.Printf("\n### One device does its worst, %d others beside it\n\n", worstOthers)
	fmt.Printf("The product's program with default limits; no policy but the built-in ones. Turns of %d s, %d without and %d with the attack, after each of which the attacker is deleted. The attacker comes from an address of its own, and is a process with nice 19: it takes what time the others and the server leave of the same cores. For comparison, on a server without an attack: turns with and without a process of normal priority that only computes, on one core.\n\n", w.seconds, worstTurns, worstTurns)
	fmt.Printf("| turn | attacker | lost | refused | heap | resident | server's CPU |\n|---|---|---|---|---|---|---|\n")
	var full float64
	var p99 attackTimes
	lost := 0
	for turn := range worstTurns {
		for attacked := range 2 {
			if attacked == 1 {
				if err := w.p.watchword.enroll(ctx, worstOthers+turn+1); err != nil {
					return err
				}
			}
			began := w.p.cpu()
			r, err := w.turn(ctx, turn*2+attacked, attacked == 1)
			if err != nil {
				return err
			}
			cpu := w.p.cpu() - began
			heap, err := w.metric(ctx, "go_memstats_heap_alloc_bytes")
			if err != nil {
				return err
			}
			fmt.Printf("| %d | %s | %d | %d | %.1f MB | %.1f MB | %.1f s |\n", turn+1, []string{"idle", "attacks"}[attacked], r.lost, r.refused, heap/1e6, float64(w.p.rss())/1e3, cpu.Seconds())
			for _, reason := range r.whys {
				fmt.Fprintln(os.Stderr, "mqttload:", reason)
			}
			lost += r.lost
			if err := p99.add(attacked, r); err != nil {
				return err
			}
			if attacked == 0 {
				continue
			}
			if turn == worstTurns-1 {
				if full, err = w.liveHeap(ctx); err != nil {
					return err
				}
			}
			if err := w.deleteAttacker(ctx); err != nil { // and with it what it still has on its way
				return err
			}
		}
	}
	fmt.Printf("\n| p99, median of %d | attacker idle | attacks | ratio, promised ≤ 2 | beside a process that computes: ratio |\n|---|---|---|---|---|\n", worstTurns)
	for i, act := range worstActs {
		idle, attacks := median(p99[0][i]), median(p99[1][i])
		fmt.Printf("| %s, %d a second | %.1f ms | %.1f ms | %.2f | %.2f |\n", act.name, act.rate, idle, attacks, attacks/idle, median(control[1][i])/median(control[0][i]))
	}
	fmt.Printf("\n| the attacker, all turns | sent | refused, broken | the last of these |\n|---|---|---|---|\n")
	for _, d := range w.attacker {
		fmt.Printf("| %s | %d | %d | %s |\n", d.Name, d.Did[0], d.Did[1], clip(d.Last))
	}
	after, err := w.liveHeap(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("\nLive heap after a collection: %.2f MB after the last attack, %.2f MB once the attacker was deleted; %.2f MB on another server that had the same %d turns of the others and no attack: %+.1f %% (promised: within 10 %%).\n", full/1e6, after/1e6, calm/1e6, 2*worstTurns, 100*(after-calm)/calm)
	if lost > 0 {
		return fmt.Errorf("%d messages of others were lost", lost)
	}
	return nil
}

// attackTimes are p99 in ms, by whether something disturbs the others (1) or not (0), act and turn.
type attackTimes [2][len(worstActs)][]float64

func (t *attackTimes) add(disturbed int, r *attackRound) error {
	for i, took := range r.took {
		if len(took) == 0 {
			return fmt.Errorf("%s: none was answered", worstActs[i].name)
		}
		slices.Sort(took)
		t[disturbed][i] = append(t[disturbed][i], ms(took[len(took)*99/100]))
	}
	return nil
}

// worstControl is the live heap of a server that had all turns without an attack: the data of the other devices (tokens,
// events for readers that reconnect) counts in both. In every other turn an unrelated process uses the time of one core.
func (l *benchRun) worstControl(ctx context.Context, seconds int) (heap float64, p99 attackTimes, err error) {
	w := &attackBench{dir: filepath.Join(l.dir, "calm"), seconds: seconds}
	if err := w.start(ctx); err != nil {
		return 0, p99, err
	}
	defer func() { err = errors.Join(err, w.p.stop()) }()
	for turn := range 2 * worstTurns {
		end := func() {}
		if turn%2 == 1 {
			if end, err = compute(ctx); err != nil {
				return 0, p99, err
			}
		}
		r, err := w.turn(ctx, turn, false)
		end()
		if err == nil {
			err = p99.add(turn%2, r)
		}
		if err != nil {
			return 0, p99, err
		}
	}
	for turn := range worstTurns { // which attack does not matter here
		if err := errors.Join(w.p.watchword.enroll(ctx, worstOthers+turn+1), w.deleteAttacker(ctx)); err != nil {
			return 0, p99, err
		}
	}
	heap, err = w.liveHeap(ctx)
	return heap, p99, err
}

// compute starts a process that takes the time of one core, until end is called.
func compute(ctx context.Context) (end func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	c := exec.CommandContext(ctx, "sh", "-c", "while :; do :; done")
	if err := c.Start(); err != nil {
		cancel()
		return nil, err
	}
	return func() {
		cancel()
		_ = c.Wait() // says that it was killed
	}, nil
}

// clip is what of an error fits into a table.
func clip(text string) string {
	const most = 120
	if _, detail, ok := strings.Cut(text, `"detail":"`); ok { // of a problem
		text, _, _ = strings.Cut(detail, `"`)
	}
	return strings.ReplaceAll(text[:min(len(text), most)], "|", " ")
}
