package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/device"
)

// comparedDevices is the number of devices that request tokens of each build. They enroll over the API, since the two builds
// need not have the same tables.
const comparedDevices = 200

// compare measures this build beside another one, taking turns: the servers' CPU time for each token, and for each command if
// rate is not 0. The clients are of this build.
func compare(ctx context.Context, other string, rounds, tokens, clients, devices, rate, seconds int) error {
	fmt.Printf("%s, %s/%s, %d cores, %s; %d rounds, the builds taking turns\n\n", time.Now().UTC().Format("2006-01-02"), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version(), rounds)
	fmt.Printf("| | round | server's CPU, this build | the other | ratio |\n|---|---|---|---|---|\n")
	return withThisServer(ctx, &bench{quiet: true}, 0, 0, func(this *bench, _ map[watchword.SubjectID]*jose.Signer) error {
		return withThisServer(ctx, &bench{quiet: true, program: other}, 0, 0, func(that *bench, _ map[watchword.SubjectID]*jose.Signer) error {
			two := [2]*bench{this, that}
			var signers [2]map[watchword.SubjectID]*jose.Signer
			for i, b := range two {
				var err error
				if signers[i], err = b.enrollSigners(ctx); err != nil {
					return err
				}
			}
			err := takeTurns("a token", rounds, func(i, round int) (time.Duration, error) {
				err := two[i].tokenEndpoint(ctx, signers[i], comparedDevices, tokens, clients, round == 0)
				return time.Duration(float64(time.Second) / two[i].perCore), err
			})
			if err != nil || rate == 0 {
				return err
			}
			return takeTurns("a command", rounds, func(i, round int) (time.Duration, error) {
				err := two[i].commands(ctx, fmt.Sprintf("round-%d-", round), devices, rate, seconds)
				return two[i].perCommand, err
			})
		})
	})
}

// takeTurns measures both builds in each round, another one first each time, and prints what they took.
func takeTurns(what string, rounds int, measure func(build, round int) (time.Duration, error)) error {
	var took [2][]time.Duration
	row := func(round string, this, that time.Duration) {
		fmt.Printf("| %s | %s | %s | %s | %.3f |\n", what, round, this.Round(time.Microsecond), that.Round(time.Microsecond), float64(this)/float64(that))
	}
	for round := range rounds {
		for turn := range 2 {
			i := (round + turn) % 2
			d, err := measure(i, round)
			if err != nil {
				return err
			}
			took[i] = append(took[i], d)
		}
		row(fmt.Sprint(round+1), took[0][round], took[1][round])
	}
	median := func(ds []time.Duration) time.Duration { return slices.Sorted(slices.Values(ds))[len(ds)/2] }
	row("median", median(took[0]), median(took[1]))
	return nil
}

// enrollSigners enrolls devices and returns what they sign with.
func (b *bench) enrollSigners(ctx context.Context) (map[watchword.SubjectID]*jose.Signer, error) {
	out := map[watchword.SubjectID]*jose.Signer{}
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(16)
	for i := range comparedDevices {
		g.Go(func() error {
			id := watchword.SubjectID(fmt.Sprintf("asks-%d", i))
			d, err := b.enroll(ctx, id, device.Options{})
			if err != nil {
				return err
			}
			if err := d.Close(); err != nil {
				return err
			}
			raw, err := os.ReadFile(filepath.Join(b.dir, string(id), "sign.jwk"))
			if err != nil {
				return err
			}
			k, err := jose.ParsePrivateJWK(raw, jose.ForSigning)
			if err != nil {
				return err
			}
			s, err := k.Signer()
			mu.Lock()
			defer mu.Unlock()
			out[id] = s
			return err
		})
	}
	return out, g.Wait()
}
