package main

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/server/policy"
)

func (a *app) policyCommand() *cobra.Command {
	return commandGroup("policy", "Check, apply and explain policies", a.policyList(), a.policyShow(), a.policyCheck(), a.policyDiff(), a.policyApply(), a.policyDelete(), a.policyExplain())
}

func (a *app) policyList() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List all policies", Args: positional(cobra.NoArgs), RunE: func(c *cobra.Command, _ []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		ps, err := cl.Policies(c.Context())
		if err != nil {
			return err
		}
		return printList(a, ps, "NAME\tVERSION\tCHANGED", func(w *terminal.Writer, p api.Policy) {
			w.Printf("%s\t%d\t%s\n", p.Name, p.Version, formatTime(p.ChangedAt))
		})
	}}
}

func (a *app) policyShow() *cobra.Command {
	return &cobra.Command{Use: "show NAME", Short: "Print a policy's text", Args: positional(cobra.ExactArgs(1)), RunE: func(c *cobra.Command, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		text, v, err := cl.Policy(c.Context(), args[0])
		if err != nil {
			return err
		}
		return a.print(map[string]any{"name": args[0], "version": v, "text": string(text)}, func(w *terminal.Writer) { w.Document(string(text)) })
	}}
}

// policyFile reads a policy and its name, which the document states.
func (a *app) policyFile(file string) (name string, text []byte, err error) {
	if text, err = readInput(file, 64<<10); err != nil {
		return "", nil, err
	}
	name = strings.TrimSuffix(filepath.Base(file), ".toml")
	var head struct {
		Name string `toml:"name"`
	}
	if toml.Unmarshal(text, &head) == nil && head.Name != "" { // Parse reports errors in the text better
		name = head.Name
	}
	_, err = policy.Parse(name, text)
	return name, text, a.showMistakes(file, err, mistakes(err))
}

func mistakes(err error) (out []api.Mistake) {
	for _, m := range policy.Mistakes(err) {
		out = append(out, api.Mistake(m))
	}
	return out
}

// showMistakes prints each mistake with its position.
func (a *app) showMistakes(file string, err error, ms []api.Mistake) error {
	if len(ms) == 0 {
		return err
	}
	for _, m := range ms {
		a.err.Printf("%s:%d:%d: %s\n", file, m.Line, m.Column, m.Message)
	}
	return &exitError{1}
}

// printRemoteMistakes prints the mistakes that the server found, with the file's name.
func (a *app) printRemoteMistakes(file string, err error) error {
	p, ok := errors.AsType[*rest.Problem](err)
	if !ok || watchword.CodeOf(err) != watchword.PolicyInvalid {
		return err
	}
	var doc api.Problem
	if jerr := json.Unmarshal(p.Document, &doc); jerr != nil {
		return err
	}
	return a.showMistakes(file, err, doc.Mistakes)
}

func (a *app) policyCheck() *cobra.Command {
	return &cobra.Command{Use: "check FILE|-", Short: "Report a policy's mistakes, with line and column", Args: positional(cobra.ExactArgs(1)), RunE: func(c *cobra.Command, args []string) error {
		name, text, err := a.policyFile(args[0])
		if err != nil {
			return err
		}
		cl, err := a.client()
		if watchword.CodeOf(err) == watchword.NotFound {
			a.err.Printf("no server here: only the text was checked, not the size of tokens\n")
			return a.print(map[string]any{"ok": true}, func(w *terminal.Writer) { w.Printf("ok\n") })
		} else if err != nil {
			return err
		}
		if err := cl.CheckPolicy(c.Context(), name, text); err != nil {
			return a.printRemoteMistakes(args[0], err)
		}
		return a.print(map[string]any{"ok": true}, func(w *terminal.Writer) { w.Printf("ok\n") })
	}}
}

func (a *app) policyApply() *cobra.Command {
	c := &cobra.Command{Use: "apply FILE|-", Short: "Apply a policy; live sessions follow before the command returns", Args: positional(cobra.ExactArgs(1))}
	match := c.Flags().Int64("if-match", -1, "only if the current version is this one (0: there is none)")
	c.RunE = func(c *cobra.Command, args []string) error {
		name, text, err := a.policyFile(args[0])
		if err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		p, err := cl.ApplyPolicy(c.Context(), name, text, *match)
		if err != nil {
			return a.printRemoteMistakes(args[0], err)
		}
		return a.print(p, func(w *terminal.Writer) { w.Printf("%s is in force, version %d\n", p.Name, p.Version) })
	}
	return c
}

func (a *app) policyDelete() *cobra.Command {
	c := &cobra.Command{Use: "delete NAME", Short: "Delete a policy; live sessions follow before the command returns", Args: positional(cobra.ExactArgs(1))}
	yes := yesFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := a.confirmAtServer(*yes, "delete policy "+args[0]); err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		return cl.DeletePolicy(c.Context(), args[0])
	}
	return c
}

func (a *app) policyExplain() *cobra.Command {
	c := &cobra.Command{
		Use: "explain --subject S --action A --resource R [k=v]…", Short: "Explain why something is allowed or denied", Args: positional(cobra.ArbitraryArgs),
		Example: "  watchword policy explain --subject alice --action call --resource fn:lamp-7/lamp.set level:=99",
	}
	subject := c.Flags().String("subject", "", "subject whose permissions are explained")
	action := c.Flags().String("action", "", "pub, sub, call, get, put, post, patch or delete")
	resource := c.Flags().String("resource", "", "topic:…, fn:DEVICE/FUNCTION or api:/…")
	for _, f := range []string{"subject", "action", "resource"} {
		_ = c.MarkFlagRequired(f) // the flag exists
	}
	c.RunE = func(c *cobra.Command, rest []string) error {
		in, err := parseArguments(rest)
		if err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		e, err := cl.Explain(c.Context(), watchword.SubjectID(*subject), *action, *resource, in)
		if err != nil {
			return err
		}
		if err := a.print(e, func(w *terminal.Writer) {
			state := "DENIED"
			if e.Allowed {
				state = "ALLOWED"
			}
			w.Printf("%s\t%s\n", state, e.Why)
			if e.Proof != "" {
				w.Printf("proof\t%s\n", e.Proof)
			}
			if e.Nearest != "" {
				w.Printf("nearest\t%s\n", e.Nearest)
			}
		}); err != nil {
			return err
		}
		if !e.Allowed {
			return &exitError{5}
		}
		return nil
	}
	return c
}
