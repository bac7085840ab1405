package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/token"
)

func (a *app) writeEvidence(ctx context.Context, cl *admin.Client, id watchword.CommandID, name string) error {
	b, err := cl.Evidence(ctx, id)
	if err != nil {
		return err
	}
	if name == "-" {
		return a.exportJSON(func(w io.Writer) error {
			_, err := w.Write(b)
			return err
		})
	}
	if err = durable.Create(name, b, 0o600); errors.Is(err, fs.ErrExist) {
		err = watchword.Wrap(err, watchword.Conflict, "%s exists already", name)
	}
	return err
}

// evidenceReport is the output of command verify.
type evidenceReport struct {
	OK         bool                    `json:"ok"`
	Issuer     string                  `json:"issuer"`
	Command    watchword.CommandID     `json:"command"`
	Device     watchword.SubjectID     `json:"device"`
	Function   string                  `json:"function"`
	Args       json.RawMessage         `json:"args"`
	Epoch      int64                   `json:"epoch"`
	Seq        int64                   `json:"seq"`
	By         watchword.SubjectID     `json:"by"`
	SignedBy   watchword.KeyID         `json:"order_key,omitempty"`
	Status     watchword.ReceiptStatus `json:"status"`
	Result     json.RawMessage         `json:"result,omitempty"`
	Key        watchword.KeyID         `json:"receipt_key"`
	Entries    map[string]int64        `json:"entries"`
	Ordered    time.Time               `json:"ordered_at"`
	HandedOver time.Time               `json:"handed_over_at"`
	Settled    time.Time               `json:"settled_at"`
	Witness    []cosignature           `json:"cosignatures,omitempty"`
}

func (a *app) commandVerify() *cobra.Command {
	c := &cobra.Command{
		Use: "verify FILE", Short: "Verify an evidence file with the root's public key alone",
		Long: "Verifies the output of command show --evidence without a server, with the root's public key alone, which is given as its pin (the base64url SHA-256 in every enrollment link), or as a file with a JWK or PEM. Exit status 8 and a reason if a verification fails.",
		Args: positional(cobra.ExactArgs(1)),
	}
	root := c.Flags().String("root", "", "pin of the root, or file with its public key (default: the pin of the server of --data)")
	c.RunE = func(c *cobra.Command, args []string) error {
		b, err := readInput(args[0], command.MaxEvidence)
		if err != nil {
			return err
		}
		pin, err := a.rootPin(c.Context(), *root)
		if err != nil {
			return err
		}
		v, err := command.VerifyEvidence(b, pin)
		if err != nil {
			return err
		}
		p := evidenceReport{
			OK: true, Issuer: v.Issuer, Command: v.Command.ID, Device: v.Command.Device, Function: v.Command.Function, Args: v.Command.Args,
			Epoch: v.Command.Epoch, Seq: v.Command.Seq, By: v.Command.By, SignedBy: v.OrderKey, Status: v.Status, Result: v.Result, Key: v.ReceiptKey,
			Entries: map[string]int64{"enrolled": v.Enrolled.Seq, "ordered": v.Ordered.Seq, "handed_over": v.HandedOver.Seq, "settled": v.Settled.Seq},
			Ordered: v.Ordered.At, HandedOver: v.HandedOver.At, Settled: v.Settled.At,
		}
		for _, w := range v.Cosignatures {
			p.Witness = append(p.Witness, cosignature{w.Witness.Name(), w.At})
		}
		return a.print(p, p.table)
	}
	return c
}

func (p evidenceReport) table(w *terminal.Writer) {
	w.Printf("command\t%s of %s\n", p.Command, p.Issuer)
	w.Printf("device\t%s, number %d.%d\n", p.Device, p.Epoch, p.Seq)
	w.Printf("function\t%s %s\n", p.Function, p.Args)
	by := "by the server's word"
	if p.SignedBy != "" {
		by = fmt.Sprintf("who signed the order, key %.8s…", p.SignedBy)
	}
	w.Printf("ordered\t%s  by %s, %s; log entry %d\n", formatTime(p.Ordered), p.By, by, p.Entries["ordered"])
	w.Printf("handed over\t%s  log entry %d\n", formatTime(p.HandedOver), p.Entries["handed_over"])
	w.Printf("%s\t%s  receipt signed by key %.8s…, enrolled in log entry %d; log entry %d%s\n", p.Status, formatTime(p.Settled), p.Key, p.Entries["enrolled"], p.Entries["settled"], result(p.Result))
	for _, c := range p.Witness {
		w.Printf("witness\t%s, %s\n", c.Witness, formatTime(c.At))
	}
}

// rootPin returns the pin of --root.
func (a *app) rootPin(ctx context.Context, root string) (string, error) {
	if root == "" {
		t, err := a.trust(ctx)
		if err != nil {
			return "", watchword.Wrap(err, watchword.CodeOf(err), "--root is required, since the server of --data did not return its root: %s", err)
		}
		return token.TrustPin(t.Roots[len(t.Roots)-1]), nil
	}
	return readRootPin(root)
}

// readRootPin returns the pin that root is, or that of the public key in the file of that name.
func readRootPin(root string) (string, error) {
	if _, err := os.Stat(root); err != nil && len(root) == 43 { // a pin has 43 characters
		return root, nil
	}
	b, err := durable.ReadTrusted(root, 64<<10)
	text := strings.TrimSpace(string(b))
	switch {
	case watchword.CodeOf(err) == watchword.FileUntrusted:
		return "", err
	case err != nil:
		return "", watchword.Wrap(err, watchword.NotFound, "--root %s must be a file or a trust pin (43 characters)", root)
	case strings.HasPrefix(text, "{"):
		k, err := jose.ParseJWK([]byte(text), jose.ForSigning)
		if err != nil {
			return "", err
		}
		return token.TrustPin(k), nil
	case len(text) == 43:
		return text, nil
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return "", watchword.RefuseField("--root", "must be a trust pin (43 characters), a JWK or PEM")
	}
	pub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return "", watchword.RefuseField("--root", "must be a public key")
	}
	k, err := jose.NewPublicKey(pub)
	if err != nil {
		return "", err
	}
	return token.TrustPin(k), nil
}
