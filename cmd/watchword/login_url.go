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
	key, file, err := store.EnsureKey(name, "login")
	if err != nil {
		return err
	}
	o, err := admin.RequestLogin(ctx, server, key, admin.LoginOptions{Show: a.showLogin})
	if err != nil {
		return forgetDecided(store, file, err)
	}
	return a.keepLogin(ctx, store, name, o, file, "")
}

// showLogin prints what the approver compares.
func (a *app) showLogin(r token.LoginRequest, expires time.Time) {
	a.err.Printf("code      %s\nkey       %s\npin       %s\nlink      %s\n", r.UserCode, r.Key, r.Pin, r.Link())
	a.err.Printf("Send the link to a person who may add operators, over a channel where they recognise you. They run:\n  watchword operator approve 'LINK' NAME --role ROLE\n")
	a.err.Printf("waiting until %s\n", formatTime(expires))
}

// forgetDecided removes the key of a request that was rejected or that the server never takes, and returns the error of the
// request. After any other error the next attempt uses the key again: it may have been approved meanwhile.
func forgetDecided(store *contexts.Store, keyFile string, err error) error {
	switch watchword.CodeOf(err) {
	case watchword.PairingRejected, watchword.Conflict:
		if ferr := store.ForgetKey(keyFile); ferr != nil {
			return ferr
		}
	}
	return err
}
