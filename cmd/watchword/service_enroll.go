package main

import (
	"encoding/base64"
	"errors"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/token"
)

func serviceDirFlag(c *cobra.Command) *string {
	dir := c.Flags().String("dir", "", "folder with the service's key and the server's addresses")
	_ = c.MarkFlagRequired("dir") // the flag exists
	return dir
}

func (a *app) serviceEnroll() *cobra.Command {
	c := &cobra.Command{
		Use: "enroll LINK|FILE|- --dir DIR", Short: "Make a key for a back end and enroll it with a one-time link, in files for any client", Args: positional(cobra.ExactArgs(1)),
		Long: "Makes a private key in DIR, checks the server by the pin in the link, and enrolls the key. DIR then has key.jwk, service.json (the\n" +
			"server's addresses) and ca.pem, which clients of other languages use; see docs/backends.md. The same link and folder give the same\n" +
			"result again, until the link expires.",
	}
	dir := serviceDirFlag(c)
	c.RunE = func(c *cobra.Command, args []string) (err error) {
		link, err := readLink(args[0])
		if err != nil {
			return err
		}
		_, code, _, err := token.ParseEnrollmentLink(link)
		if err != nil {
			return err
		}
		sum := token.CodeDigest(code)
		digest := base64.RawURLEncoding.EncodeToString(sum[:])
		folder := serviceFolder(*dir)
		lock, err := folder.lock()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, lock.Close()) }()
		switch f, err := folder.read(); {
		case err == nil && f.Link == digest:
			return a.printService(f)
		case err == nil:
			return watchword.Refuse(watchword.Conflict, "%s has the key of %s already: use another folder", *dir, f.ID)
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
		key, err := folder.ensureKey()
		if err != nil {
			return err
		}
		server, answer, err := admin.EnrollKey(c.Context(), link, key, hostName(), nil)
		if err != nil {
			return err
		}
		f, err := folder.save(server, answer, key, digest)
		if err != nil {
			return err
		}
		return a.printService(f)
	}
	return c
}

func (a *app) printService(f serviceFile) error {
	return a.print(f, func(w *terminal.Writer) {
		w.Printf("service\t%s\nserver\t%s\nmqtt\t%s\nkey\t%s\n", f.ID, f.HTTPS, f.MQTTS, f.Key)
	})
}

func (a *app) serviceToken() *cobra.Command {
	c := &cobra.Command{
		Use: "token --dir DIR", Short: "Print an access token of the service, for example for curl or a stock MQTT client", Args: positional(cobra.NoArgs),
		Long: "Prints an access token that is bound to no key. It also fetches the server's trust bundle once a day, and renews ca.pem from it.",
	}
	dir := serviceDirFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		cl, err := serviceFolder(*dir).client(func(err error) { a.err.Printf("watchword: %s\n", truncateReason(errorText(err))) })
		if err != nil {
			return err
		}
		t, err := cl.Tokens().Get(c.Context())
		if err != nil {
			return err
		}
		return a.print(map[string]string{"access_token": t}, func(w *terminal.Writer) { w.Printf("%s\n", t) })
	}
	return c
}
