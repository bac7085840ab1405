package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/jose"
)

// Which server a command talks to, of all ways to name one: docs/operations.md has the same order.
func TestServerIsChosenInAStatedOrder(t *testing.T) {
	flags, data, named := []string{"--server", "https://a", "--key", "k", "--as", "s"}, []string{"--data", "flag"}, []string{"--context", "flag"}
	unreadable := errors.New("unreadable")
	for _, c := range []struct {
		name             string
		args             [][]string
		envData, envName string
		current          string
		err              error
		want             chosen
	}{
		{"nothing is given", nil, "", "", "", nil, chosen{data: "default"}},
		{"there is a current context", nil, "", "", "current", nil, chosen{context: "current"}},
		{"the contexts cannot be read", nil, "", "", "", unreadable, chosen{}},
		{"WATCHWORD_CONTEXT", nil, "", "env", "current", nil, chosen{context: "env"}},
		{"WATCHWORD_DATA", nil, "env", "env", "current", nil, chosen{data: "env"}},
		{"WATCHWORD_DATA, and contexts that cannot be read", nil, "env", "", "", unreadable, chosen{data: "env"}},
		{"--context", [][]string{named}, "env", "env", "current", nil, chosen{context: "flag"}},
		{"--data", [][]string{named, data}, "env", "env", "current", nil, chosen{data: "flag"}},
		{"--server", [][]string{data, named, flags}, "env", "env", "current", unreadable, chosen{flags: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("WATCHWORD_DATA", c.envData)
			t.Setenv("XDG_DATA_HOME", "/x")
			a := &app{out: terminal.New(&screen{}, false), err: terminal.New(&screen{}, false), format: "table"}
			root := a.root()
			var args []string
			for _, some := range c.args {
				args = append(args, some...)
			}
			if err := root.ParseFlags(args); err != nil {
				t.Fatal(err)
			}
			for range 2 { // completion prepares once more
				if err := a.prepare(); err != nil {
					t.Fatal(err)
				}
			}
			got, err := a.choose(c.envName, func() (string, error) { return c.current, c.err })
			if c.want == (chosen{}) {
				if !errors.Is(err, unreadable) {
					t.Errorf("got %+v, %v", got, err)
				}
				return
			}
			if c.want.data == "default" {
				c.want.data = filepath.Join("/x", "watchword")
			}
			if got != c.want || err != nil {
				t.Errorf("got %+v, %v, want %+v", got, err, c.want)
			}
		})
	}
}

// The options that name a server together are refused alone.
func TestServerOptionsAreGivenTogether(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	t.Setenv("XDG_CACHE_HOME", os.Getenv("XDG_CONFIG_HOME"))
	for _, args := range [][]string{
		{"--key", "k"},
		{"--cafile", "f"},
		{"--as", "s"},
		{"--server", "https://localhost"},
		{"--server", "https://localhost", "--key", "k"},
		{"--server", "https://localhost", "--as", "s"},
	} {
		out, errs := &screen{}, &screen{}
		if status := run(t.Context(), append(args, "device", "list"), terminal.New(out, false), terminal.New(errs, false)); status != 2 {
			t.Errorf("%v: status %d: %s", args, status, errs)
		}
	}
}

// A command that begins before the first start of a server finds it.
func TestCommandsWaitForTheFirstStart(t *testing.T) {
	dir := t.TempDir()
	key, err := jose.GenerateKey(jose.P256)
	if err != nil {
		t.Fatal(err)
	}
	found := make(chan error, 1)
	go func() {
		o, err := (&app{target: target{dataFrom: fromFlag}}).localOptions(dir)
		if err == nil && o.Dial != "127.0.0.1:8443" {
			err = errors.New("the address is " + o.Dial)
		}
		found <- err
	}()
	for _, f := range []struct{ name, text string }{{"operator.jwk", string(key.JWK())}, {"server.json", `{"https":"127.0.0.1:8443"}`}} { // as a start writes them
		path := filepath.Join(dir, f.name)
		if err := os.WriteFile(path+".new", []byte(f.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	if err := testwait.For(t, "the options", found); err != nil {
		t.Error(err)
	}
	if _, err := (&app{target: target{dataFrom: fromDefault}}).localOptions(filepath.Join(dir, "none")); watchword.CodeOf(err) != watchword.NotFound {
		t.Errorf("without a server: %v", err)
	}
}
