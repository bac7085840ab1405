package main

import (
	"context"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/cmd/internal/contexts"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/token"
)

// isServerURL reports whether what login got is the URL of a server, not a one-time link, which has a fragment.
func isServerURL(arg string) bool { return strings.Contains(arg, "://") && !strings.Contains(arg, "#") }

// loginWithoutLink makes a key, shows it with a code, waits for an approver, and stores the context.
func (a *app) loginWithoutLink(ctx context.Context, server string) error {
	name := a.contextName(server)
	store, err := a.contexts()
	if err != nil {
		return err
	}
	if _, err := store.CheckFree(name, ""); err != nil {
		return err
	}
	key, file, made, err := store.EnsureKey(name, "login")
	if err != nil {
		return err
	}
	o, err := admin.RequestLogin(ctx, server, key, admin.LoginOptions{Show: a.showLogin})
	if err != nil {
		if watchword.CodeOf(err) == watchword.Conflict && !made {
			return approvedMeanwhile(store, file, key.Public().ID(), err)
		}
		return a.forgetRefused(store, file, made, err)
	}
	return a.keepLogin(ctx, store, name, o, file, "")
}

// showLogin prints what the approver compares.
func (a *app) showLogin(r token.LoginRequest, expires time.Time) {
	a.err.Printf("code      %s\nkey       %s\npin       %s\nlink      %s\n", r.UserCode, r.Key, r.Pin, r.Link())
	a.err.Printf("Send the link to a person who may add operators, over a channel where they recognise you. They run:\n  watchword operator approve 'LINK' NAME --role ROLE\n")
	a.err.Printf("waiting until %s\n", formatTime(expires))
}

// approvedMeanwhile returns the refusal of a request with the key of an earlier one: the server knows the key, so an operator
// approved that request after this machine stopped waiting. The key stays: it may be the only one of an operator.
func approvedMeanwhile(store *contexts.Store, keyFile string, key watchword.KeyID, err error) error {
	return watchword.Wrap(err, watchword.Conflict, "the key %s of an earlier login on this machine was approved meanwhile, and is kept in %s: use it with --server URL --key FILE --as NAME, or have that key revoked (watchword operator key revoke NAME -- %s), remove the file, and log in again", key, store.KeyPath(keyFile), key)
}
