package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/sdk/admin"
)

func (a *app) operatorCommand() *cobra.Command {
	k := operatorKind
	return commandGroup("operator", "Invite, list, suspend and revoke operators, and give them roles",
		a.operatorInvite(), a.operatorPending(), a.operatorApprove(), a.operatorReject(), a.subjectLink(k), a.operatorRole(), a.subjectList(k), a.subjectShow(k), a.subjectSuspend(k), a.subjectResume(k), a.subjectRevoke(k), a.subjectKeys(k), a.operatorRecover())
}

func (a *app) operatorInvite() *cobra.Command {
	c := &cobra.Command{
		Use: "invite NAME", Short: "Add an operator and print the one-time link with which they log in", Args: positional(cobra.ExactArgs(1)),
		Long: "Adds an operator and prints a one-time link. On their machine they run watchword login 'LINK', which makes a key there. Send the\n" +
			"link over a channel that only they read: who has it first is the operator. A role that has more than yours is refused.",
	}
	role := c.Flags().String("role", "operator", "owner, admin, operator, viewer, auditor, or a role that a policy defines")
	lifetimes := lifetimeFlags(c)
	picture := c.Flags().Bool("qr", false, "also draw the link as a QR code")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		ttl, keyTTL := lifetimes()
		s, err := cl.CreateOperatorWith(c.Context(), api.CreateOperatorRequest{ID: args[0], Role: *role, TTL: ttl, KeyTTL: keyTTL})
		if err != nil {
			return err
		}
		return a.printLoginLink(s, s.Enrollment, *picture, operatorKind)
	}
	return c
}

// lifetimeFlags adds the options for the lifetimes of a link and of the key that enrolls with it, and returns a function that returns
// both; empty for the default.
func lifetimeFlags(c *cobra.Command) func() (link, key string) {
	ttl := c.Flags().Duration("ttl", 0, "how long the link is valid (default 24h)")
	keyTTL := keyTTLFlag(c)
	text := func(d time.Duration) string {
		if d == 0 {
			return ""
		}
		return d.String()
	}
	return func() (string, string) { return text(*ttl), text(*keyTTL) }
}

// keyTTLFlag adds the option for the lifetime of a key.
func keyTTLFlag(c *cobra.Command) *time.Duration {
	return c.Flags().Duration("key-ttl", 0, "end of the key, counted from now (default: it has none)")
}

// printLoginLink prints the link of an operator or a service.
func (a *app) printLoginLink(v any, e *api.Enrollment, picture bool, k subjectKind) error {
	return a.printLink(v, e, picture, "watchword "+k.name+" link NAME", "on the other machine, run: watchword login 'LINK'")
}

func (a *app) operatorRole() *cobra.Command {
	return &cobra.Command{
		Use: "role NAME ROLE", Short: "Give an operator another role, at once", Args: positional(cobra.ExactArgs(2)), ValidArgsFunction: a.subjectIDs(operatorKind),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			s, err := cl.SetRole(c.Context(), watchword.SubjectID(args[0]), args[1])
			return a.printSubject(s, err)
		},
	}
}

func (a *app) serviceCommand() *cobra.Command {
	k := serviceKind
	return commandGroup("service", "Add, list, suspend and revoke services: back ends with a key of their own",
		a.serviceCreate(), a.serviceEnroll(), a.serviceToken(), a.subjectLink(k), a.subjectList(k), a.subjectShow(k), a.subjectSuspend(k), a.subjectResume(k), a.subjectRevoke(k), a.subjectKeys(k))
}

func (a *app) serviceCreate() *cobra.Command {
	c := &cobra.Command{
		Use: "create NAME", Short: "Add a service and print the one-time link with which it enrolls its key", Args: positional(cobra.ExactArgs(1)),
		Long: "Adds a service, whose permissions come from policies for kind = \"service\" and for its labels. The link is used by watchword login\n" +
			"'LINK' on the machine of the back end, or by any client of POST /v1/enroll.",
	}
	pairs := c.Flags().StringArrayP("label", "l", nil, "label as key=value; may be repeated")
	lifetimes := lifetimeFlags(c)
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
		ttl, keyTTL := lifetimes()
		s, err := cl.CreateServiceWith(c.Context(), api.CreateServiceRequest{ID: args[0], Labels: l, TTL: ttl, KeyTTL: keyTTL})
		if err != nil {
			return err
		}
		return a.printLoginLink(s, s.Enrollment, *picture, serviceKind)
	}
	return c
}

// printSubject prints the state of an operator or a service after an act.
func (a *app) printSubject(s api.Subject, err error) error {
	if err != nil {
		return err
	}
	return a.print(s, func(w *terminal.Writer) {
		w.Printf("%s is %s", s.ID, s.State)
		if s.Role != "" {
			w.Printf("  role %s", s.Role)
		}
		w.Printf("  %s\n", s.Labels)
	})
}

// subjectKind is operators or services: their commands differ in their names, and in the path of the API.
type subjectKind struct {
	name, plural string
	of           func(*admin.Client) admin.Subjects
}

var (
	operatorKind = subjectKind{"operator", "operators", (*admin.Client).Operators}
	serviceKind  = subjectKind{"service", "services", (*admin.Client).Services}
)
