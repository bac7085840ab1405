package main

import (
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/token"
)

func (a *app) keyCommand() *cobra.Command {
	return commandGroup("key", "List, rotate and revoke the server's own keys",
		a.keyList(), a.keyRotate(), a.keyRevoke(), a.keyBundle(), a.keyPlan(), a.keySign(), a.keyImport(), a.keyOffline(), a.keyOnline())
}

const keyHead = "ROLE\tSTATE\tKEY\tALG\tSIGNS FROM\tREMOVED"

func keyRow(w *terminal.Writer, k api.ServerKey) {
	at := func(t *time.Time) string {
		if t == nil {
			return "-"
		}
		return formatTime(*t)
	}
	state := k.State
	if k.Offline {
		state += ", offline"
	}
	w.Printf("%s\t%s\t%s\t%s\t%s\t%s\n", k.Role, state, k.ID, k.Alg, at(k.StartsAt), at(k.EndsAt))
}

func (a *app) keyList() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List the server's keys, the root's pin and the trust bundle", Args: positional(cobra.NoArgs)}
	all := c.Flags().Bool("all", false, "include removed and revoked keys")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		ks, err := cl.ServerKeys(c.Context())
		if err != nil {
			return err
		}
		visible := ks.Keys[:0:0]
		for _, k := range ks.Keys {
			if *all || k.State != "gone" && k.State != "revoked" {
				visible = append(visible, k)
			}
		}
		ks.Keys = visible
		if ks.Bundle.Stale != "" {
			a.err.Printf("the root key is offline and must sign a trust bundle: %s\nhint: %s key plan\n", ks.Bundle.Stale, program())
		}
		return a.print(ks, func(w *terminal.Writer) {
			w.Printf(keyHead + "\n")
			for _, k := range ks.Keys {
				keyRow(w, k)
			}
			w.Printf("\npin\t%s\ntrust bundle\tversion %d, epoch %d, until %s, %d signed in advance\n", ks.Pin, ks.Bundle.Version, ks.Bundle.Epoch, formatTime(ks.Bundle.ExpiresAt), ks.Bundle.Ahead)
		})
	}
	return c
}

func (a *app) printKey(k api.ServerKey, err error) error {
	if err != nil {
		return err
	}
	return a.print(k, func(w *terminal.Writer) {
		w.Printf(keyHead + "\n")
		keyRow(w, k)
	})
}

func roles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"root", "ca", "issuer", "command", "time", "log"}, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) keyRotate() *cobra.Command {
	c := &cobra.Command{
		Use: "rotate ROLE", Short: "Make the next key of a role: root, ca, issuer, command, time or log", Args: positional(cobra.ExactArgs(1)), ValidArgsFunction: roles,
		Long: "The next key is published at once and signs after keys.overlap, so that verifiers have it by then. With --now it signs at once;\n" +
			"verifiers must then fetch the new key before they can verify. A new root always signs at once; the old root signs bundles too, for 120 days.",
	}
	now := c.Flags().Bool("now", false, "activate the next key at once")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		return a.printKey(cl.RotateKey(c.Context(), args[0], *now))
	}
	return c
}

// keyIDs completes the IDs of the server's valid keys.
func (a *app) keyIDs(c *cobra.Command, have []string, start string) ([]string, cobra.ShellCompDirective) {
	return a.complete(have, func(cl *admin.Client, add func(string)) error {
		ks, err := cl.ServerKeys(c.Context())
		for _, k := range ks.Keys {
			if strings.HasPrefix(string(k.ID), start) && k.State != "gone" && k.State != "revoked" {
				add(string(k.ID) + "\t" + k.Role + ", " + k.State)
			}
		}
		return err
	})
}

func (a *app) keyRevoke() *cobra.Command {
	c := &cobra.Command{
		Use: "revoke KEY", Short: "Revoke one of the server's keys: what it signed is not accepted any more", Args: positional(cobra.ExactArgs(1)), ValidArgsFunction: a.keyIDs,
		Long: "Another key signs at once. Revoking the issuer key ends every session whose token it signed.",
	}
	reason := c.Flags().String("reason", "", "reason, recorded in the audit log")
	yes := yesFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := a.confirmAtServer(*yes, "revoke the key "+args[0]); err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		return a.printKey(cl.RevokeKey(c.Context(), watchword.KeyID(args[0]), *reason))
	}
	return c
}

// trustBundle is a trust bundle for display.
type trustBundle struct {
	Issuer    string              `json:"iss"`
	Version   int64               `json:"ver"`
	Epoch     int64               `json:"epoch"`
	LogOrigin string              `json:"log_origin"`
	IssuedAt  time.Time           `json:"issued_at"`
	ExpiresAt time.Time           `json:"expires_at"`
	Pins      []string            `json:"pins"`
	Keys      map[string][]string `json:"keys"`
	CA        int                 `json:"ca"`
	WebPKI    bool                `json:"web_pki"`
	Raw       string              `json:"raw"`
}

func (a *app) keyBundle() *cobra.Command {
	c := &cobra.Command{Use: "bundle", Short: "Show the trust bundle that devices use", Args: positional(cobra.NoArgs)}
	raw := c.Flags().Bool("raw", false, "print the signed JWS")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		text, err := cl.TrustBundle(c.Context())
		if err != nil {
			return err
		}
		if *raw {
			a.out.Printf("%s\n", text)
			return a.out.Err()
		}
		t, err := token.ReadTrust(text)
		if err != nil {
			return err
		}
		b := trustBundle{t.Issuer, t.Version, t.Epoch, t.Origin(), t.Issued.UTC(), t.Expires.UTC(), nil, map[string][]string{}, len(t.CAs), t.WebPKI, text}
		for role, ks := range map[string][]*jose.PublicKey{"root": t.Roots, "issuer": t.Issuers, "command": t.Command, "time": t.Time, "log": t.Log} {
			for _, k := range ks {
				b.Keys[role] = append(b.Keys[role], string(k.ID()))
			}
		}
		for _, k := range t.Roots {
			b.Pins = append(b.Pins, token.TrustPin(k))
		}
		return a.print(b, func(w *terminal.Writer) {
			w.Printf("issuer\t%s\nversion\t%d, epoch %d\nsigned\t%s, until %s\n", b.Issuer, b.Version, b.Epoch, formatTime(b.IssuedAt), formatTime(b.ExpiresAt))
			for i, p := range b.Pins {
				w.Printf("root\t%s, pin %s\n", b.Keys["root"][i], p)
			}
			for _, role := range []string{"issuer", "command", "time", "log"} {
				for _, k := range b.Keys[role] {
					w.Printf("%s\t%s\n", role, k)
				}
			}
			w.Printf("audit log\t%s\n", b.LogOrigin)
			w.Printf("tls\t%d authorities of its own, public Web PKI %v\n", b.CA, b.WebPKI)
		})
	}
	return c
}

// writeJSON prints v as JSON, whatever -o is: the output is the input of the next command.
func (a *app) writeJSON(v any) error { return a.out.JSON(v, true) }

func (a *app) keyPlan() *cobra.Command {
	c := &cobra.Command{
		Use: "plan", Short: "Prepare future trust bundles for an offline root to sign", Args: positional(cobra.NoArgs),
		Long: "Prints the bundles as JSON. Copy the file to the machine with the root key, sign it there (watchword key sign), and import the result (watchword key import).",
	}
	count := c.Flags().Int("count", 12, "number of bundles, one for each month; at most 24")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		planned, err := cl.PlanBundles(c.Context(), *count)
		if err != nil {
			return err
		}
		return a.writeJSON(api.PlannedBundles{Bundles: planned})
	}
	return c
}

// maxPlan is the maximum size of a plan, in bytes.
const maxPlan = 4 << 20

func (a *app) keySign() *cobra.Command {
	c := &cobra.Command{
		Use: "sign PLAN --key FILE", Short: "Sign prepared bundles with an offline root key; needs no server", Args: positional(cobra.ExactArgs(1)),
		Long: "Lists on standard error what is signed, and prints the signed bundles as JSON. PLAN may be - for standard input.",
	}
	file := c.Flags().String("key", "", "the root's private key, as watchword key offline wrote it")
	_ = c.MarkFlagRequired("key") // the flag exists
	c.RunE = func(_ *cobra.Command, args []string) error {
		b, err := readInput(args[0], maxPlan)
		if err != nil {
			return err
		}
		var p api.PlannedBundles
		if err := jose.DecodeExact(b, &p); err != nil {
			return watchword.Wrap(err, watchword.BadRequest, "%s must be a file that watchword key plan wrote", args[0])
		}
		jwk, err := durable.ReadPrivate(*file)
		if err != nil {
			return err
		}
		key, err := jose.ParsePrivateJWK(jwk, jose.ForSigning)
		if err != nil {
			return err
		}
		root, err := key.Signer()
		if err != nil {
			return err
		}
		out := api.ImportBundlesRequest{}
		for _, planned := range p.Bundles {
			if !slices.Contains(planned.Roots, root.Public().ID()) {
				return watchword.Refuse(watchword.BundleInvalid, "%s must be the root key that the plan names: %v", *file, planned.Roots)
			}
			raw, err := token.SignTrustPayload([]byte(planned.Payload), root)
			if err != nil {
				return err
			}
			t, err := token.VerifyTrust(raw, token.TrustPin(root.Public()), time.Time{})
			if err != nil {
				return err
			}
			a.err.Printf("signed version %s of %s, from %s to %s: %d issuer, %d command, %d time, %d log keys, %d authorities\n",
				t.BundleVersion(), t.Issuer, formatTime(t.Issued), formatTime(t.Expires), len(t.Issuers), len(t.Command), len(t.Time), len(t.Log), len(t.CAs))
			out.Bundles = append(out.Bundles, raw)
		}
		return a.writeJSON(out)
	}
	return c
}

func (a *app) keyImport() *cobra.Command {
	c := &cobra.Command{Use: "import FILE|-", Short: "Import bundles that an offline root signed", Args: positional(cobra.ExactArgs(1))}
	stopped := c.Flags().Bool("stopped", false, "import into the data folder of a server that does not run: after a restore it starts only then")
	config := c.Flags().String("config", "", "configuration file, with --stopped")
	c.RunE = func(c *cobra.Command, args []string) error {
		b, err := readInput(args[0], maxPlan)
		if err != nil {
			return err
		}
		var p api.ImportBundlesRequest
		if err := jose.DecodeExact(b, &p); err != nil {
			return watchword.Wrap(err, watchword.BadRequest, "%s must be a file that watchword key sign wrote", args[0])
		}
		if *stopped {
			err = a.withDataFolder(*config, func(cfg server.Config) error {
				return server.ImportBundles(c.Context(), cfg, p.Bundles, server.Options{})
			})
		} else {
			var cl *admin.Client
			if cl, err = a.client(); err == nil {
				err = cl.ImportBundles(c.Context(), p.Bundles)
			}
		}
		if err != nil {
			return err
		}
		a.err.Printf("%d bundles imported\n", len(p.Bundles))
		return nil
	}
	return c
}

// withDataFolder loads the configuration of a server that does not run.
func (a *app) withDataFolder(config string, f func(server.Config) error) error {
	cfg, _, err := server.Load(server.Source{File: config, Data: a.data})
	if err != nil {
		return err
	}
	return f(cfg)
}

func (a *app) keyOffline() *cobra.Command {
	c := &cobra.Command{
		Use: "offline --out FILE", Short: "Move the root's private key to a file; the server must be stopped", Args: positional(cobra.NoArgs),
		Long: "Afterwards trust bundles are signed with that file: watchword key plan, key sign, key import. FILE must not exist yet; keep two copies of it.",
	}
	out := c.Flags().String("out", "", "file to write, on another medium")
	config := c.Flags().String("config", "", "configuration file")
	_ = c.MarkFlagRequired("out") // the flag exists
	yes := yesFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := a.confirm(*yes, "move the root key out of "+a.data); err != nil {
			return err
		}
		return a.withDataFolder(*config, func(cfg server.Config) error {
			if err := server.TakeRootOffline(c.Context(), cfg, *out, server.Options{}); err != nil {
				return err
			}
			a.err.Printf("the root key is now only in %s\n", *out)
			return nil
		})
	}
	return c
}

func (a *app) keyOnline() *cobra.Command {
	c := &cobra.Command{Use: "online --in FILE", Short: "Import the root's private key again; the server must be stopped", Args: positional(cobra.NoArgs)}
	in := c.Flags().String("in", "", "file that watchword key offline wrote; it is not deleted")
	config := c.Flags().String("config", "", "configuration file")
	_ = c.MarkFlagRequired("in") // the flag exists
	c.RunE = func(c *cobra.Command, _ []string) error {
		return a.withDataFolder(*config, func(cfg server.Config) error { return server.BringRootOnline(c.Context(), cfg, *in, server.Options{}) })
	}
	return c
}
