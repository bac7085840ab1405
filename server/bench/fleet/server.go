package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/server"
)

// fleet is a running server on a data folder.
type fleet struct {
	data    string
	devices int

	admin   *admin.Client // of the owner
	server  *server.Server
	ended   chan error
	cancel  context.CancelFunc
	started time.Duration // how long the last start took, to the first request that is accepted
}

// config is the configuration of the server: default bounds, except for the rates.
func config(data string) server.Config {
	cfg := server.Defaults()
	cfg.Data, cfg.Server.HTTPS, cfg.Server.MQTTS, cfg.Metrics.Listen = data, "localhost:0", "localhost:0", "127.0.0.1:0"
	cfg.Limits.TokenRate, cfg.Limits.RequestRate, cfg.Limits.IssueRate = 1<<20, 1<<20, 1<<20
	cfg.Limits.SessionExpiry.Duration = 365 * 24 * time.Hour // so that the sessions of a folder are there the next day
	return cfg
}

func (f *fleet) start(ctx context.Context) error {
	cfg := config(f.data)
	if err := cfg.Check(); err != nil {
		return err
	}
	began := time.Now()
	s, err := server.New(ctx, cfg, server.Options{Log: slog.New(slog.DiscardHandler), Version: "fleet"})
	if err != nil {
		return err
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f.server, f.cancel, f.ended = s, cancel, make(chan error, 1)
	go func() { f.ended <- s.Run(running) }()
	select {
	case <-s.Ready():
	case err := <-f.ended:
		return errors.Join(errors.New("the server ended before it was ready"), err)
	}
	f.started = time.Since(began)
	f.admin, err = admin.Local(f.data)
	if err != nil {
		return err
	}
	_, err = f.admin.Policies(ctx) // has a token and a connection from now on
	return err
}

func (f *fleet) stop() error {
	if f.server == nil {
		return nil
	}
	f.cancel()
	f.server = nil
	return <-f.ended
}

// metrics returns numbers of the server's metrics, by name.
func (f *fleet) metrics(names ...string) (map[string]float64, error) {
	res, err := http.Get("http://" + f.server.Info().Metrics + "/metrics")
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	out := map[string]float64{}
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		for _, wanted := range names {
			if name == wanted {
				var v float64
				if _, err := fmt.Sscan(value, &v); err != nil {
					return nil, fmt.Errorf("metric %s: %w", name, err)
				}
				out[name] = v
			}
		}
	}
	for _, wanted := range names {
		if _, ok := out[wanted]; !ok {
			return nil, errors.Join(lines.Err(), fmt.Errorf("the server has no metric %s", wanted))
		}
	}
	return out, lines.Err()
}

// reads is what the server has read from its store since its start.
type reads struct{ statements, rows float64 }

func (f *fleet) reads() (reads, error) {
	const statements, rows = "watchword_store_statements_total", "watchword_store_rows_read_total"
	all, err := f.metrics(statements, rows)
	return reads{all[statements], all[rows]}, err
}
