package main

import (
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword/internal/logbudget"
	"github.com/watchword-iot/watchword/server"
)

func (a *app) serveCommand() *cobra.Command {
	c := &cobra.Command{Use: "serve", Short: "Run the server; an empty data folder is initialized", Args: positional(cobra.NoArgs)}
	file := c.Flags().String("config", "", "configuration file (TOML)")
	show := c.Flags().Bool("print-config", false, "print the effective configuration, with secrets masked, and exit")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, from, err := server.Load(server.Source{File: *file, Data: a.data})
		if err != nil {
			return err
		}
		if err := cfg.Check(); err != nil {
			return err
		}
		if *show {
			b, err := cfg.Print()
			if err == nil {
				a.out.Document(string(b))
				err = a.out.Err()
			}
			return err
		}
		log := a.logger(cfg.Log)
		slog.SetDefault(log)
		s, err := server.New(c.Context(), cfg, server.Options{Log: log, Version: version()})
		if err != nil {
			return err
		}
		i := s.Info()
		if from != "" {
			a.err.Printf("configuration  %s\n", from)
		}
		a.err.Printf("Watchword listens on %s (%s)\n", i.URL, i.HTTPS)
		if i.MQTTS != "" {
			a.err.Printf("mqtts          %s\n", i.MQTTS)
		}
		if i.MQTT != "" {
			a.err.Printf("mqtt           %s (without TLS)\n", i.MQTT)
		}
		a.err.Printf("data           %s\n", i.Data)
		if i.CAFile != "" {
			a.err.Printf("CA file        %s\n", i.CAFile)
		}
		if i.Initialized {
			a.err.Printf("first start: keys, store and the first operator were created\n")
		}
		a.err.Printf("next           %s device create lamp-1 --data %s\n", program(), i.Data)
		return s.Run(c.Context())
	}
	return c
}

// logger returns the logger of the whole process, which is also [slog.Default].
func (a *app) logger(c server.LogConfig) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Level)) // validated with the configuration
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(logbudget.New(slog.NewJSONHandler(a.err, o)))
	}
	return slog.New(logbudget.New(slog.NewTextHandler(a.err, o)))
}
