package server

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/spelling"
)

// variablePrefix is what the names of all variables of this program begin with.
const variablePrefix = "WATCHWORD_"

// otherVariables are the variables that are no keys of the configuration: of the command line tool, of programs that an agent runs
// (which may call the tool), and of the tests of this program, which hand their environment to the servers that they start.
var otherVariables = []string{
	"WATCHWORD_DATA", "WATCHWORD_CONTEXT",
	"WATCHWORD_COMMAND", "WATCHWORD_FUNCTION", "WATCHWORD_BY", "WATCHWORD_SEQ", "WATCHWORD_RUN",
	"WATCHWORD_OUTSIDE", "WATCHWORD_MUTANT", "WATCHWORD_EVERY_BYTE", "WATCHWORD_WIRE_TRACE", "WATCHWORD_TEST_AS_ANOTHER", "WATCHWORD_TEST_SEED",
}

// serviceVariable matches the variables that Kubernetes sets in each container for each service of the namespace: a service named
// watchword has WATCHWORD_SERVICE_HOST and WATCHWORD_PORT_8443_TCP. No key of the configuration has such a name.
var serviceVariable = regexp.MustCompile(`_SERVICE_HOST$|_SERVICE_PORT(_[A-Z0-9_]+)?$|_PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$`)

// CheckVariables refuses a variable of the environment, each as NAME=VALUE, whose name begins with WATCHWORD_ and is none that this
// program reads: it is misspelt, and what it was to set would not be set. The error names the nearest one, and no value. nil means
// [os.Environ]. Code: config_invalid.
func CheckVariables(environ []string) error {
	if environ == nil {
		environ = os.Environ()
	}
	var unknown []string
	keys := keyVariables()
	for _, e := range environ {
		name, _, _ := strings.Cut(e, "=")
		if strings.HasPrefix(name, variablePrefix) && keys[name] == "" && !slices.Contains(otherVariables, name) && !serviceVariable.MatchString(name) {
			unknown = append(unknown, name)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	name := slices.Min(unknown) // one of them, the same at each call
	for _, key := range absentKeys {
		if variable(key) == name {
			return watchword.Refuse(watchword.ConfigInvalid, "%s: %s is not in this version: remove the variable", name, key)
		}
	}
	for old, now := range renamedKeys {
		if variable(old) == name {
			return watchword.Refuse(watchword.ConfigInvalid, "unknown variable %s; it was renamed to %s", name, variable(now))
		}
	}
	hint := ""
	if near := nearestVariable(name, keys); near != "" {
		hint = fmt.Sprintf("; did you mean %s?", near)
	}
	return watchword.Refuse(watchword.ConfigInvalid, "unknown variable %s%s", name, hint)
}

// keyVariables returns the variables of the keys of the configuration, with their keys.
func keyVariables() map[string]string {
	out := map[string]string{}
	c := Defaults()
	_ = eachKey(&c, func(section, key string, _ reflect.Value, _ bool) error { // the callback returns no error
		out[variable(section+"."+key)] = section + "." + key
		return nil
	})
	return out
}

// nearestVariable returns the variable of a key, WATCHWORD_DATA or WATCHWORD_CONTEXT whose name is nearest to name; "" if none is near.
func nearestVariable(name string, keys map[string]string) string {
	known := []string{"WATCHWORD_DATA", "WATCHWORD_CONTEXT"}
	for v := range keys {
		known = append(known, v)
	}
	slices.Sort(known)
	return spelling.Nearest(name, known, 3)
}
