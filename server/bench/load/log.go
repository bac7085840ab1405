package main

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// logTurns measures the cost of the audit log: the same work with and without it, alternately.
func logTurns(ctx context.Context, turns, tokens, clients, devices, rate, seconds int) error {
	fmt.Printf("%s, %s/%s, %d cores, %s\n\n", time.Now().UTC().Format("2006-01-02"), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version())
	fmt.Printf("| turn | log | tokens a second of the server's CPU | CPU of one | of the crypto bound | CPU of one command |\n|---|---|---|---|---|---|\n")
	for turn := range turns {
		for _, off := range []bool{false, true} {
			t, c := &bench{unlogged: off, quiet: true}, &bench{unlogged: off, quiet: true}
			err := withThisServer(ctx, t, active, active, func(b *bench, signers map[watchword.SubjectID]*jose.Signer) error {
				return b.tokenEndpoint(ctx, signers, active, tokens, clients, true)
			})
			if err == nil && rate > 0 {
				err = withThisServer(ctx, c, 0, 0, func(b *bench, _ map[watchword.SubjectID]*jose.Signer) error {
					return b.commands(ctx, "bench-", devices, rate, seconds)
				})
			}
			if err != nil {
				return err
			}
			name := "on"
			if off {
				name = "off"
			}
			fmt.Printf("| %d | %s | %.0f | %.0f µs | %.2f | %.0f µs |\n", turn+1, name, t.perCore, 1e6/t.perCore, t.perCore/t.bound, float64(c.perCommand.Microseconds()))
		}
	}
	return nil
}
