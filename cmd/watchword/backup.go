package main

import (
	"errors"
	"io/fs"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/backup"
)

func (a *app) backupCommand() *cobra.Command {
	return commandGroup("backup", "Make a backup of the server on this machine, or verify one", a.backupCreate(), a.backupVerify())
}

func (a *app) backupCreate() *cobra.Command {
	c := &cobra.Command{
		Use: "create FILE", Short: "Write a backup of the data folder to a file", Args: positional(cobra.ExactArgs(1)),
		Long: "FILE gets everything: the database, the keys with the key-encryption key, the configuration with its secrets. It is encrypted with age: to backup.recipients of the configuration, to each --recipient, or with the passphrase of --passphrase-file. It asks the running server over the socket in the data folder, which goes on serving, or reads the folder where none runs, and needs the rights of the server's user. The log has an entry of it.",
	}
	var key server.BackupKey
	c.Flags().StringArrayVar(&key.Recipients, "recipient", nil, `public key of age ("age1…") that can open the backup, instead of those of the configuration; may be repeated`)
	passphrase := c.Flags().String("passphrase-file", "", "file with a passphrase that opens the backup, of 12 characters at least")
	force := c.Flags().Bool("force", false, "replace FILE if it exists")
	config := c.Flags().String("config", "", "configuration file")
	c.RunE = func(c *cobra.Command, args []string) (err error) {
		if *passphrase != "" && len(key.Recipients) > 0 {
			return usage("--recipient and --passphrase-file: only one of them can be given")
		}
		if *passphrase != "" {
			if key.Passphrase, err = backup.ReadPassphrase(*passphrase); err != nil {
				return readError(err, *passphrase)
			}
		}
		return a.withDataFolder(*config, func(cfg server.Config) error {
			f, err := server.CreateBackup(c.Context(), cfg, server.Options{Version: version()}, args[0], *force, key)
			if err != nil {
				return err
			}
			return a.print(f, func(w *terminal.Writer) {
				w.Printf("file     %s\nsize     %d bytes\nsha256   %s\nserver   %s\nlog      %d entries\ntook     %s\n",
					f.File, f.Size, f.SHA256, f.Manifest.Issuer, f.Manifest.Log.Size, f.Took.Round(time.Millisecond))
				if len(f.Manifest.LeftOut) > 0 {
					w.Printf("left out %s: files that no backup has\n", strings.Join(f.Manifest.LeftOut, ", "))
				}
			})
		})
	}
	return c
}

// verifiedBackup is the JSON form of a verified backup.
type verifiedBackup struct {
	OK       bool            `json:"ok"`
	File     string          `json:"file"`
	Root     string          `json:"root"`
	Compared bool            `json:"root_compared"` // with --root
	Size     int64           `json:"size"`
	Keys     int             `json:"keys"`
	Bundles  int             `json:"bundles"`
	Took     float64         `json:"seconds"`
	Warnings []string        `json:"warnings"`
	Manifest backup.Manifest `json:"manifest"`
}

func (a *app) backupVerify() *cobra.Command {
	c := &cobra.Command{
		Use: "verify FILE", Short: "Restore a backup into a temporary folder and check everything in it", Args: positional(cobra.ExactArgs(1)),
		Long: "It decrypts FILE, restores it into a new folder (mode 0700) that it removes again, and opens that as a server would: the signature, every hash, the database, the whole audit log, that the key-encryption key opens the server's keys, the trust bundles and the policies. A backup is signed by its server, whose key the root introduces: --root refuses one of another root; without it compare the root that is printed with the pin that devices have, since a backup made by another server is valid too. The temporary folder needs as much space as the backup, and holds all secrets meanwhile.",
	}
	open := identityFlags(c)
	root := rootFlag(c)
	scratch := c.Flags().String("scratch", "", "folder in which the temporary folder is made (default: that of the system)")
	c.RunE = func(c *cobra.Command, args []string) error {
		ids, err := open()
		if err != nil {
			return err
		}
		pin, err := root()
		if err != nil {
			return err
		}
		v, err := server.VerifyBackup(c.Context(), args[0], ids, pin, *scratch, server.Options{})
		if err != nil {
			return err
		}
		m := v.Manifest
		out := verifiedBackup{true, args[0], m.Root, pin != "", v.Size, v.Keys, v.Bundles, v.Took.Seconds(), append([]string{}, v.Warnings...), m}
		return a.print(out, func(w *terminal.Writer) {
			w.Printf("backup    %s, made %s (%s ago) by version %s\n", args[0], formatTime(m.Made), time.Since(m.Made).Round(time.Second), m.Version)
			w.Printf("server    %s, epoch %d, tables of migration %d\n", m.Issuer, m.Epoch, m.Schema)
			w.Printf("root      %s\n", rootText(m.Root, out.Compared))
			w.Printf("log       %s: %d entries, all verified\n", m.Log.Origin, m.Log.Size)
			w.Printf("subjects  %d, with %d keys; %d policies; %d commands\n", m.Tables["subjects"], m.Tables["subject_keys"], m.Tables["policies"], m.Tables["commands"])
			w.Printf("keys      %d of the server decrypted, %d trust bundles verified\n", v.Keys, v.Bundles)
			for _, f := range m.Members {
				w.Printf("file      %s, %d bytes\n", f.Name, f.Size)
			}
			for _, line := range v.Warnings {
				w.Printf("warning   %s\n", line)
			}
			w.Printf("valid     restored and checked in %s\n", v.Took.Round(time.Millisecond))
		})
	}
	return c
}

// identityFlags adds the flags that say what opens a backup; the result reads them.
func identityFlags(c *cobra.Command) func() ([]age.Identity, error) {
	files := c.Flags().StringArray("identity", nil, "file with identities of age, private keys, as age-keygen writes them; may be repeated")
	passphrase := c.Flags().String("passphrase-file", "", "file with the passphrase of the backup")
	return func() (out []age.Identity, err error) {
		if (len(*files) == 0) == (*passphrase == "") {
			return nil, usage("give --identity FILE or --passphrase-file FILE, by which the backup can be opened")
		}
		if *passphrase != "" {
			p, err := backup.ReadPassphrase(*passphrase)
			if err != nil {
				return nil, readError(err, *passphrase)
			}
			id, err := backup.PassphraseIdentity(p)
			return []age.Identity{id}, err
		}
		for _, file := range *files {
			ids, err := backup.ReadIdentities(file)
			if err != nil {
				return nil, readError(err, file)
			}
			out = append(out, ids...)
		}
		return out, nil
	}
}

// rootFlag adds the flag that says which root the backup must have; the result reads it: a pin, empty without the flag.
func rootFlag(c *cobra.Command) func() (string, error) {
	root := c.Flags().String("root", "", "pin of the root that the backup must have, as watchword trust pin prints it and devices check the server by, or a file with the root's public key")
	return func() (string, error) {
		if *root == "" && c.Flags().Changed("root") {
			return "", watchword.RefuseField("--root", "must not be empty")
		}
		if *root == "" {
			return "", nil
		}
		return readRootPin(*root)
	}
}

// rootText is what the output says of the root of a backup.
func rootText(pin string, confirmed bool) string {
	if confirmed {
		return pin + ", as given"
	}
	return pin + ": not compared; it must be the pin that devices have (watchword trust pin), and --root refuses another"
}

// readError says which file does not exist.
func readError(err error, file string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return watchword.Wrap(err, watchword.NotFound, "file %s does not exist", file)
	}
	return err
}
