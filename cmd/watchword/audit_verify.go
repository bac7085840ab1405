package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
)

// verification is the output of audit verify.
type verification struct {
	OK           bool          `json:"ok"`
	What         string        `json:"what"`
	Keys         string        `json:"keys"`
	Origin       string        `json:"origin,omitempty"`
	Size         int64         `json:"size"`
	Root         string        `json:"root"`
	Entries      int64         `json:"entries,omitempty"`
	Bodies       int64         `json:"bodies,omitempty"`
	Pruned       int64         `json:"pruned,omitempty"`
	Uncovered    int64         `json:"uncovered,omitempty"`
	Checkpoints  int           `json:"checkpoints,omitempty"`
	Cosignatures []cosignature `json:"cosignatures,omitempty"`
	Entry        *audit.Entry  `json:"entry,omitempty"`
	Seq          int64         `json:"seq,omitempty"`
}

type cosignature struct {
	Witness string    `json:"witness"`
	At      time.Time `json:"at"`
}

func (a *app) auditVerify() *cobra.Command {
	var o verifyOptions
	c := &cobra.Command{
		Use: "verify [DIR|URL|FILE]", Short: "Recompute the log and report the first entry that does not match",
		Long: "Recomputes a log offline: of a data folder (its server may run; default: the folder of --data), a mirror of /log/, a URL that serves one, an export, or the proof of one entry. Exit status 8 if a verification fails.",
		Args: positional(cobra.MaximumNArgs(1)),
	}
	f := c.Flags()
	f.StringVar(&o.key, "key", "", "file with the log's public key, and those of witnesses: as audit key prints them, a JWK, or PEM")
	f.StringArrayVar(&o.against, "against", nil, "file with a checkpoint that was kept elsewhere: the log must extend it")
	f.StringVar(&o.token, "token", "", "file with an access token for the URL, - for standard input")
	f.StringVar(&o.ca, "cafile", "", "file with the authority that certifies the URL")
	c.RunE = func(c *cobra.Command, args []string) error {
		what := a.data
		if len(args) > 0 {
			what = args[0]
		}
		v, err := a.verifyLog(c.Context(), what, o)
		if err != nil {
			return err
		}
		return a.print(v, v.table)
	}
	return c
}

type verifyOptions struct {
	key, token, ca string
	against        []string
}

func (a *app) verifyLog(ctx context.Context, what string, o verifyOptions) (verification, error) {
	v := verification{OK: true, What: what, Keys: o.key}
	var against [][]byte
	for _, name := range o.against {
		b, err := readTrusted(name, ledger.MaxNote)
		if err != nil {
			return v, err
		}
		against = append(against, b)
	}
	keys, err := readLogKeys(o.key)
	if err != nil {
		return v, err
	}
	if strings.HasPrefix(what, "https://") || strings.HasPrefix(what, "http://") {
		return v, a.verifyURL(ctx, &v, o, keys, against)
	}
	info, err := os.Stat(what)
	if err != nil {
		return v, watchword.Wrap(err, watchword.NotFound, "%s does not exist", what)
	}
	switch {
	case info.IsDir() && server.IsData(what):
		named := keys.of
		if o.key == "" {
			v.Keys, named = "as the folder itself names them", nil
		}
		verdict, err := server.VerifyLog(ctx, what, named, against...)
		return v, v.take(verdict, err)
	case o.key == "":
		return v, usage("--key is required: the log's public key, which watchword audit key prints")
	case info.IsDir():
		verdict, err := verifyMirror(ctx, mirrorDir(what), keys, against)
		return v, v.take(verdict, err)
	}
	return v, v.file(what, keys, against)
}

// take adds the result of a verified log.
func (v *verification) take(d audit.VerifyResult, err error) error {
	if err != nil {
		return err
	}
	v.Origin, v.Size, v.Root = d.Origin, d.Checkpoint.Size, d.Checkpoint.Root.String()
	v.Entries, v.Bodies, v.Pruned, v.Uncovered, v.Checkpoints = d.Entries, d.Bodies, d.Pruned, d.Uncovered, d.Checkpoints
	v.cosigned(d.Cosignatures)
	if d.Checkpoints == 0 {
		return watchword.Refuse(watchword.LogInvalid, "the log has no checkpoint, so nothing signed can be compared")
	}
	return nil
}

func (v *verification) cosigned(cs []ledger.Cosignature) {
	for _, c := range cs {
		v.Cosignatures = append(v.Cosignatures, cosignature{c.Witness.Name(), c.At})
	}
}

// file verifies an export, or the proof of one entry.
func (v *verification) file(name string, keys logKeys, against [][]byte) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, 64)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return watchword.Wrap(err, watchword.LogInvalid, "%s must be an export or a proof", name)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if !ledger.IsProof(head[:n]) {
		all, err := keys.ofExport(f)
		if err != nil {
			return err
		}
		d, err := audit.VerifyExport(f, all, against...)
		return v.take(d, err)
	}
	b, err := readInput(name, ledger.MaxProof)
	if err != nil {
		return err
	}
	p, err := ledger.ParseProof(b)
	if err != nil {
		return err
	}
	if len(against) > 0 {
		return usage("--against cannot be used with a proof of one entry: name the log")
	}
	all, err := keys.ofNote(p.Checkpoint)
	if err != nil {
		return err
	}
	c, err := p.Verify(all...)
	if err != nil {
		return err
	}
	e, err := audit.Parse(p.Index+1, p.Body)
	if err != nil {
		return watchword.Wrap(err, watchword.LogInvalid, "entry %d is not an audit entry", p.Index+1)
	}
	v.Origin, v.Size, v.Root, v.Entry, v.Seq = c.Origin, c.Size, c.Root.String(), &e, p.Index+1
	v.cosigned(c.Cosignatures)
	return nil
}

func (v verification) table(w *terminal.Writer) {
	w.Printf("verified\t%s\n", v.What)
	w.Printf("log\t%s\n", v.Origin)
	w.Printf("checkpoint\t%d entries, root %s\n", v.Size, v.Root)
	if v.Entry != nil {
		w.Printf("entry\t%d is in it: %s %s %s %s\n", v.Seq, v.Entry.Kind, v.Entry.Actor, v.Entry.Object, v.Entry.Outcome)
	} else {
		w.Printf("entries\t%d, %d of them whole, %d pruned, %d by their hash alone; held against %d checkpoints\n", v.Entries, v.Bodies, v.Pruned, v.Entries-v.Bodies-v.Pruned, v.Checkpoints)
	}
	if v.Uncovered > 0 {
		w.Printf("uncovered\t%d entries came after the last checkpoint\n", v.Uncovered)
	}
	for _, c := range v.Cosignatures {
		w.Printf("witness\t%s, %s\n", c.Witness, formatTime(c.At))
	}
	w.Printf("keys\t%s\n", v.Keys)
}

func verifyMirror(ctx context.Context, get audit.Fetch, keys logKeys, against [][]byte) (audit.VerifyResult, error) {
	note, err := get(ctx, "checkpoint")
	if err != nil {
		return audit.VerifyResult{}, err
	}
	all, err := keys.ofNote(note)
	if err != nil {
		return audit.VerifyResult{}, err
	}
	once := func(ctx context.Context, path string) ([]byte, error) {
		if path == "checkpoint" {
			return note, nil // the one that the log's name was read from
		}
		return get(ctx, path)
	}
	return audit.VerifyMirror(ctx, once, all, against...)
}

// mirrorDir returns a function that reads a mirror of a log from a folder.
func mirrorDir(dir string) audit.Fetch {
	return func(_ context.Context, path string) ([]byte, error) {
		b, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(path)))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, watchword.Refuse(watchword.NotFound, "%s does not exist", path)
		}
		return b, err
	}
}

// verifyURL verifies a log that a server publishes: this machine's own, or another.
func (a *app) verifyURL(ctx context.Context, v *verification, o verifyOptions, keys logKeys, against [][]byte) error {
	get, own, err := a.logAt(v.What, o)
	if err != nil {
		return err
	}
	if err := v.orOwn(ctx, &keys, own); err != nil {
		return err
	}
	verdict, err := verifyMirror(ctx, get, keys, against)
	return v.take(verdict, err)
}

// logAt returns a function that fetches the log at an address. own, if not nil, returns the log's keys from the server of
// --data, if the address is that server's.
func (a *app) logAt(address string, o verifyOptions) (get audit.Fetch, own func(context.Context) ([]ledger.Key, error), err error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return nil, nil, usage("%s must be the URL of a log", address)
	}
	base := strings.TrimRight(address, "/")
	if cl, err := a.client(); err == nil && o.token == "" && (base == cl.URL() || base == cl.URL()+"/log") {
		return cl.LogFile, a.bundledLogKeys, nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.ca != "" {
		b, err := readTrusted(o.ca, 1<<20)
		if err != nil {
			return nil, nil, err
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(b) {
			return nil, nil, watchword.RefuseField("--cafile", "must contain at least one certificate in PEM")
		}
	}
	head := map[string]string{}
	if o.token != "" {
		b, err := readTrusted(o.token, watchword.MaxToken+2)
		if err != nil {
			return nil, nil, err
		}
		head["Authorization"] = "Bearer " + strings.TrimSpace(string(b))
	}
	return mirrorAt(rest.NewUnauthenticated(base, rest.Transport(conf, nil)), head), nil, nil
}

// mirrorAt returns a function that fetches the files of a log from any server: the log is verified by its key, and no other
// part of the responses is trusted. A missing file makes the mirror unavailable, not the log invalid; a partial tile or
// bundle may be missing as soon as the full one exists (C2SP tlog-tiles).
func mirrorAt(c *rest.Client, head map[string]string) audit.Fetch {
	return func(ctx context.Context, path string) ([]byte, error) {
		a, err := c.Do(ctx, rest.Request{Method: http.MethodGet, Path: "/" + path, Header: head})
		switch {
		case err == nil:
			return a.Body, nil
		case rest.StatusOf(err) == http.StatusNotFound && strings.Contains(path, ".p/"):
			return nil, watchword.Wrap(err, watchword.NotFound, "%s does not exist", path)
		case rest.StatusOf(err) != 0:
			return nil, watchword.Wrap(err, watchword.Unavailable, "%s: the answer has status %d", path, rest.StatusOf(err))
		}
		return nil, err
	}
}

// bundledLogKeys returns the log's keys in the trust bundle of this machine's server, verified with the root that its data
// folder pins.
func (a *app) bundledLogKeys(ctx context.Context) ([]ledger.Key, error) {
	t, err := a.trust(ctx)
	if err != nil {
		return nil, err
	}
	return ledger.VerifierKeys(t.Origin(), t.Log, t.Witnesses)
}

// orOwn uses the keys of this machine's server if --key names none.
func (v *verification) orOwn(ctx context.Context, keys *logKeys, own func(context.Context) ([]ledger.Key, error)) (err error) {
	if v.Keys != "" {
		return nil
	}
	if own == nil {
		return usage("--key is required: the log's public key, which watchword audit key prints")
	}
	v.Keys = "as the server's trust bundle names them"
	keys.named, err = own(ctx)
	return err
}
