package main

import (
	"context"
	"encoding/base64"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/cmd/internal/contexts"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/token"
)

func (a *app) loginCommand() *cobra.Command {
	return &cobra.Command{
		Use: "login LINK|URL|FILE|-", Short: "Log in to a server of another machine, and keep it as a context", Args: positional(cobra.ExactArgs(1)),
		Long: "Makes a private key on this machine, checks the server by the pin in the link, enrolls the key, and keeps the server as a context\n" +
			"(contexts.toml in $XDG_CONFIG_HOME/watchword or ~/.config/watchword), which becomes the current one. --context names it; the default is\n" +
			"the host of the server. An operator makes the link with watchword operator invite, or watchword service create for a back end.\n" +
			"The same link can be used again on this machine until it expires, for example after a power failure.\n\n" +
			"With the URL of a server in place of a link, it shows a code, the thumbprint of the new key and the pin that it has seen, and waits:\n" +
			"an operator who may add operators approves them with watchword operator approve, and chooses your name and role.",
		RunE: func(c *cobra.Command, args []string) error {
			if isServerURL(args[0]) {
				return a.loginWithoutLink(c.Context(), args[0])
			}
			link, err := readLink(args[0])
			if err != nil {
				return err
			}
			return a.login(c.Context(), link)
		},
	}
}

// readLink returns a link that was typed, or that is in a file or on standard input.
func readLink(arg string) (string, error) {
	if strings.Contains(arg, "://") { // also another scheme, which the link's parser refuses by name: it is no file
		return arg, nil
	}
	b, err := readTrusted(arg, 4096)
	return strings.TrimSpace(string(b)), err
}

// login enrolls a new key with a one-time link and stores the context.
func (a *app) login(ctx context.Context, link string) error {
	url, code, _, err := token.ParseEnrollmentLink(link)
	if err != nil {
		return err
	}
	sum := token.CodeDigest(code)
	digest := base64.RawURLEncoding.EncodeToString(sum[:])
	name := a.contextName(url)
	store, err := a.contexts()
	if err != nil {
		return err
	}
	same, err := store.CheckFree(name, digest)
	if err != nil {
		return err
	}
	if same {
		if err := store.Use(ctx, name); err != nil {
			return err
		}
		return a.printContext(store, name)
	}
	key, file, made, err := store.EnsureKey(name, digest[:8])
	if err != nil {
		return err
	}
	o, err := admin.Enroll(ctx, link, key, hostName(), nil)
	if err != nil {
		return a.forgetRefused(store, file, made, err)
	}
	return a.keepLogin(ctx, store, name, o, file, digest)
}

// keepLogin stores the context of a key that the server has enrolled, and prints it. link is a digest of the link; empty for none.
func (a *app) keepLogin(ctx context.Context, store *contexts.Store, name string, o admin.Options, keyFile, link string) error {
	if err := store.Add(ctx, name, o, keyFile, link); err != nil {
		return err
	}
	if err := a.noteKeyEnd(ctx, store, name); err != nil { // the login is complete: the next whoami asks again
		a.err.Printf("watchword: the end of the key cannot be read: %s\n", truncateReason(errorText(err)))
	}
	return a.printContext(store, name)
}

// hostName returns the name of this machine, as far as a key may have it; empty if it is unknown.
func hostName() string {
	name, err := os.Hostname()
	if err != nil || watchword.CheckKeyName(name) != nil {
		return ""
	}
	return name
}

// contextName returns --context, or a name for the server.
func (a *app) contextName(url string) string {
	if a.context != "" {
		return a.context
	}
	return contexts.NameFor(url)
}

// forgetRefused removes the key of an attempt to log in that the server refused for good, and returns the error of the attempt. It
// removes only a key that this process made: the server may have enrolled that of an earlier attempt whose answer was lost. After
// an error that may pass, the next attempt uses the key again.
func (a *app) forgetRefused(store *contexts.Store, keyFile string, made bool, err error) error {
	switch watchword.CodeOf(err) {
	case watchword.CodeInvalid, watchword.BadRequest, watchword.PinMismatch, watchword.PairingRejected:
		if !made {
			a.err.Printf("hint: the key of an earlier attempt is kept in %s, since the server may have enrolled it\n", store.KeyPath(keyFile))
			return err
		}
		if ferr := store.ForgetKey(keyFile); ferr != nil {
			return ferr
		}
	}
	return err
}

// contextView is a context as it is printed.
type contextView struct {
	Name    string              `json:"name"`
	Current bool                `json:"current"`
	Subject watchword.SubjectID `json:"subject"`
	Server  string              `json:"server"`
	Issuer  string              `json:"issuer"`
	Pin     string              `json:"pin"`
	Key     watchword.KeyID     `json:"key,omitempty"` // thumbprint; empty if the key cannot be read
	KeyFile string              `json:"key_file"`
	KeyEnds *time.Time          `json:"key_ends_at,omitempty"`
}

func viewContext(store *contexts.Store, f contexts.File, name string) contextView {
	c := f.Contexts[name]
	v := contextView{Name: name, Current: f.Current == name, Subject: c.Subject, Server: c.Server, Issuer: c.Issuer, Pin: c.Pin, KeyFile: c.Key, KeyEnds: c.KeyEnds}
	if o, err := store.Options(name); err == nil {
		v.Key = o.Key.Public().ID()
	}
	return v
}

// printContext prints the context that a login made.
func (a *app) printContext(store *contexts.Store, name string) error {
	f, err := store.Read()
	if err != nil {
		return err
	}
	v := viewContext(store, f, name)
	err = a.print(v, func(w *terminal.Writer) {
		w.Printf("subject\t%s\nserver\t%s\nkey\t%s%s\ncontext\t%s\n", v.Subject, v.Server, v.Key, keyEndText(v.KeyEnds), v.Name)
	})
	a.warnOfEnvironment(name)
	return err
}

// warnOfEnvironment says that later commands do not use the context of this login, because the environment names another server.
func (a *app) warnOfEnvironment(name string) {
	for _, variable := range []string{"WATCHWORD_DATA", "WATCHWORD_CONTEXT"} { // in the order of [app.choose]
		if value := os.Getenv(variable); value != "" && (variable == "WATCHWORD_DATA" || value != name) {
			a.err.Printf("warning: %s is set to %s: commands without --context %s go there, not to this server\n", variable, value, name)
			return
		} else if value != "" {
			return
		}
	}
}

// keyEndText says when a key ends, behind its thumbprint; empty for a key without an end.
func keyEndText(ends *time.Time) string {
	if ends == nil {
		return ""
	}
	return ", until " + formatTime(*ends)
}

func (a *app) logoutCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "logout", Short: "Revoke the key of the current context, or of that of --context, and remove the context", Args: positional(cobra.NoArgs),
		Long: "Revokes the key of this machine at the server, and removes the context, the key and the access token from this machine. If the\n" +
			"server cannot be reached, they are removed here alone. If the server does not let the key go, because it is the last one of the\n" +
			"last owner, everything stays: give another operator the role owner first. --force removes the context and the key here all the same.",
	}
	force := c.Flags().Bool("force", false, "remove the context and its key here even if the server keeps the key as the last one of the last owner")
	c.RunE = func(c *cobra.Command, _ []string) error {
		to, store, err := a.chosenTarget()
		if err != nil {
			return err
		}
		if to.context == "" {
			return usage("logout removes a context, and none is chosen: name one with --context; %s lists them", runnable("watchword context list"))
		}
		return a.logout(c.Context(), store, to.context, *force)
	}
	return c
}

// logout revokes the key of a context and removes the context. The context is removed although the key is not revoked: who types
// logout leaves the machine. Without force it stays where the server needs the key, which may be the only one that can act as an
// owner. Code: conflict then.
func (a *app) logout(ctx context.Context, store *contexts.Store, name string, force bool) error {
	f, err := store.Read()
	if err != nil {
		return err
	}
	if _, err := f.Get(name); err != nil {
		return err
	}
	v := viewContext(store, f, name)
	revokeErr := a.revokeOwnKey(ctx, v.Key)
	if watchword.CodeOf(revokeErr) == watchword.Conflict && !force {
		a.err.Printf("context %s and its key stay: the server does not revoke the key. %s removes them from this machine all the same\n", name, runnable("watchword logout --force --context "+name))
		return revokeErr
	}
	if err := store.Delete(ctx, name); err != nil {
		return err
	}
	if revokeErr != nil {
		a.err.Printf("context %s was removed from this machine, with its key. The server did not revoke the key %s: %s\n", name, v.Key, truncateReason(errorText(revokeErr)))
		a.err.Printf("hint: where a copy of the key may exist, an operator revokes it: %s (a service's: service key revoke)\n", runnable("watchword operator key revoke "+string(v.Subject)+" -- "+string(v.Key)))
		return nil
	}
	a.err.Printf("the key %s was revoked, and context %s was removed from this machine\n", v.Key, name)
	return nil
}

// revokeOwnKey revokes the key that this process acts with at its server.
func (a *app) revokeOwnKey(ctx context.Context, key watchword.KeyID) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	return cl.RevokeOwnKey(ctx, key)
}
