// Command auditload measures the audit log alone: entries a second one by one and in groups, a
// search, the verification of a large log, a proof, and disk space per entry. It prints Markdown.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/sqlite"
)

func main() {
	entries := flag.Int("entries", 1_000_000, "entries of the large log")
	flag.Parse()
	if err := run(context.Background(), *entries); err != nil {
		fmt.Fprintln(os.Stderr, "auditload:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, entries int) (err error) {
	dir, err := os.MkdirTemp("", "watchword-auditload-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	fmt.Printf("%s, %s/%s, %d cores, %s\n\n", time.Now().UTC().Format("2006-01-02"), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version())
	cfg := server.Defaults()
	cfg.Data, cfg.Server.HTTPS, cfg.Server.MQTTS, cfg.Metrics.Listen = dir, "localhost:0", "", ""
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	if err := runOnce(ctx, cfg); err != nil { // the first start initializes the folder
		return err
	}
	path := filepath.Join(dir, "watchword.db")
	if err := grow(ctx, path, entries); err != nil {
		return err
	}
	if err := runOnce(ctx, cfg); err != nil { // the second start signs a checkpoint
		return err
	}
	return measureReads(ctx, dir, path)
}

// runOnce starts and stops a server.
func runOnce(ctx context.Context, cfg server.Config) error {
	began := time.Now()
	s, err := server.New(ctx, cfg, server.Options{Version: "auditload"})
	if err != nil {
		return err
	}
	took := time.Since(began)
	run, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- s.Run(run) }()
	<-s.Ready()
	stop()
	fmt.Fprintf(os.Stderr, "started in %s\n", took.Round(time.Millisecond))
	return <-ended
}

// token returns the audit entry of an issued token.
func token(i int) audit.Entry {
	id := watchword.NewID("tok_", time.Now())
	return audit.Actor{Tenant: watchword.DefaultTenant, Subject: watchword.SubjectID(fmt.Sprint("meter-", i%100_000)), Key: watchword.KeyID(jose.Hash([]byte{byte(i)})), Trace: watchword.NewID("", time.Now())}.
		DoneEntry(audit.TokenIssue, id, time.Now(), nil)
}

func grow(ctx context.Context, path string, entries int) (err error) {
	st, err := sqlite.Open(ctx, path, sqlite.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	fmt.Printf("| | |\n|---|---|\n")
	const alone = 500
	began := time.Now()
	for i := range alone {
		if err := st.AddEntry(ctx, token(i)); err != nil {
			return err
		}
	}
	took := time.Since(began)
	fmt.Printf("| one by one, each on the disk before the next: entries a second, time of one | %.0f, %s |\n", alone/took.Seconds(), (took / alone).Round(time.Microsecond))
	var next atomic.Int64
	group := func(n, at int) error {
		next.Store(0)
		errs := make(chan error, at)
		var wg sync.WaitGroup
		for range at {
			wg.Go(func() {
				for {
					i := int(next.Add(1))
					if i > n {
						return
					}
					if err := st.AddEntry(ctx, token(i)); err != nil {
						errs <- err
						return
					}
				}
			})
		}
		wg.Wait()
		close(errs)
		return <-errs
	}
	for _, at := range []int{64, 512} {
		const n = 50_000
		began := time.Now()
		if err := group(n, at); err != nil {
			return err
		}
		fmt.Printf("| %d at once, sharing commits: entries a second | %.0f |\n", at, n/time.Since(began).Seconds())
	}
	tree, err := st.Tree(ctx)
	if err != nil {
		return err
	}
	for at := int(tree.Size()); at < entries; at += 512 {
		es := make([]audit.Entry, min(512, entries-at))
		for i := range es {
			es[i] = token(at + i)
		}
		if err := st.AddEntry(ctx, es...); err != nil {
			return err
		}
	}
	return nil
}

func measureReads(ctx context.Context, dir, path string) (err error) {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	began := time.Now()
	v, err := server.VerifyLog(ctx, dir, nil)
	if err != nil {
		return err
	}
	took := time.Since(began)
	fmt.Printf("| `audit verify` of %d entries: time, entries a second | %s, %.0f |\n", v.Entries, took.Round(10*time.Millisecond), float64(v.Entries)/took.Seconds())
	fmt.Printf("| disk per entry of a token, with tree and search terms | %d B |\n", info.Size()/v.Entries)
	st, err := sqlite.Open(ctx, path, sqlite.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	c := v.Checkpoint
	read := func(level int, n int64, width int) ([]byte, error) { return st.Tile(ctx, level, n, width) }
	var proofs []time.Duration
	size := 0
	keys, err := server.LogKeys(ctx, dir)
	if err != nil {
		return err
	}
	last, err := st.LastCheckpoint(ctx)
	if err != nil {
		return err
	}
	var checks []time.Duration
	for i := int64(1); i < c.Size; i += c.Size / 200 {
		began := time.Now()
		rs, err := st.Records(ctx, i-1, 1)
		if err != nil {
			return err
		}
		hs, err := ledger.InclusionProof(c, i-1, read)
		if err != nil {
			return err
		}
		p := ledger.Proof{Index: i - 1, Salt: rs[0].Salt, Body: rs[0].Body, Hashes: hs, Checkpoint: last.Note}
		size = max(size, len(p.Marshal()))
		proofs = append(proofs, time.Since(began))
		began = time.Now()
		if _, err := p.Verify(keys...); err != nil {
			return err
		}
		checks = append(checks, time.Since(began))
	}
	fmt.Printf("| a proof: most bytes of text, time to make (median, most), time to check (median) | %d B, %s, %s, %s |\n", size, middle(proofs), slices.Max(proofs).Round(time.Microsecond), middle(checks))
	for _, q := range []struct {
		what string
		q    audit.Query
	}{
		{"one device of 100,000, newest 100", audit.Query{Subject: "meter-4711"}},
		{"a kind that is rare", audit.Query{Kind: audit.ServerStart}},
		{"nobody", audit.Query{Subject: "nobody"}},
	} {
		began := time.Now()
		rs, err := st.Find(ctx, q.q, audit.Page{Newest: true, Limit: 100})
		if err != nil {
			return err
		}
		fmt.Printf("| search: %s | %d in %s |\n", q.what, len(rs), time.Since(began).Round(100*time.Microsecond))
	}
	return nil
}

func middle(ds []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(ds))
	return s[len(s)/2].Round(time.Microsecond)
}
