package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
	"rsc.io/qr"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/sdk/admin"
)

func (a *app) deviceCommand() *cobra.Command {
	return commandGroup("device", "Add, list, show, suspend, revoke and delete devices",
		a.deviceCreate(), a.deviceLink(), a.deviceList(), a.deviceTotals(), a.deviceLabels(), a.deviceShow(), a.deviceLabel(), a.deviceRequireProof(), renamed("proof", "watchword device require-proof ID yes|no"),
		a.deviceName(), a.deviceSuspend(), a.deviceResume(), a.deviceRevoke(), a.deviceDelete(), a.deviceForget())
}

// complete completes the first argument of a command with the values that list adds from the live server, up to a
// screenful.
func (a *app) complete(have []string, list func(cl *admin.Client, add func(string)) error) ([]string, cobra.ShellCompDirective) {
	if len(have) > 0 || a.prepare() != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	a.completes = true
	cl, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var found []string
	if err := list(cl, func(s string) {
		if len(found) < maxCompletions {
			found = append(found, s)
		}
	}); err != nil && len(found) == 0 { // what was found before the time was over is proposed
		return nil, cobra.ShellCompDirectiveError
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

// maxCompletions is the maximum number of values that are proposed.
const maxCompletions = 200

// deviceIDs completes the IDs of devices.
func (a *app) deviceIDs(c *cobra.Command, have []string, start string) ([]string, cobra.ShellCompDirective) {
	return a.complete(have, func(cl *admin.Client, add func(string)) error {
		return cl.Devices(c.Context(), nil, "", func(d api.Device) error {
			if strings.HasPrefix(string(d.ID), start) {
				add(string(d.ID))
			}
			return nil
		})
	})
}

func (a *app) deviceCreate() *cobra.Command {
	c := &cobra.Command{Use: "create ID", Short: "Add a device and print its one-time enrollment link", Args: positional(cobra.ExactArgs(1))}
	pairs := c.Flags().StringArrayP("label", "l", nil, "label as key=value; may be repeated")
	name := c.Flags().String("name", "", "what people call the device, in at most 128 bytes; nothing is decided by it")
	proof := c.Flags().Bool("require-proof", false, "accept the device's tokens only with a proof of its key (DPoP, or AUTH method ace over MQTT)")
	renamedFlag(c, "proof", "--require-proof")
	ttl := c.Flags().Duration("ttl", 0, "how long the link is valid (default 24h)")
	picture := c.Flags().Bool("qr", false, "also draw the link as a QR code")
	c.RunE = func(c *cobra.Command, args []string) error {
		l, err := parseLabels(*pairs)
		if err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		requirement := ""
		if *proof {
			requirement = watchword.RequireProof
		}
		in := api.CreateDeviceRequest{ID: args[0], Labels: l, Name: *name, Proof: requirement}
		if *ttl > 0 {
			in.TTL = ttl.String()
		}
		d, err := cl.AddDevice(c.Context(), in)
		if err != nil {
			return err
		}
		return a.printDeviceLink(d, d.Enrollment, *picture)
	}
	return c
}

func (a *app) deviceLink() *cobra.Command {
	c := &cobra.Command{Use: "link ID", Short: "Make a new one-time link for a device that is new or revoked", Args: positional(cobra.ExactArgs(1)), ValidArgsFunction: a.deviceIDs}
	ttl := c.Flags().Duration("ttl", 0, "how long the link is valid (default 24h)")
	picture := c.Flags().Bool("qr", false, "also draw the link as a QR code")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		e, err := cl.Link(c.Context(), watchword.SubjectID(args[0]), *ttl)
		if err != nil {
			return err
		}
		return a.printDeviceLink(e, &e, *picture)
	}
	return c
}

// printDeviceLink prints the link of a device.
func (a *app) printDeviceLink(v any, e *api.Enrollment, picture bool) error {
	return a.printLink(v, e, picture, "watchword device link ID", "on the device, run: watchword agent enroll 'LINK' --dir DIR")
}

// printLink prints v as JSON, or the link alone on standard output and on standard error how it is used. again is the command
// that makes another link.
func (a *app) printLink(v any, e *api.Enrollment, picture bool, again, use string) error {
	if e == nil { // a repeated creation: the link is shown once only
		return a.print(v, func(w *terminal.Writer) {
			w.Printf("it exists already; %s makes a new link\n", runnable(again))
		})
	}
	if err := a.print(v, func(w *terminal.Writer) { w.Printf("%s\n", e.Link) }); err != nil {
		return err
	}
	if picture {
		if err := drawQR(a.err, e.Link); err != nil {
			return err
		}
	}
	if a.format == "table" {
		a.err.Printf("valid for one use, until %s; %s\n", formatTime(e.ExpiresAt), use)
	}
	return nil
}

// drawQR prints the code with half blocks, two rows a line, dark on light.
func drawQR(w *terminal.Writer, text string) error {
	code, err := qr.Encode(text, qr.L)
	if err != nil {
		return err
	}
	const quiet = 4
	for y := -quiet; y < code.Size+quiet; y += 2 {
		var line strings.Builder
		for x := -quiet; x < code.Size+quiet; x++ {
			switch top, bottom := code.Black(x, y), code.Black(x, y+1); {
			case top && bottom:
				line.WriteString(" ")
			case top:
				line.WriteString("▄")
			case bottom:
				line.WriteString("▀")
			default:
				line.WriteString("█")
			}
		}
		w.Printf("%s\n", line.String())
	}
	return nil
}

func (a *app) deviceList() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List devices by label, state and text, in an order of choice", Args: positional(cobra.NoArgs)}
	tests := c.Flags().StringArrayP("label", "l", nil, "label as key=value, key=value,value or key, or the opposite as key!=value or !key; may be repeated")
	state := c.Flags().String("state", "", "new, active, suspended or revoked")
	search := c.Flags().String("search", "", "part of the id, of the name, or of a label as key=value")
	order := c.Flags().String("sort", "id", "id, created, changed, state or last_seen")
	reverse := c.Flags().Bool("reverse", false, "from the last to the first")
	limit := c.Flags().Int("limit", 0, "at most this many devices (0: all)")
	c.RunE = func(c *cobra.Command, _ []string) error {
		sel, err := watchword.ParseSelector(*tests)
		if err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		var ds []api.Device
		q := admin.DeviceQuery{Selector: sel, State: watchword.State(*state), Search: *search, Sort: *order, Descending: *reverse}
		err = cl.ListDevices(c.Context(), q, func(d api.Device) error {
			if ds = append(ds, d); len(ds) == *limit {
				return errStop
			}
			return nil
		})
		if err != nil && err != errStop {
			return err
		}
		return printList(a, ds, "ID\tSTATE\tLABELS\tCHANGED\tSEEN\tNAME", func(w *terminal.Writer, d api.Device) {
			seen := "-"
			switch {
			case d.Online:
				seen = "online"
			case d.LastSeenAt != nil:
				seen = formatTime(*d.LastSeenAt)
			}
			w.Printf("%s\t%s\t%s\t%s\t%s\t%s\n", d.ID, d.State, d.Labels, formatTime(d.ChangedAt), seen, d.Name)
		})
	}
	return c
}

func (a *app) deviceTotals() *cobra.Command {
	return &cobra.Command{
		Use: "totals", Short: "Count devices by state", Args: positional(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			t, err := cl.Totals(c.Context())
			if err != nil {
				return err
			}
			return a.print(t.Devices, func(w *terminal.Writer) {
				all := int64(0)
				for _, s := range []watchword.State{watchword.New, watchword.Active, watchword.Suspended, watchword.Revoked} {
					w.Printf("%s\t%d\n", s, t.Devices[s])
					all += t.Devices[s]
				}
				w.Printf("all\t%d\n", all)
			})
		},
	}
}

func (a *app) deviceLabels() *cobra.Command {
	return &cobra.Command{
		Use: "labels [KEY]", Short: "Count the devices that have each label", Args: positional(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			key := ""
			if len(args) > 0 {
				key = args[0]
			}
			var ls []api.LabelTotal
			if err := cl.DeviceLabels(c.Context(), key, func(l api.LabelTotal) error {
				ls = append(ls, l)
				return nil
			}); err != nil {
				return err
			}
			return printList(a, ls, "LABEL\tDEVICES", func(w *terminal.Writer, l api.LabelTotal) { w.Printf("%s=%s\t%d\n", l.Key, l.Value, l.Count) })
		},
	}
}

func (a *app) deviceShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show a device: keys, functions, live sessions", Args: positional(cobra.ExactArgs(1)), ValidArgsFunction: a.deviceIDs,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			d, err := cl.Device(c.Context(), watchword.SubjectID(args[0]))
			if err != nil {
				return err
			}
			return a.print(d, func(w *terminal.Writer) { showDevice(w, d) })
		},
	}
}

func showDevice(w *terminal.Writer, d api.Device) {
	proof := "no"
	if d.Proof == watchword.RequireProof {
		proof = "yes"
	}
	w.Printf("id\t%s\nstate\t%s\nlabels\t%s\nrequire proof\t%s\nversion\t%d\ncreated\t%s\nchanged\t%s\n", d.ID, d.State, d.Labels, proof, d.Version, formatTime(d.CreatedAt), formatTime(d.ChangedAt))
	if d.LastSeenAt != nil {
		w.Printf("last seen\t%s\n", formatTime(*d.LastSeenAt))
	}
	if d.Name != "" {
		w.Printf("name\t%s\n", d.Name)
	}
	showKeys(w, d.Keys)
	showPendingLink(w, d.PendingLink)
	for _, f := range d.Functions {
		schema := ""
		if len(f.Schema) > 0 {
			schema = "  with a schema"
		}
		w.Printf("function\t%s%s\n", f.Name, schema)
	}
	showSessions(w, d.Sessions)
}

func (a *app) deviceRequireProof() *cobra.Command {
	return &cobra.Command{
		Use: "require-proof ID yes|no", Short: "Accept a device's tokens only with a proof of its key, or without", Args: positional(cobra.ExactArgs(2)), ValidArgsFunction: a.deviceIDs,
		Long: "With yes, tokens of the device are refused (proof_required) unless the request proves the device's key: by DPoP over HTTP (RFC 9449), by AUTH method ace over MQTT (RFC 9431).\n" +
			"Live sessions without such a proof are closed at once. A policy can require the same (proof = \"required\").",
		RunE: func(c *cobra.Command, args []string) error {
			var proof string
			switch args[1] {
			case "yes":
				proof = watchword.RequireProof
			case "no":
			default:
				return usage("require-proof must be yes or no, not %q", args[1])
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			d, err := cl.SetProof(c.Context(), watchword.SubjectID(args[0]), proof)
			if err != nil {
				return err
			}
			return a.print(d, func(w *terminal.Writer) { w.Printf("%s  require proof: %s\n", d.ID, args[1]) })
		},
	}
}

func (a *app) deviceName() *cobra.Command {
	return &cobra.Command{
		Use: "name ID NAME", Short: "Set what people call a device (\"\" for nothing)", Args: positional(cobra.ExactArgs(2)), ValidArgsFunction: a.deviceIDs,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			d, err := cl.SetName(c.Context(), watchword.SubjectID(args[0]), args[1])
			if err != nil {
				return err
			}
			return a.print(d, func(w *terminal.Writer) { w.Printf("%s  name: %s\n", d.ID, d.Name) })
		},
	}
}

func (a *app) deviceForget() *cobra.Command {
	return &cobra.Command{
		Use: "forget ID", Short: "Make the id of a deleted device free", Args: positional(cobra.ExactArgs(1)),
		Long: "A device that is added with the id has the next incarnation: no key, token or session of the deleted device counts for it. The audit log and earlier\n" +
			"commands keep the id.",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			return cl.ForgetDevice(c.Context(), watchword.SubjectID(args[0]))
		},
	}
}

func (a *app) deviceLabel() *cobra.Command {
	return &cobra.Command{
		Use: "label ID k=v k-", Short: "Set labels (k=v) or remove them (k-)", Args: positional(cobra.MinimumNArgs(2)), ValidArgsFunction: a.deviceIDs,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			id := watchword.SubjectID(args[0])
			d, err := cl.Device(c.Context(), id)
			if err != nil {
				return err
			}
			for _, p := range args[1:] {
				if k, gone := strings.CutSuffix(p, "-"); gone && !strings.Contains(p, "=") {
					delete(d.Labels, k)
				} else if k, v, ok := strings.Cut(p, "="); ok {
					d.Labels[k] = v
				} else {
					return usage("%s: must be key=value, or key- to remove the label", p)
				}
			}
			d, err = cl.SetLabels(c.Context(), id, d.Labels, d.Version)
			return a.printDevice(d, err)
		},
	}
}

func (a *app) printDevice(d api.Device, err error) error {
	if err != nil {
		return err
	}
	return a.print(d, func(w *terminal.Writer) { w.Printf("%s is %s  %s\n", d.ID, d.State, d.Labels) })
}

func (a *app) deviceSuspend() *cobra.Command {
	c := &cobra.Command{Use: "suspend ID", Short: "Refuse everything of a device until it is resumed", Args: positional(cobra.ExactArgs(1)), ValidArgsFunction: a.deviceIDs}
	reason := c.Flags().String("reason", "", "reason, recorded in the audit log")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		return a.printDevice(cl.Suspend(c.Context(), watchword.SubjectID(args[0]), *reason))
	}
	return c
}

func (a *app) deviceResume() *cobra.Command {
	return &cobra.Command{
		Use: "resume ID", Short: "Accept a suspended device again", Args: positional(cobra.ExactArgs(1)), ValidArgsFunction: a.deviceIDs,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			return a.printDevice(cl.Resume(c.Context(), watchword.SubjectID(args[0])))
		},
	}
}

func (a *app) deviceRevoke() *cobra.Command {
	c := &cobra.Command{Use: "revoke ID --reason R", Short: "Revoke a device's keys permanently and close its sessions", Args: positional(cobra.ExactArgs(1)), ValidArgsFunction: a.deviceIDs}
	reason := c.Flags().String("reason", "", "reason, recorded in the audit log; required")
	yes := yesFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := requireReason(*reason); err != nil {
			return err
		}
		return a.revoke(c.Context(), *yes, "revoke "+args[0]+" permanently", func(ctx context.Context) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			return a.printDevice(cl.Revoke(ctx, watchword.SubjectID(args[0]), *reason))
		})
	}
	return c
}

func (a *app) deviceDelete() *cobra.Command {
	c := &cobra.Command{Use: "delete ID", Short: "Revoke and delete a device; its id is free after device forget only", Args: positional(cobra.ExactArgs(1)), ValidArgsFunction: a.deviceIDs}
	yes := yesFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := a.confirmAtServer(*yes, "delete "+args[0]+" (its id is free after device forget only)"); err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		return cl.DeleteDevice(c.Context(), watchword.SubjectID(args[0]))
	}
	return c
}
