package main

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/cmd/internal/contexts"
	"github.com/watchword-iot/watchword/sdk/admin"
)

// target is the server that commands talk to, and the subject that they act as: the global options, and where the data folder
// was named.
type target struct {
	server, caFile, keyFile, as string // --server, --cafile, --key, --as
	context                     string // --context

	dataFrom origin
	warned   bool // of the end of the key
}

// origin says where the name of the data folder is from. The zero value is a folder that is not chosen yet.
type origin int

const (
	fromFlag origin = iota + 1
	fromEnvironment
	fromDefault
)

func (a *app) addTargetFlags(root *cobra.Command) {
	f := root.PersistentFlags()
	f.StringVar(&a.data, "data", "", "data folder of the server on this machine (default $WATCHWORD_DATA, else "+defaultData()+")")
	f.StringVar(&a.context, "context", "", "context to use, of those that watchword login made (default $WATCHWORD_CONTEXT, else the current one)")
	f.StringVar(&a.server, "server", "", "URL of the server, with --key and --as, in place of a context")
	f.StringVar(&a.caFile, "cafile", "", "with --server: PEM file of the certificate authority to trust (default: the system's)")
	f.StringVar(&a.keyFile, "key", "", "with --server: file of the private key (JWK)")
	f.StringVar(&a.as, "as", "", "with --server: ID of the operator or service whose key --key is")
	_ = root.RegisterFlagCompletionFunc("context", func(c *cobra.Command, _ []string, start string) ([]string, cobra.ShellCompDirective) {
		return a.contextNames(c, nil, start)
	}) // fails only for a flag that does not exist
}

// chooseData sets the data folder and where its name is from. A second call changes nothing.
func (a *app) chooseData() error {
	switch env := os.Getenv("WATCHWORD_DATA"); {
	case a.dataFrom != 0:
	case a.data != "":
		a.dataFrom = fromFlag
	case env != "":
		a.data, a.dataFrom = env, fromEnvironment
	default:
		a.data, a.dataFrom = defaultData(), fromDefault
	}
	if a.server == "" && (a.caFile != "" || a.keyFile != "" || a.as != "") {
		return usage("--cafile, --key and --as are used with --server URL")
	}
	if a.server != "" && (a.keyFile == "" || a.as == "") {
		return usage("--server requires --key FILE and --as ID: the private key, and the operator or service whose key it is")
	}
	return nil
}

// defaultData is the data folder if neither --data nor WATCHWORD_DATA is set.
func defaultData() string {
	if d := os.Getenv("XDG_DATA_HOME"); d != "" {
		return filepath.Join(d, "watchword")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "watchword-data"
	}
	return filepath.Join(home, ".local", "share", "watchword")
}

// chosen is the server that a command talks to, of the ways to name one. Exactly one field is set.
type chosen struct {
	flags   bool   // --server, --key and --as
	data    string // data folder
	context string // name of a context
}

// choose returns the server that a command talks to. The first of these that is given counts: --server, --data, --context,
// WATCHWORD_DATA, WATCHWORD_CONTEXT, the current context, the default data folder. current returns the current context; empty
// for none.
func (a *app) choose(environment string, current func() (string, error)) (chosen, error) {
	switch {
	case a.server != "":
		return chosen{flags: true}, nil
	case a.dataFrom == fromFlag:
		return chosen{data: a.data}, nil
	case a.context != "":
		return chosen{context: a.context}, nil
	case a.dataFrom == fromEnvironment:
		return chosen{data: a.data}, nil
	case environment != "":
		return chosen{context: environment}, nil
	}
	name, err := current()
	if err != nil || name != "" {
		return chosen{context: name}, err
	}
	return chosen{data: a.data}, nil
}

// contexts opens the contexts of the user.
func (a *app) contexts() (*contexts.Store, error) {
	return contexts.Open(func(err error) {
		if !a.completes {
			a.err.Printf("watchword: %s\n", truncateReason(errorText(err)))
		}
	})
}

// chosenTarget is [app.choose] with the environment and the contexts of this process. store is nil without a home folder.
func (a *app) chosenTarget() (to chosen, store *contexts.Store, err error) {
	store, storeErr := a.contexts()
	to, err = a.choose(os.Getenv("WATCHWORD_CONTEXT"), func() (string, error) {
		if storeErr != nil {
			return "", nil // without a home folder there are no contexts
		}
		f, err := store.Read()
		return f.Current, err
	})
	if err == nil && to.context != "" && storeErr != nil {
		err = storeErr
	}
	return to, store, err
}

// options returns the options of a client of the server that [app.choose] names.
func (a *app) options() (o admin.Options, store *contexts.Store, err error) {
	to, store, err := a.chosenTarget()
	switch {
	case err != nil:
	case to.flags:
		o, err = a.flagOptions()
	case to.context != "":
		o, err = store.Options(to.context)
		if err == nil {
			err = a.warnOfKeyEnd(store, to.context, time.Now())
		}
	default:
		o, err = a.localOptions(to.data)
		if watchword.CodeOf(err) == watchword.NotFound && a.dataFrom == fromDefault {
			err = watchword.Refuse(watchword.NotFound, "no server was started with the data folder %s, and this user is logged in to none: start a server with %s, name the data folder of one with --data or WATCHWORD_DATA, or log in to a server of another machine with %s",
				to.data, runnable("watchword serve"), runnable("watchword login LINK"))
		}
	}
	return o, store, err
}

// localOptions is [admin.LocalOptions]. Where no server was started with the folder it waits for the first start, which may be going on,
// unless the folder is the default one and does not exist.
func (a *app) localOptions(dir string) (admin.Options, error) {
	for end := time.Now().Add(admin.StartWait); ; time.Sleep(50 * time.Millisecond) {
		o, err := admin.LocalOptions(dir)
		_, started := os.Stat(filepath.Join(dir, "server.json"))
		_, exists := os.Stat(dir)
		if err == nil || started == nil || exists != nil && a.dataFrom == fromDefault || a.completes || time.Now().After(end) {
			return o, err
		}
	}
}

// keyEndWarning is how long before its end a key is warned of.
const keyEndWarning = 7 * 24 * time.Hour

// warnOfKeyEnd says, once in a command, that the key of a context ends soon, or has ended.
func (a *app) warnOfKeyEnd(store *contexts.Store, name string, now time.Time) error {
	f, err := store.Read()
	if err != nil {
		return err
	}
	c := f.Contexts[name]
	if a.warned || a.completes || c.KeyEnds == nil || now.Before(c.KeyEnds.Add(-keyEndWarning)) {
		return nil
	}
	a.warned = true
	verb := "ends"
	if !now.Before(*c.KeyEnds) {
		verb = "has ended"
	}
	a.err.Printf("warning: the key of context %s %s at %s. An operator makes a link for a new one (%s, or service link for a service); then log in with it under another name\n", name, verb, formatTime(*c.KeyEnds), runnable("watchword operator link "+string(c.Subject)))
	return nil
}

// noteKeyEnd asks the server for the end of the key of a context and stores it, so that later commands warn of it.
func (a *app) noteKeyEnd(ctx context.Context, store *contexts.Store, name string) error {
	o, err := store.Options(name)
	if err != nil {
		return err
	}
	o.TokenCache, o.Notice = store.TokenCache(o), a.showNotice
	cl, err := admin.New(o)
	if err != nil {
		return err
	}
	s, err := cl.Self(ctx)
	if err != nil {
		return err
	}
	return store.SetKeyEnds(ctx, name, s.Token.KeyEndsAt)
}

// flagOptions returns the options of --server, --cafile, --key and --as.
func (a *app) flagOptions() (o admin.Options, err error) {
	o = admin.Options{URL: a.server, Subject: watchword.SubjectID(a.as)}
	if a.caFile != "" {
		const most = 1 << 20
		if o.CA, err = readTrusted(a.caFile, most); err != nil {
			return o, err
		}
	}
	o.Key, err = contexts.ReadKey(a.keyFile)
	if errors.Is(err, fs.ErrNotExist) {
		err = watchword.Wrap(err, watchword.NotFound, "file %s does not exist", a.keyFile)
	}
	return o, err
}

// serverName says which server commands talk to, in a sentence.
func (a *app) serverName() string {
	switch to, _, err := a.chosenTarget(); {
	case err == nil && to.context != "":
		return "the server of context " + to.context
	case err == nil && to.flags:
		return "the server"
	}
	return "the server on this machine"
}

// confirmAtServer is [app.confirm] for an act at the server that [app.choose] names. The question names the server unless it is
// on this machine: a person with several contexts may mean another one.
func (a *app) confirmAtServer(yes bool, question string) error {
	if yes {
		return nil
	}
	if o, _, err := a.options(); err == nil && o.Dial == "" { // the act itself returns the error
		question += " at " + o.URL + ", as " + string(o.Subject)
	}
	return a.confirm(false, question)
}

// client returns the client of the server that [app.choose] names. Its tokens are bound to the key and kept until they end, so
// that a command does not request its own.
func (a *app) client() (*admin.Client, error) {
	o, store, err := a.options()
	if err != nil {
		return nil, err
	}
	o.Issuer = cmp.Or(o.Issuer, o.URL)
	if store != nil {
		o.TokenCache = store.TokenCache(o)
	}
	o.Notice = a.showNotice
	o.StreamLost = func(err error, pause time.Duration) {
		a.err.Printf("connection lost: %v; trying again in %s\n", err, pause.Round(100*time.Millisecond))
	}
	return admin.New(o)
}
