package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/server/audit"
)

func (a *app) auditKey() *cobra.Command {
	return &cobra.Command{
		Use: "key", Short: "Print the log's public keys, to keep elsewhere", Long: "The log's public keys, and those of the witnesses that the trust bundle names, as verifier keys (C2SP signed-note), for audit verify --key and for other programs for transparency logs.",
		Args: positional(cobra.NoArgs), RunE: func(c *cobra.Command, _ []string) error {
			keys, err := a.bundledLogKeys(c.Context())
			if err != nil {
				return err
			}
			for _, k := range keys {
				a.out.Printf("%s\n", k)
			}
			return a.out.Err()
		},
	}
}

func (a *app) auditMirror() *cobra.Command {
	var o verifyOptions
	c := &cobra.Command{
		Use: "mirror DIR [URL]", Short: "Copy the log's tiles to a folder, or update the copy",
		Long: "Copies the log to a folder, or updates a copy: it fetches the new entries, verifies all of them, checks that the new log extends the copied one, and only then writes the checkpoint.",
		Args: positional(cobra.RangeArgs(1, 2)),
	}
	f := c.Flags()
	f.StringVar(&o.key, "key", "", "file with the log's public key")
	f.StringVar(&o.token, "token", "", "file with an access token for the URL, - for standard input")
	f.StringVar(&o.ca, "cafile", "", "file with the authority that certifies the URL")
	c.RunE = func(c *cobra.Command, args []string) error {
		keys, err := readLogKeys(o.key)
		if err != nil {
			return err
		}
		v := verification{OK: true, What: args[0], Keys: o.key}
		address := ""
		if len(args) == 2 {
			address = args[1]
		} else {
			cl, err := a.client()
			if err != nil {
				return err
			}
			address = cl.URL()
		}
		get, own, err := a.logAt(address, o)
		if err != nil {
			return err
		}
		if err := v.orOwn(c.Context(), &keys, own); err != nil {
			return err
		}
		verdict, err := mirror(c.Context(), args[0], get, keys)
		if err := v.take(verdict, err); err != nil {
			return err
		}
		return a.print(v, v.table)
	}
	return c
}

// mirror updates the copy of a log in dir. It writes fetched files once all of them are verified. A damaged copy is fetched
// again completely.
func mirror(ctx context.Context, dir string, get audit.Fetch, keys logKeys) (audit.VerifyResult, error) {
	here := mirrorDir(dir)
	var against [][]byte
	switch old, err := here(ctx, "checkpoint"); {
	case err == nil:
		against = append(against, old)
	case watchword.CodeOf(err) != watchword.NotFound:
		return audit.VerifyResult{}, err
	}
	if len(against) > 0 {
		if err := sameOrigin(ctx, dir, against[0], get); err != nil {
			return audit.VerifyResult{}, err
		}
	}
	v, err := mirrorOnce(ctx, dir, get, here, keys, against)
	if watchword.CodeOf(err) == watchword.LogInvalid {
		nothing := func(context.Context, string) ([]byte, error) {
			return nil, watchword.Refuse(watchword.NotFound, "not read")
		}
		return mirrorOnce(ctx, dir, get, nothing, keys, against)
	}
	return v, err
}

// sameOrigin refuses to continue the copy of a log with another origin: a server that was restored from a backup has a new
// log, and only the copy has the entries that are missing in it. Code: conflict.
func sameOrigin(ctx context.Context, dir string, copied []byte, get audit.Fetch) error {
	note, err := get(ctx, "checkpoint")
	if err != nil {
		return err
	}
	here, err := ledger.ReadCheckpoint(copied)
	if err != nil {
		return nil // a damaged copy is fetched again
	}
	there, err := ledger.ReadCheckpoint(note)
	if err != nil {
		return err
	}
	if here.Origin != there.Origin {
		return watchword.Refuse(watchword.Conflict, "%s is a copy of the log %s with %d entries, and the server has the log %s: it was restored from a backup. Keep %s, and copy the new log to another folder", dir, here.Origin, here.Size, there.Origin, dir)
	}
	return nil
}

func mirrorOnce(ctx context.Context, dir string, get, here audit.Fetch, keys logKeys, against [][]byte) (v audit.VerifyResult, err error) {
	note, err := get(ctx, "checkpoint")
	if err != nil {
		return v, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return v, err
	}
	fresh, err := os.MkdirTemp(dir, ".new-")
	if err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(fresh)) }()
	var fetched []string
	v, err = verifyMirror(ctx, func(ctx context.Context, path string) ([]byte, error) {
		if path == "checkpoint" {
			return note, nil
		}
		if b, err := here(ctx, path); watchword.CodeOf(err) != watchword.NotFound {
			return b, err
		}
		b, err := get(ctx, path)
		if err != nil {
			return nil, err
		}
		fetched = append(fetched, path)
		name := filepath.Join(fresh, filepath.FromSlash(path))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return nil, err
		}
		return b, os.WriteFile(name, b, 0o644)
	}, keys, against)
	if err != nil {
		return v, err
	}
	for _, path := range fetched {
		name := filepath.Join(dir, filepath.FromSlash(path))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return v, err
		}
		if err := os.Rename(filepath.Join(fresh, filepath.FromSlash(path)), name); err != nil {
			return v, err
		}
	}
	return v, durable.WriteFile(filepath.Join(dir, "checkpoint"), note, 0o644)
}
