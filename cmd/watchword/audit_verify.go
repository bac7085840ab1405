package main

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
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
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server"
)

// verification is what audit verify prints.
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
		Use: "verify [DIR|URL|FILE]", Short: "Recompute the log, and name the first entry that does not fit",
		Long: "Recomputes a log offline: of a data folder (running or not; without an argument that of --data), a mirror of /log/, an address that serves one, an export, or the proof of one entry. Exit status 8 where something does not fit.",
		Args: args(cobra.MaximumNArgs(1)),
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
		b, err := readInput(name, ledger.MaxNote)
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
		return v, watchword.Because(err, watchword.NotFound, "there is no %s", what)
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
		return v, usage("--key is missing: the log's public key, as watchword audit key prints it")
	case info.IsDir():
		verdict, err := verifyMirror(ctx, folder(what), keys, against)
		return v, v.take(verdict, err)
	}
	return v, v.file(what, keys, against)
}

// take is what was found of a whole log.
func (v *verification) take(d audit.Verdict, err error) error {
	if err != nil {
		return err
	}
	v.Origin, v.Size, v.Root = d.Origin, d.Checkpoint.Size, d.Checkpoint.Root.String()
	v.Entries, v.Bodies, v.Pruned, v.Uncovered, v.Checkpoints = d.Entries, d.Bodies, d.Pruned, d.Uncovered, d.Checkpoints
	v.cosigned(d.Cosignatures)
	if d.Checkpoints == 0 {
		return watchword.Refuse(watchword.LogInvalid, "nothing signed speaks of this log: it has no checkpoint")
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
		return watchword.Because(err, watchword.LogInvalid, "%s is no export and no proof", name)
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
		return usage("--against: a proof is of one entry; verify the log itself")
	}
	all, err := keys.ofNote(p.Checkpoint)
	if err != nil {
		return err
	}
	c, err := p.Check(all...)
	if err != nil {
		return err
	}
	e, err := audit.Parse(p.Index+1, p.Body)
	if err != nil {
		return watchword.Because(err, watchword.LogInvalid, "entry %d is no entry of ours", p.Index+1)
	}
	v.Origin, v.Size, v.Root, v.Entry, v.Seq = c.Origin, c.Size, c.Root.String(), &e, p.Index+1
	v.cosigned(c.Cosignatures)
	return nil
}

func (v verification) table(w io.Writer) {
	fmt.Fprintf(w, "verified\t%s\n", v.What)
	fmt.Fprintf(w, "log\t%s\n", v.Origin)
	fmt.Fprintf(w, "checkpoint\t%d entries, root %s\n", v.Size, v.Root)
	if v.Entry != nil {
		fmt.Fprintf(w, "entry\t%d is in it: %s %s %s %s\n", v.Seq, v.Entry.Kind, v.Entry.Actor, v.Entry.Object, v.Entry.Outcome)
	} else {
		fmt.Fprintf(w, "entries\t%d, %d of them whole, %d pruned, %d by their hash alone; held against %d checkpoints\n", v.Entries, v.Bodies, v.Pruned, v.Entries-v.Bodies-v.Pruned, v.Checkpoints)
	}
	if v.Uncovered > 0 {
		fmt.Fprintf(w, "uncovered\t%d entries came after the last checkpoint\n", v.Uncovered)
	}
	for _, c := range v.Cosignatures {
		fmt.Fprintf(w, "witness\t%s, %s\n", c.Witness, ago(c.At))
	}
	fmt.Fprintf(w, "keys\t%s\n", v.Keys)
}

// logKeys is what --key names: keys with their names, and bare keys of the log,
// whose name is the log's own.
type logKeys struct {
	named []ledger.Key
	bare  []ed25519.PublicKey
}

func (k logKeys) of(origin string) []ledger.Key {
	out := k.named
	for _, b := range k.bare {
		out = append(out, ledger.LogKey(origin, b))
	}
	return out
}

func (k logKeys) ofNote(note []byte) ([]ledger.Key, error) {
	c, err := ledger.ReadCheckpoint(note)
	return k.of(c.Origin), err
}

// ofExport takes the log's name from the last line, and goes back to the first.
func (k logKeys) ofExport(f *os.File) ([]ledger.Key, error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	tail := make([]byte, min(end, 2*ledger.MaxNote))
	if _, err := f.ReadAt(tail, end-int64(len(tail))); err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSuffix(string(tail), "\n"), "\n")
	var l audit.ExportLine
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &l); err != nil || l.Checkpoint == "" {
		return nil, watchword.Refuse(watchword.LogInvalid, "%s has no checkpoint at its end: entries may be missing", f.Name())
	}
	return k.ofNote([]byte(l.Checkpoint))
}

// readLogKeys reads --key. Code: bad_request.
func readLogKeys(name string) (k logKeys, err error) {
	if name == "" {
		return k, nil
	}
	b, err := readInput(name, 64<<10)
	if err != nil {
		return k, err
	}
	bare := func(pub any) error {
		ed, ok := pub.(ed25519.PublicKey)
		if !ok {
			return watchword.RefuseField("--key", "a log's key is Ed25519")
		}
		k.bare = append(k.bare, ed)
		return nil
	}
	text := strings.TrimSpace(string(b))
	switch {
	case strings.HasPrefix(text, "{"):
		pub, err := jose.ParseJWK([]byte(text))
		if err != nil {
			return k, err
		}
		return k, bare(pub.Crypto())
	case strings.HasPrefix(text, "-----BEGIN"):
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			return k, watchword.RefuseField("--key", "is damaged PEM")
		}
		pub, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return k, watchword.RefuseField("--key", "is no public key")
		}
		return k, bare(pub)
	}
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, err := ledger.ParseKey(line)
		if err != nil {
			return k, err
		}
		k.named = append(k.named, key)
	}
	if len(k.named) == 0 {
		return k, watchword.RefuseField("--key", "holds no key")
	}
	return k, nil
}

func verifyMirror(ctx context.Context, get audit.Get, keys logKeys, against [][]byte) (audit.Verdict, error) {
	note, err := get(ctx, "checkpoint")
	if err != nil {
		return audit.Verdict{}, err
	}
	all, err := keys.ofNote(note)
	if err != nil {
		return audit.Verdict{}, err
	}
	once := func(ctx context.Context, path string) ([]byte, error) {
		if path == "checkpoint" {
			return note, nil // the same that told the log's name
		}
		return get(ctx, path)
	}
	return audit.VerifyMirror(ctx, once, all, against...)
}

// folder reads a mirror of a log from a folder.
func folder(dir string) audit.Get {
	return func(_ context.Context, path string) ([]byte, error) {
		b, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(path)))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, watchword.Refuse(watchword.NotFound, "there is no %s", path)
		}
		return b, err
	}
}

// verifyURL verifies a log that is served: by this machine's own server, or elsewhere.
func (a *app) verifyURL(ctx context.Context, v *verification, o verifyOptions, keys logKeys, against [][]byte) error {
	get, own, err := a.served(v.What, o)
	if err != nil {
		return err
	}
	if o.key == "" {
		if own == nil {
			return usage("--key is missing: the log's public key, as watchword audit key prints it")
		}
		if keys.named, err = own(ctx); err != nil {
			return err
		}
		v.Keys = "as the server's trust bundle names them"
	}
	verdict, err := verifyMirror(ctx, get, keys, against)
	return v.take(verdict, err)
}

// served is how a log at an address is fetched. own, if not nil, asks the server of
// --data, whose address it is, for its keys.
func (a *app) served(address string, o verifyOptions) (get audit.Get, own func(context.Context) ([]ledger.Key, error), err error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return nil, nil, usage("%s: is no address", address)
	}
	base := strings.TrimRight(address, "/")
	if cl, err := a.client(); err == nil && o.token == "" && (base == cl.URL() || base == cl.URL()+"/log") {
		return cl.LogFile, a.bundledLogKeys, nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.ca != "" {
		b, err := readInput(o.ca, 1<<20)
		if err != nil {
			return nil, nil, err
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(b) {
			return nil, nil, watchword.RefuseField("--cafile", "holds no certificate")
		}
	}
	head := map[string]string{}
	if o.token != "" {
		b, err := readInput(o.token, watchword.MaxToken+2)
		if err != nil {
			return nil, nil, err
		}
		head["Authorization"] = "Bearer " + strings.TrimSpace(string(b))
	}
	c := &rest.Client{Base: base, HTTP: &http.Client{CheckRedirect: rest.NoRedirects, Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}}}
	return func(ctx context.Context, path string) ([]byte, error) {
		res, err := c.Do(ctx, rest.Request{Method: http.MethodGet, Path: "/" + path, Header: head})
		if err != nil {
			return nil, err
		}
		return res.Body, nil
	}, nil, nil
}

// bundledLogKeys is the log's keys as this machine's server publishes them, under
// the root that its data folder pins.
func (a *app) bundledLogKeys(ctx context.Context) ([]ledger.Key, error) {
	t, err := a.trust(ctx)
	if err != nil {
		return nil, err
	}
	return ledger.KeysOf(t.Issuer, t.Log, t.Witnesses)
}

func (a *app) auditKey() *cobra.Command {
	return &cobra.Command{
		Use: "key", Short: "The log's public keys, to keep elsewhere", Long: "The log's public keys, and those of the witnesses that the trust bundle names, as verifier keys (C2SP signed-note): what audit verify --key wants, and other programs for transparency logs.",
		Args: args(cobra.NoArgs), RunE: func(c *cobra.Command, _ []string) error {
			keys, err := a.bundledLogKeys(c.Context())
			if err != nil {
				return err
			}
			for _, k := range keys {
				fmt.Println(k)
			}
			return nil
		},
	}
}

func (a *app) auditMirror() *cobra.Command {
	var o verifyOptions
	c := &cobra.Command{
		Use: "mirror DIR [URL]", Short: "Copy the log's tiles to a folder, or bring a copy up to date",
		Long: "Copies the log to a folder, or goes on with a copy: what is new is fetched, all of it is verified, the new log must extend the copied one, and only then is the checkpoint written.",
		Args: args(cobra.RangeArgs(1, 2)),
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
		get, own, err := a.served(address, o)
		if err != nil {
			return err
		}
		if o.key == "" {
			if own == nil {
				return usage("--key is missing: the log's public key, as watchword audit key prints it")
			}
			if keys.named, err = own(c.Context()); err != nil {
				return err
			}
			v.Keys = "as the server's trust bundle names them"
		}
		verdict, err := mirror(c.Context(), args[0], get, keys)
		if err := v.take(verdict, err); err != nil {
			return err
		}
		return a.print(v, v.table)
	}
	return c
}

// mirror brings the copy of a log in dir up to date: what is fetched is written once
// all of it verifies. A copy that is damaged itself is fetched anew, whole.
func mirror(ctx context.Context, dir string, get audit.Get, keys logKeys) (audit.Verdict, error) {
	here := folder(dir)
	var against [][]byte
	switch old, err := here(ctx, "checkpoint"); {
	case err == nil:
		against = append(against, old)
	case watchword.CodeOf(err) != watchword.NotFound:
		return audit.Verdict{}, err
	}
	v, err := mirrorOnce(ctx, dir, get, here, keys, against)
	if watchword.CodeOf(err) == watchword.LogInvalid {
		nothing := func(context.Context, string) ([]byte, error) {
			return nil, watchword.Refuse(watchword.NotFound, "not looked for")
		}
		return mirrorOnce(ctx, dir, get, nothing, keys, against)
	}
	return v, err
}

func mirrorOnce(ctx context.Context, dir string, get, here audit.Get, keys logKeys, against [][]byte) (v audit.Verdict, err error) {
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
