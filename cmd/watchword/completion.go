package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/policy"
)

// completionTime is how long a completion may take. What was found by then is proposed.
const completionTime = time.Second

// completer completes one argument or the value of one option. have are the arguments before it, start is what was typed of it.
type completer func(a *app, c *cobra.Command, have []string, start string) ([]string, cobra.ShellCompDirective)

// words completes one of a fixed set.
func words(all ...string) completer {
	return func(_ *app, _ *cobra.Command, _ []string, start string) (out []string, _ cobra.ShellCompDirective) {
		for _, w := range all {
			if strings.HasPrefix(w, start) {
				out = append(out, w)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// freeText is a completer of what only the user knows: nothing is proposed, no file names either.
func freeText(*app, *cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

func files(*app, *cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}

func folders(*app, *cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// listed completes what list adds from the server. have are the arguments before, c has a context with the time of a completion.
func listed(list func(c *cobra.Command, cl *admin.Client, have []string, add func(value, about string)) error) completer {
	return func(a *app, c *cobra.Command, have []string, start string) ([]string, cobra.ShellCompDirective) {
		return a.complete(nil, func(cl *admin.Client, add func(string)) error {
			return list(c, cl, have, func(value, about string) {
				switch {
				case !strings.HasPrefix(value, start):
				case about == "":
					add(value)
				default:
					add(value + "\t" + about)
				}
			})
		})
	}
}

// commands completes the IDs of commands in a state, newest first; any state where it is empty.
func commands(state watchword.CommandState) completer {
	return listed(func(c *cobra.Command, cl *admin.Client, _ []string, add func(value, about string)) error {
		list, err := cl.Commands(c.Context(), admin.Filter{State: state}, maxCompletions)
		for _, cmd := range list {
			add(string(cmd.ID), string(cmd.Device)+" "+cmd.Function+", "+string(cmd.State))
		}
		return err
	})
}

var sessions = listed(func(c *cobra.Command, cl *admin.Client, _ []string, add func(value, about string)) error {
	return cl.EachSession(c.Context(), admin.SessionFilter{}, func(s api.Session) error {
		add(string(s.ID), string(s.Subject)+", "+s.Transport)
		return nil
	}, func(s api.OfflineSession) error {
		add(string(s.ID), string(s.Subject)+", offline")
		return nil
	})
})

var policies = listed(func(c *cobra.Command, cl *admin.Client, _ []string, add func(value, about string)) error {
	list, err := cl.Policies(c.Context())
	for _, p := range list {
		add(p.Name, "")
	}
	return err
})

var topics = listed(func(c *cobra.Command, cl *admin.Client, _ []string, add func(value, about string)) error {
	return cl.Retained(c.Context(), admin.RetainedQuery{}, func(m api.Retained) error {
		add(m.Topic, "")
		return nil
	})
})

// functions completes the functions that the device, which is the first argument, announced.
var functions = listed(func(c *cobra.Command, cl *admin.Client, have []string, add func(value, about string)) error {
	d, err := cl.Device(c.Context(), watchword.SubjectID(have[0]))
	for _, f := range d.Functions {
		add(f.Name, "")
	}
	return err
})

// notices completes the three arguments that name a notice.
var notices = listed(func(c *cobra.Command, cl *admin.Client, have []string, add func(value, about string)) error {
	list, err := cl.Notices(c.Context())
	for _, n := range list.Notices {
		name := []string{string(n.Kind), string(n.Object), n.At.UTC().Format(time.RFC3339Nano)}
		if slices.Equal(name[:len(have)], have) {
			add(name[len(have)], "")
		}
	}
	return err
})

// subjects completes the IDs of operators, services and devices.
var subjects = listed(func(c *cobra.Command, cl *admin.Client, _ []string, add func(value, about string)) error {
	for _, of := range []admin.Subjects{cl.Operators(), cl.Services()} {
		if err := of.List(c.Context(), nil, "", func(s api.Subject) error {
			add(string(s.ID), string(s.Kind))
			return nil
		}); err != nil {
			return err
		}
	}
	return cl.Devices(c.Context(), nil, "", func(d api.Device) error {
		add(string(d.ID), "device")
		return nil
	})
})

// labels completes the labels that devices have.
var labels = listed(func(c *cobra.Command, cl *admin.Client, _ []string, add func(value, about string)) error {
	seen := map[string]bool{}
	return cl.Devices(c.Context(), nil, "", func(d api.Device) error {
		for k, v := range d.Labels {
			if l := k + "=" + v; !seen[l] {
				seen[l] = true
				add(l, "")
			}
		}
		return nil
	})
})

// keysOf completes the keys of one operator or service, which is the first argument.
func keysOf(k subjectKind) completer {
	return listed(func(c *cobra.Command, cl *admin.Client, have []string, add func(value, about string)) error {
		list, err := k.of(cl).Keys(c.Context(), watchword.SubjectID(have[0]))
		for _, key := range list {
			add(string(key.ID), key.Name)
		}
		return err
	})
}

// argumentCompleters are the completers of the arguments of each command, by its path without the name of the program, as far as the
// command's own ValidArgsFunction does not complete the first one; nil is that one. The last one is for all further arguments if the
// command takes any number.
var argumentCompleters = map[string][]completer{
	"address move":         {freeText},
	"agent enroll":         {files},
	"agent pair":           {freeText},
	"audit export":         {files},
	"audit mirror":         {folders, freeText},
	"audit prove":          {freeText},
	"audit show":           {freeText},
	"audit verify":         {files},
	"backup create":        {files},
	"backup verify":        {files},
	"command cancel":       {commands(watchword.Queued)},
	"command send":         {nil, functions, freeText},
	"command show":         {commands("")},
	"command verify":       {files},
	"device create":        {freeText},
	"device forget":        {freeText}, // of a deleted device, which no list has
	"device label":         {nil, labels},
	"device labels":        {freeText}, // a key of labels
	"device name":          {nil, freeText},
	"device require-proof": {nil, words("yes", "no")},
	"key import":           {files},
	"key sign":             {files},
	"login":                {files},
	"notice acknowledge":   {notices, notices, notices},
	"operator approve":     {nil, freeText},
	"operator invite":      {freeText},
	"operator key revoke":  {nil, keysOf(operatorKind)},
	"operator key set-end": {nil, keysOf(operatorKind), freeText},
	"operator recover":     {freeText},
	"operator role":        {nil, words(policy.BuiltInRoles...)},
	"policy apply":         {files},
	"policy check":         {files},
	"policy delete":        {policies},
	"policy diff":          {files},
	"policy explain":       {freeText},
	"policy show":          {policies},
	"restore":              {files},
	"retained delete":      {topics},
	"retained list":        {freeText},
	"retained show":        {topics},
	"service create":       {freeText},
	"service enroll":       {files},
	"service key revoke":   {nil, keysOf(serviceKind)},
	"service key set-end":  {nil, keysOf(serviceKind), freeText},
	"session close":        {sessions},
	"token inspect":        {freeText},
	"token revoke":         {freeText},
	"twin set":             {nil, freeText},
}

var states = words(string(watchword.New), string(watchword.Active), string(watchword.Suspended), string(watchword.Revoked))

// optionCompleters are the completers of the values of options, by the path of the command and the option, else by the option alone.
// An option that is in neither takes a text, and nothing is proposed for it.
var optionCompleters = map[string]completer{
	"action":                   words("pub", "sub", "call", "get", "put", "post", "patch", "delete"),
	"against":                  files,
	"by":                       subjects,
	"cafile":                   files,
	"command list --state":     words(commandStates()...),
	"config":                   files,
	"data":                     folders,
	"dir":                      folders,
	"enrollment approve --key": freeText, // a thumbprint
	"device list --sort":       words("id", "created", "changed", "state", "last_seen"),
	"event watch --after":      freeText,
	"evidence":                 files,
	"functions":                files,
	"identity":                 files,
	"in":                       files,
	"key":                      files,
	"kind":                     words(audit.Kinds...),
	"label":                    labels,
	"links":                    files,
	"log":                      files,
	"log-file":                 files,
	"out":                      files,
	"output":                   words("table", "json", "jsonl"),
	"passphrase-file":          files,
	"plan":                     files,
	"policy diff --delete":     policies,
	"role":                     words(policy.BuiltInRoles...),
	"scratch":                  folders,
	"seal":                     words(jose.P256, "X25519"),
	"sign":                     words(jose.P256, "Ed25519"),
	"state":                    states,
	"subject":                  subjects,
	"token":                    files,
	"transport":                words("mqtt", "sse", "poll", "wait", "request"),
}

func commandStates() (out []string) {
	for _, s := range []watchword.CommandState{
		watchword.Queued, watchword.Sent, watchword.Delivered, watchword.Accepted, watchword.Done, watchword.Refused, watchword.Failed,
		watchword.Interrupted, watchword.Expired, watchword.Cancelled, watchword.Unknown, watchword.Undeliverable,
	} {
		out = append(out, string(s))
	}
	return out
}

// addCompletions completes the arguments and options of all commands. Errors are silent: the shell proposes nothing.
func (a *app) addCompletions(root *cobra.Command) {
	a.completeFlags(root, "", root.PersistentFlags())
	eachCommand(root, "", func(path string, c *cobra.Command) {
		list, first := argumentCompleters[path], c.ValidArgsFunction
		c.ValidArgsFunction = a.inTime(func(a *app, c *cobra.Command, have []string, start string) ([]string, cobra.ShellCompDirective) {
			n := len(have)
			if len(list) > 0 && n >= len(list) && strings.HasSuffix(c.Use, "…") {
				n = len(list) - 1
			}
			switch {
			case n < len(list) && list[n] != nil:
				return list[n](a, c, have, start)
			case n == 0 && first != nil:
				return first(c, have, start)
			}
			return freeText(a, c, have, start)
		})
		a.completeFlags(c, path, c.LocalNonPersistentFlags())
	})
}

func (a *app) completeFlags(c *cobra.Command, path string, flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		if _, has := c.GetFlagCompletionFunc(f.Name); has || f.Value.Type() == "bool" {
			return
		}
		complete := optionCompleters[path+" --"+f.Name]
		if complete == nil {
			complete = optionCompleters[f.Name]
		}
		if complete == nil {
			complete = freeText
		}
		_ = c.RegisterFlagCompletionFunc(f.Name, a.inTime(func(a *app, c *cobra.Command, _ []string, start string) ([]string, cobra.ShellCompDirective) {
			return complete(a, c, nil, start)
		})) // fails only for a flag that does not exist, or twice
	})
}

// inTime ends a completion after completionTime.
func (a *app) inTime(complete completer) cobra.CompletionFunc {
	return func(c *cobra.Command, have []string, start string) ([]string, cobra.ShellCompDirective) {
		a.completes = true
		ctx := c.Context()
		if ctx == nil {
			ctx = context.Background()
		}
		ctx, cancel := context.WithTimeout(ctx, completionTime)
		defer cancel()
		c.SetContext(ctx)
		return complete(a, c, have, start)
	}
}

// eachCommand calls f with each command that has no subcommands, and its path without the name of the program.
func eachCommand(c *cobra.Command, path string, f func(path string, c *cobra.Command)) {
	if !c.HasSubCommands() && !c.Hidden {
		f(path, c)
	}
	for _, sub := range c.Commands() {
		eachCommand(sub, strings.TrimSpace(path+" "+sub.Name()), f)
	}
}
