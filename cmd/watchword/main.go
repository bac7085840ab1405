// Command watchword is the server, the operator's command line tool and the device agent in one binary. Results go to standard
// output, everything else to standard error. Secrets are not accepted as command line arguments: a file or standard input
// carries them.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/internal/terminal"
)

// main is the only function that uses the standard streams: all others print through the two writers.
func main() {
	os.Exit(run(context.Background(), os.Args[1:], terminal.New(os.Stdout, isTerminal(os.Stdout)).SetWidth(width(os.Stdout)), terminal.New(os.Stderr, isTerminal(os.Stderr))))
}

// run runs a command line until it ends or ctx does, and returns the exit status.
func run(ctx context.Context, args []string, out, errs *terminal.Writer) int {
	ctx, stop := untilSignal(ctx)
	defer stop()
	slog.SetDefault(slog.New(slog.NewTextHandler(errs, nil))) // serve sets its own
	a := &app{out: out, err: errs}
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return 1
	}
	return a.report(err)
}

// untilSignal returns a context that ends at the first SIGINT or SIGTERM. The second one ends the process at once, as if it were not
// handled.
func untilSignal(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	c := make(chan os.Signal, 2)
	signal.Notify(c, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case <-c:
			cancel()
		case <-ctx.Done():
		}
		signal.Stop(c) // from now on the system's default applies
		select {
		case s := <-c: // it came before
			endBySignal(s)
		default:
		}
	}()
	return ctx, cancel
}

// endBySignal ends the process by a signal that is not handled any more.
func endBySignal(s os.Signal) {
	p, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = p.Signal(s)
	}
	if err != nil { // a process cannot signal itself on Windows
		os.Exit(1)
	}
}

// exitError is an error with a given exit status, whose message, if any, was already printed.
type exitError struct{ status int }

func (e *exitError) Error() string { return fmt.Sprintf("exit %d", e.status) }

// usageError is the error of an invalid command line.
type usageError struct{ err error }

func (u *usageError) Error() string { return u.err.Error() }

func usage(format string, a ...any) error { return &usageError{fmt.Errorf(format, a...)} }

// exitStatusByCode maps codes to exit statuses.
var exitStatusByCode = map[watchword.Code]int{
	watchword.BadRequest:           2,
	watchword.TooLarge:             2,
	watchword.UnsupportedMediaType: 1,
	watchword.MethodNotAllowed:     1,
	watchword.NotFound:             3,
	watchword.Conflict:             4,
	watchword.PreconditionFailed:   4,
	watchword.Denied:               5,
	watchword.ExceedsOwn:           5,
	watchword.Unauthenticated:      5,
	watchword.RateLimited:          7,
	watchword.Busy:                 7,
	watchword.Unavailable:          1,
	watchword.ClockUntrusted:       1,
	watchword.Superseded:           1,
	watchword.TimedOut:             7,
	watchword.ClientInvalid:        5,
	watchword.GrantUnsupported:     1,
	watchword.ScopeInvalid:         5,
	watchword.TargetInvalid:        2,
	watchword.ProofRequired:        5,
	watchword.DPoPInvalid:          8,
	watchword.DPoPNonce:            5,
	watchword.TokenMalformed:       8,
	watchword.TokenKind:            8,
	watchword.AlgorithmInvalid:     8,
	watchword.KeyUnknown:           8,
	watchword.SignatureInvalid:     8,
	watchword.TokenExpired:         5,
	watchword.TokenEarly:           5,
	watchword.TokenLifetime:        8,
	watchword.IssuerMismatch:       8,
	watchword.AudienceMismatch:     8,
	watchword.TokenReplayed:        5,
	watchword.TokenUnrecorded:      5,
	watchword.TokenRevoked:         5,
	watchword.IssuerRevoked:        5,
	watchword.TokenTooLarge:        1,
	watchword.SubjectNew:           5,
	watchword.SubjectSuspended:     5,
	watchword.SubjectRevoked:       5,
	watchword.SessionClosed:        1,
	watchword.CodeInvalid:          5,
	watchword.ProofInvalid:         8,
	watchword.PairingPending:       7,
	watchword.PairingSlow:          7,
	watchword.PairingRejected:      5,
	watchword.PairingExpired:       7,
	watchword.PinMismatch:          8,
	watchword.BundleInvalid:        8,
	watchword.PeerUntrusted:        8,
	watchword.PolicyInvalid:        1,
	watchword.ArgsInvalid:          2,
	watchword.FunctionUnknown:      3,
	watchword.OrderInvalid:         8,
	watchword.CommandUnsealed:      8,
	watchword.CommandStale:         8,
	watchword.CommandExpired:       7,
	watchword.NonceMismatch:        8,
	watchword.ReceiptInvalid:       8,
	watchword.CommandRefused:       6,
	watchword.CommandFailed:        1,
	watchword.CommandUnlogged:      8,
	watchword.LogInvalid:           8,
	watchword.BackupInvalid:        8,
	watchword.ConfigInvalid:        2,
	watchword.FolderInUse:          4,
	watchword.FolderNewer:          4,
	watchword.KeyExposed:           1,
	watchword.FileUntrusted:        1,
	watchword.KeyMissing:           1,
	watchword.KeyUnwrap:            8,
	watchword.KeyDamaged:           8,
	watchword.Internal:             1,
}

// report prints an error on standard error and returns its exit status.
func (a *app) report(err error) int {
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.status
	}
	code := watchword.CodeOf(err)
	status, ok := exitStatusByCode[code]
	if !ok {
		status = 1
	}
	if u, ok := errors.AsType[*usageError](err); ok {
		a.err.Printf("watchword: %s\n", truncateReason(u.Error()))
		return 2
	}
	e, ours := errors.AsType[*watchword.Error](err)
	if ours {
		shown := *e
		shown.Detail = strings.TrimSuffix(e.Detail, "; see docs/errors.md") // the page is named below, or is the type
		e = &shown
	}
	if a.format != "table" {
		if p, ok := errors.AsType[*rest.Problem](err); ok {
			_ = a.err.JSON(json.RawMessage(p.Document), false) // it was parsed as JSON; an error of standard error cannot be reported
			return status
		}
		detail := err.Error()
		if ours {
			detail = e.Detail
		}
		a.printProblem(code, detail)
		return status
	}
	switch {
	case !ours:
		a.err.Printf("watchword: %s\n", truncateReason(err.Error()))
		if strings.HasPrefix(err.Error(), "unknown ") || strings.Contains(err.Error(), "arg(s)") || strings.Contains(err.Error(), "flag") {
			return 2 // cobra's own error for an invalid command line
		}
	case e.Field != "" && e.Detail != "":
		a.err.Printf("watchword: %s %s\n", truncateReason(e.Field), truncateReason(e.Detail))
	case e.Detail != "":
		a.err.Printf("watchword: %s\n", truncateReason(e.Detail))
	default:
		a.err.Printf("watchword: %s\n", truncateReason(string(code)))
	}
	if ours {
		a.err.Printf("see: %s\n", code.Page())
	}
	if ours && e.Rule != "" {
		a.err.Printf("rule: %s\n", truncateReason(e.Rule))
	}
	if h := hintByCode[code]; h != "" {
		a.err.Printf("hint: %s\n", runnable(h))
	}
	return status
}

// maxReason is the maximum size of each text of an error that is printed, in bytes: a server may send any text. JSON has it
// unshortened.
const maxReason = 2000

func truncateReason(s string) string {
	if len(s) <= maxReason {
		return s
	}
	return fmt.Sprintf("%s… (%d bytes)", strings.ToValidUTF8(s[:maxReason], ""), len(s))
}

// hintByCode is the suggested next step for a code.
var hintByCode = map[watchword.Code]string{
	watchword.Denied:          "watchword policy explain shows which rule decided",
	watchword.Unavailable:     "check that the server runs (watchword serve), and which server this tool uses: watchword context list, --data or WATCHWORD_DATA",
	watchword.ClockUntrusted:  "set the clock of the server's machine; watchword clock show says what is wrong, and watchword clock accept vouches for the clock as it is",
	watchword.Superseded:      "use the server that was restored, and stop this one",
	watchword.CodeInvalid:     "a link is valid once, and for a limited time: watchword device link ID, watchword operator link NAME and watchword service link NAME make a new one",
	watchword.ClientInvalid:   "the key may have been revoked, or have ended: watchword operator link NAME, service link NAME or device link ID makes a link for a new one",
	watchword.PinMismatch:     "with a link, make a new one (watchword device link ID, watchword operator link NAME), and check which server answers at that address; with a backup, compare --root with the pin that your devices have",
	watchword.PairingExpired:  "run watchword agent pair or watchword login again; it keeps the same keys",
	watchword.FunctionUnknown: "watchword device show ID lists what the device announced",
	watchword.RateLimited:     "wait a moment and try again",
}

// root returns the command of the program with all others, and with completions.
func (a *app) root() *cobra.Command {
	root := a.commandTree()
	a.addCompletions(root)
	return root
}

func (a *app) commandTree() *cobra.Command {
	root := &cobra.Command{
		Use:           "watchword",
		Short:         "Identity and control for IoT devices",
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.Args = knownSubcommand
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		if strings.HasPrefix(err.Error(), "unknown shorthand flag") { // a key's ID may begin with a dash
			err = fmt.Errorf("%w; put -- before an argument that begins with a dash: %s -- …", err, c.CommandPath())
		}
		if name, ok := strings.CutPrefix(err.Error(), "unknown flag: --"); ok {
			err = fmt.Errorf("unknown flag --%s of %s%s; see %s --help", name, c.CommandPath(), didYouMean("--", name, flagNames(c)), runnable(c.CommandPath()))
		}
		return &usageError{err}
	})
	f := root.PersistentFlags()
	f.StringVarP(&a.format, "output", "o", "table", "output format: table, json or jsonl")
	f.BoolVar(&a.json, "json", false, "same as -o json")
	a.addTargetFlags(root)
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return a.prepare() }
	root.AddCommand(
		a.serveCommand(), a.demoCommand(), a.backupCommand(), a.restoreCommand(), a.clockCommand(), a.addressCommand(),
		a.loginCommand(), a.logoutCommand(), a.whoamiCommand(), a.contextCommand(), a.operatorCommand(), a.serviceCommand(), a.noticeCommand(),
		a.deviceCommand(), a.enrollmentCommand(), a.trustCommand(), a.commandCommand(), a.twinCommand(), a.eventCommand(), a.sessionCommand(), a.retainedCommand(),
		a.policyCommand(), a.tokenCommand(), a.keyCommand(), a.auditCommand(),
		a.agentCommand(), a.simCommand(), a.versionCommand(),
	)
	root.CompletionOptions.HiddenDefaultCmd = false
	return root
}

// commandGroup is a command that only has subcommands.
func commandGroup(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: knownSubcommand, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(subs...)
	return c
}

// positional wraps cobra's check so that it returns a usageError.
func positional(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, a []string) error {
		if err := check(c, a); err != nil {
			return usage("%s: %s; see %s --help", c.CommandPath(), err, runnable(c.CommandPath()))
		}
		return nil
	}
}
