package main

import (
	"slices"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/server"
)

// restoredBackup is the JSON form of a restore.
type restoredBackup struct {
	Data      string            `json:"data"`
	Config    string            `json:"config,omitempty"`
	Made      string            `json:"made"`
	Issuer    string            `json:"issuer"`
	Root      string            `json:"root"`
	Compared  bool              `json:"root_compared"` // with --root
	Given     string            `json:"root_given,omitempty"`
	Roots     []string          `json:"roots"` // of the restored server
	Epoch     int64             `json:"epoch"`
	LogOrigin string            `json:"log_origin"`
	LogKey    string            `json:"log_key"`
	Source    string            `json:"source"`
	SourceTo  int64             `json:"source_to"`
	Applied   []replayedEntry   `json:"applied"`
	Unapplied []replayedEntry   `json:"unapplied"`
	Until     string            `json:"source_until"`
	Confirmed bool              `json:"end_confirmed"`
	Elsewhere bool              `json:"end_confirmed_elsewhere"` // and not only by the checkpoint in the old folder
	Missing   int64             `json:"missing_entries"`
	Damage    string            `json:"damage,omitempty"`
	Voided    map[string]int64  `json:"voided"`
	Plan      string            `json:"plan,omitempty"`
	Warnings  []string          `json:"warnings"`
	Stored    server.SourceKind `json:"-"`
}

type replayedEntry struct {
	Seq    int64  `json:"seq"`
	Kind   string `json:"kind"`
	Object string `json:"object"`
	Why    string `json:"why,omitempty"`
}

func (a *app) restoreCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "restore FILE", Short: "Restore a backup to a new data folder", Args: positional(cobra.ExactArgs(1)),
		Long: "Restores FILE to the folder of --data, which must be absent or empty, and makes it the server of its devices: it gets a higher epoch, new keys and a new log, and tokens, sessions and one-time links of before are void. Devices come back by themselves. " +
			"--log names what has the changes after the backup, which are applied again: the old data folder, its journals (backup.journal: their folder, or one file), or an export of its log (watchword audit export). A mirror of the log or a checkpoint only says how many entries are missing. An export needs --against, the newest checkpoint from a mirror or a witness, or --accept-loss, since it ends when it was made. What is lost or may be lost needs --accept-loss. Nothing is written to --data if it fails.",
	}
	open, root := identityFlags(c), rootFlag(c)
	r := server.RestoreOptions{}
	f := c.Flags()
	f.StringVar(&r.Source, "log", "", "old data folder, folder of journals, export of the log, mirror of the log or checkpoint: what was done after the backup")
	f.StringArrayVar(&r.Against, "against", nil, "checkpoint of the log that was kept elsewhere, or a mirror of it: --log must have all its entries; may be repeated")
	f.Int64Var(&r.Epoch, "epoch", 0, "the new epoch, if it is at least the minutes since 2025; it must be higher than that of every server that was ever restored from this one (default: by the clock, with a random part)")
	f.BoolVar(&r.AcceptLoss, "accept-loss", false, "accept that changes after the backup are lost: revoked subjects act again")
	f.BoolVar(&r.AcceptClock, "accept-clock", false, "vouch for the clock of this machine as it is")
	f.StringVar(&r.Plan, "plan", "", "file for the trust bundle that an offline root has to sign (default: DATA.plan.json)")
	c.RunE = func(c *cobra.Command, args []string) error {
		var err error
		if r.Identities, err = open(); err != nil {
			return err
		}
		if r.Root, err = root(); err != nil {
			return err
		}
		if c.Flags().Changed("epoch") && r.Epoch < 1 {
			return watchword.RefuseField("--epoch", "must be 1 or more")
		}
		r.File, r.Data = args[0], a.data
		done, err := server.RestoreBackup(c.Context(), r, server.Options{})
		if err != nil {
			return err
		}
		out := newRestoredBackup(r, done)
		return a.print(out, out.table)
	}
	return c
}

func newRestoredBackup(r server.RestoreOptions, done server.RestoredBackup) restoredBackup {
	out := restoredBackup{
		Data: done.Data, Config: done.Config, Plan: done.PlanFile, Made: formatTime(done.Manifest.Made), Issuer: done.Manifest.Issuer, Root: done.Manifest.Root, Compared: r.Root != "", Given: r.Root, Roots: done.Roots, Epoch: done.Epoch, LogOrigin: done.Origin, LogKey: done.LogKey,
		Source: string(done.Found.Kind), SourceTo: done.Found.To, Until: formatTime(done.Found.Until), Confirmed: done.Found.Confirmed, Elsewhere: done.Found.Elsewhere, Missing: done.Found.Missing, Damage: done.Found.Damage, Stored: done.Found.Kind,
		Applied: []replayedEntry{}, Unapplied: []replayedEntry{}, Warnings: slices.Concat([]string{}, done.Warnings, done.Found.Warnings),
		Voided: map[string]int64{"commands": done.Done.Commands, "links": done.Done.Codes, "pairings": done.Done.Pairings, "sessions": done.Done.Sessions},
	}
	for _, e := range done.Found.Journal {
		out.Applied = append(out.Applied, replayedEntry{e.Seq, e.Kind, e.Object, ""})
	}
	for _, e := range done.Done.Replayed {
		if e.Err == nil {
			out.Applied = append(out.Applied, replayedEntry{e.Entry.Seq, e.Entry.Kind, e.Entry.Object, ""})
		} else {
			out.Unapplied = append(out.Unapplied, replayedEntry{e.Entry.Seq, e.Entry.Kind, e.Entry.Object, e.Err.Error()})
		}
	}
	for _, ref := range done.Found.Omitted {
		out.Unapplied = append(out.Unapplied, replayedEntry{0, string(ref.Kind), ref.ID, "its change is too large for the journal"})
	}
	for _, e := range done.Found.LeftOut() {
		out.Unapplied = append(out.Unapplied, replayedEntry{e.Seq, e.Kind, e.Object, "no signed checkpoint proves the entry, and it does not take authority away"})
	}
	for _, e := range done.Found.Lost {
		out.Unapplied = append(out.Unapplied, replayedEntry{e.Seq, e.Kind, e.Object, "the server has its root, TLS authority and addresses of the backup"})
	}
	return out
}

// rootLines say which roots the restored server has, and what --root was compared with.
func (r restoredBackup) rootLines() (out []string) {
	for _, pin := range r.Roots {
		switch {
		case pin == r.Given:
			out = append(out, pin+", as given")
		case r.Given != "":
			out = append(out, pin+", another than --root: a trust bundle that a root before it signed introduced it")
		case pin == r.Root:
			out = append(out, rootText(pin, false))
		default:
			out = append(out, pin+": not compared; a trust bundle that a root before it signed introduced it after the backup")
		}
	}
	if r.Given != "" && !slices.Contains(r.Roots, r.Given) {
		out = append(out, r.Given+", as given, is not a root any more: it was replaced after the backup")
	}
	return out
}

// table prints the restore: from when, what was applied, what is lost, and what to do next.
func (r restoredBackup) table(w *terminal.Writer) {
	w.Printf("restored  %s, from a backup of %s made %s\n", r.Data, r.Issuer, r.Made)
	if r.Config != "" {
		w.Printf("config    %s: the configuration in the backup, with its secrets\n", r.Config)
	}
	for _, line := range r.rootLines() {
		w.Printf("root      %s\n", line)
	}
	w.Printf("epoch     %d\nlog       %s\nlog key   %s\n", r.Epoch, r.LogOrigin, r.LogKey)
	switch r.Stored {
	case server.NoSource:
		w.Printf("lost      everything after the backup; what it was is not known\n")
	default:
		w.Printf("source    %s, up to entry %d of the old log: %d changes of authority applied again\n", r.Source, r.SourceTo, len(r.Applied))
	}
	for _, e := range r.Applied {
		w.Printf("applied   %s %s (entry %d)\n", e.Kind, e.Object, e.Seq)
	}
	for _, e := range r.Unapplied {
		w.Printf("lost      %s %s (entry %d): %s\n", e.Kind, e.Object, e.Seq, e.Why)
	}
	switch {
	case r.Stored == server.NoSource:
	case r.Confirmed && !r.Elsewhere:
		w.Printf("confirmed as of the folder's copy: its log.checkpoint is of entry %d, its last one\n", r.SourceTo)
		w.Printf("unknown   what was done after %s, if the folder is an older copy: compare it with a checkpoint from elsewhere (--against)\n", r.Until)
	case !r.Confirmed:
		w.Printf("unknown   what was done after %s: no checkpoint shows that entry %d was the last one (--against)\n", r.Until, r.SourceTo)
	case r.Missing == 0:
		w.Printf("confirmed by a checkpoint of its size: the source has all entries of the time at which that was signed, the last of %s\n", r.Until)
	}
	if r.Missing > 0 {
		w.Printf("lost      %d entries, whose content is not known\n", r.Missing)
	}
	if r.Damage != "" {
		w.Printf("lost      what follows entry %d: %s\n", r.SourceTo, r.Damage)
	}
	w.Printf("void      all tokens, assertions and sessions; %d one-time links, %d pairings and %d MQTT sessions with their messages\n", r.Voided["links"], r.Voided["pairings"], r.Voided["sessions"])
	w.Printf("unknown   %d commands that were not finished: they may have been delivered after the backup\n", r.Voided["commands"])
	for _, line := range r.Warnings {
		w.Printf("warning   %s\n", line)
	}
	if r.Plan != "" {
		w.Printf("next      the root key is offline, and the server does not start before it signed:\n")
		w.Printf("          watchword key sign %s --key ROOT > signed.json; watchword key import signed.json --stopped --data %s\n", r.Plan, r.Data)
	}
	w.Printf("next      start the server (watchword serve) at the addresses of the old one, and never start the old one again\n")
	w.Printf("          make a backup of it at once (watchword backup create); with [backup] every, it does that at its start\n")
	w.Printf("          give witnesses the log key above, and copy the log to another folder than before (watchword audit mirror)\n")
}
