package main

import (
	"context"
	"crypto/subtle"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/token"
)

func (a *app) operatorPending() *cobra.Command {
	return &cobra.Command{
		Use: "pending", Short: "List people who wait for an approval of their login, and recent decisions", Args: positional(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			var all []api.Login
			if err := cl.Logins(c.Context(), func(l api.Login) error {
				all = append(all, l)
				return nil
			}); err != nil {
				return err
			}
			return printList(a, all, "CODE\tSTATE\tOPERATOR\tKEY\tADDRESS\tSINCE\tEXPIRES", func(w *terminal.Writer, l api.Login) {
				operator := l.Operator
				if operator == "" {
					operator = "-"
				}
				w.Printf("%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.UserCode, l.State, operator, l.Sign, l.Remote, formatTime(l.CreatedAt), formatTime(l.ExpiresAt))
			})
		},
	}
}

// loginCodes completes the codes of pending logins.
func (a *app) loginCodes(c *cobra.Command, have []string, start string) ([]string, cobra.ShellCompDirective) {
	return a.complete(have, func(cl *admin.Client, add func(string)) error {
		return cl.Logins(c.Context(), func(l api.Login) error {
			if strings.HasPrefix(l.UserCode, strings.ToUpper(start)) && l.State == "pending" {
				add(l.UserCode + "\tfrom " + l.Remote)
			}
			return nil
		})
	})
}

func (a *app) operatorApprove() *cobra.Command {
	c := &cobra.Command{
		Use: "approve LINK|CODE NAME", Short: "Approve the login of a person, as a new operator or as a further key of one", Args: positional(cobra.ExactArgs(2)), ValidArgsFunction: a.loginCodes,
		Long: "Approves what watchword login URL shows on the person's screen. Ask the person whether the link is theirs, over a channel where you\n" +
			"recognise them: the sender of the link becomes the operator. The link names the key and the pin of the server; both are compared with\n" +
			"those of the server that you are logged in to. With the code alone, give --thumbprint and --pin as the person reads them to you.\n" +
			"NAME is a new operator, with --role, or one that exists, who gets a further key.",
	}
	role := c.Flags().String("role", "", "role of a new operator: owner, admin, operator, viewer, auditor, or a role that a policy defines")
	key := c.Flags().String("thumbprint", "", "with a code: complete thumbprint of the key, as the person's screen shows it")
	pin := c.Flags().String("pin", "", "with a code: pin of the server, as the person's screen shows it")
	machine := c.Flags().String("machine", "", "name of the person's machine, for operator key list")
	keyTTL := keyTTLFlag(c)
	yes := yesFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		r, err := loginRequest(args[0], *key, *pin)
		if err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		t, err := serverTrust(c.Context(), cl)
		if err != nil {
			return err
		}
		l, err := cl.Login(c.Context(), r.UserCode)
		if err != nil {
			return err
		}
		if r, err = a.compareLogin(r, l, t, time.Now()); err != nil {
			return err
		}
		question := "approve this key as the new operator " + args[1] + " with the role " + *role
		if *role == "" {
			question = "approve this key as a further key of the operator " + args[1]
		}
		if err := a.confirm(*yes, question); err != nil {
			return err
		}
		return a.printSubject(cl.ApproveLogin(c.Context(), r, watchword.SubjectID(args[1]), *role, *machine, *keyTTL))
	}
	return c
}

// loginRequest returns what the approver was given: a link, or a code with --thumbprint and --pin, which are empty if the approver
// compares them on a terminal.
func loginRequest(arg, key, pin string) (token.LoginRequest, error) {
	if !strings.HasPrefix(arg, "https://") {
		if key != "" && len(key) != 43 || pin != "" && len(pin) != 43 {
			return token.LoginRequest{}, usage("--thumbprint and --pin must be complete, 43 characters each")
		}
		return token.LoginRequest{UserCode: arg, Key: watchword.KeyID(key), Pin: pin}, nil
	}
	if key != "" || pin != "" {
		return token.LoginRequest{}, usage("--thumbprint and --pin are used with a code; the link names both")
	}
	return token.ParseLoginLink(arg)
}

// serverTrust returns the trust bundle of the server that commands talk to. TLS authenticates the answer. Code: bundle_invalid.
func serverTrust(ctx context.Context, cl *admin.Client) (token.Trust, error) {
	res, err := cl.Rest().WithoutTokens().Do(ctx, rest.Request{Method: http.MethodGet, Path: "/v1/trust", Max: watchword.MaxBundle})
	if err != nil {
		return token.Trust{}, err
	}
	t, err := token.ReadTrust(string(res.Body))
	if err == nil && len(t.Roots) == 0 {
		err = watchword.Refuse(watchword.BundleInvalid, "the trust bundle must name a root")
	}
	return t, err
}

// checkLoginServer refuses a link that names another server than that of the bundle t. The client of the person refuses such a server
// too, unless it is of an earlier build. Where the bundle has no public Web PKI, the person's client has seen a certificate of the server's own
// authority, so each name of the server counts. Code: conflict.
func checkLoginServer(r token.LoginRequest, t token.Trust, now time.Time) error {
	u, err := url.Parse(r.Server)
	if err == nil && (r.Server == "" || !t.WebPKI || t.HasHost(u.Hostname(), now)) {
		return nil
	}
	return watchword.Wrap(err, watchword.Conflict, "the link names the server %s, and the address of yours is %s: the connection may be intercepted; reject the login with watchword operator reject %s, and have the person log in with %s", r.Server, t.Issuer, r.UserCode, t.Issuer)
}

// compareLogin refuses a request whose key is not that of the login, or whose pin or address is not that of the server, of which t is the
// trust bundle. It shows the login,
// and returns the request to approve. Without a key or a pin the person at the terminal compares those that are shown.
func (a *app) compareLogin(r token.LoginRequest, l api.Login, t token.Trust, now time.Time) (token.LoginRequest, error) {
	if (r.Key == "" || r.Pin == "") && (!isTerminal(os.Stdin) || !a.err.IsTerminal()) {
		return r, usage("a code alone approves nothing: give the link, or --thumbprint and --pin as the person's screen shows them")
	}
	if err := checkLoginServer(r, t, now); err != nil {
		return r, err
	}
	a.err.Printf("code      %s, from %s, %s ago\nkey       %s\n", r.UserCode, l.Remote, time.Since(l.CreatedAt).Round(time.Second), l.Sign)
	if r.Key == "" {
		r.Key = l.Sign
	} else if subtle.ConstantTimeCompare([]byte(r.Key), []byte(l.Sign)) != 1 {
		return r, watchword.Refuse(watchword.Conflict, "the key that you were given is not the key of this login, which another person may have requested; reject it with watchword operator reject %s", r.UserCode)
	}
	switch {
	case r.Pin == "":
		r.Pin = token.TrustPin(t.Roots[len(t.Roots)-1])
		a.err.Printf("pin       %s\n", r.Pin)
	case !slices.ContainsFunc(t.Roots, func(k *jose.PublicKey) bool { return token.TrustPin(k) == r.Pin }):
		return r, watchword.Refuse(watchword.Conflict, "the person's screen shows the pin of another server than yours: the connection may be intercepted; reject the login with watchword operator reject %s", r.UserCode)
	}
	return r, nil
}

func (a *app) operatorReject() *cobra.Command {
	return &cobra.Command{
		Use: "reject CODE", Short: "Reject the login of a person", Args: positional(cobra.ExactArgs(1)), ValidArgsFunction: a.loginCodes,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			l, err := cl.RejectLogin(c.Context(), args[0])
			if err != nil {
				return err
			}
			return a.print(l, func(w *terminal.Writer) { w.Printf("%s is %s\n", l.UserCode, l.State) })
		},
	}
}
