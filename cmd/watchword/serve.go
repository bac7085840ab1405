package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword/server"
)

func (a *app) serveCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "serve", Short: "Run the server; an empty data folder is initialized", Args: positional(cobra.NoArgs),
		Long: "Run the server until SIGTERM or SIGINT; an empty data folder is initialized. SIGHUP reads the configuration file and the\n" +
			"certificate again and opens the log file again.",
	}
	file := c.Flags().String("config", "", "configuration file (TOML)")
	show := c.Flags().Bool("print-config", false, "print the effective configuration, with secrets masked, and exit")
	c.RunE = func(c *cobra.Command, _ []string) error {
		source := server.Source{File: *file, Data: a.data}
		cfg, from, err := loadConfig(source)
		if err != nil {
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
		hup := hangups()
		log, err := a.openLog(cfg.Log)
		if err != nil {
			return err
		}
		log.bound()
		s, err := server.New(c.Context(), cfg, server.Options{Log: log.Logger, Version: version()})
		if err != nil {
			return err
		}
		if cfg.Log.Format == "json" { // what reads standard error expects a JSON object in each line
			log.InfoContext(c.Context(), "listening", addressAttrs(s.Info(), from)...)
		} else {
			a.printAddresses(s.Info(), from)
		}
		if cfg.Log.Format != "json" && cfg.Log.Level == "" && log.level.Level() == slog.LevelWarn {
			a.err.Printf("log            warnings and errors; log.level = \"info\" in the configuration shows refused requests too\n")
		}
		r := &serverReload{source: source, used: cfg, log: log, server: s}
		return supervise(c.Context(), hup, supervised{ready: s.Ready(), status: "serves " + s.Info().URL, reload: r.reload, alive: s.CheckLiveness}, s.Run)
	}
	return c
}

// loadConfig reads and checks the configuration. It returns the path of its file too.
func loadConfig(source server.Source) (cfg server.Config, from string, err error) {
	if cfg, from, err = server.Load(source); err == nil {
		err = cfg.Check()
	}
	return cfg, from, err
}

// printAddresses prints where the server is to be found, on standard error.
func (a *app) printAddresses(i server.Info, config string) {
	if config != "" {
		a.err.Printf("configuration  %s\n", config)
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
}

// addressAttrs returns what printAddresses prints, as attributes of a line of the log.
func addressAttrs(i server.Info, config string) []any {
	return []any{
		slog.String("url", i.URL), slog.String("https", i.HTTPS), slog.String("mqtts", i.MQTTS), slog.String("mqtt", i.MQTT), slog.String("metrics", i.Metrics),
		slog.String("data", i.Data), slog.String("ca_file", i.CAFile), slog.String("config", config), slog.Bool("first_start", i.Initialized),
	}
}

// serverReload is what SIGHUP does to a server. It is not safe for concurrent use.
type serverReload struct {
	source server.Source
	used   server.Config // in use, with the keys of the start that a reload does not change
	log    *processLog
	server *server.Server
}

// reload opens the log file again, which logrotate may have renamed, reads the certificate again, and reads the configuration again for
// the keys that can be changed while the server runs. Each of the three is done whether or not the others fail, and keeps what was in
// use where it fails.
func (r *serverReload) reload(ctx context.Context) error {
	return errors.Join(r.log.reopen(), r.server.ReloadCertificate(), r.configure(ctx))
}

func (r *serverReload) configure(ctx context.Context) error {
	read, _, err := loadConfig(r.source)
	if err != nil {
		return err
	}
	next, atStart := r.used.Reloaded(read)
	if next.Log.File != r.used.Log.File {
		if err := r.log.use(next.Log.File); err != nil {
			return err
		}
	}
	r.log.setLevel(next.Log.Level)
	r.used = next
	if len(atStart) > 0 {
		slog.WarnContext(ctx, "these keys of the configuration were changed and take effect at the next start", slog.String("keys", strings.Join(atStart, " ")))
	}
	return nil
}
