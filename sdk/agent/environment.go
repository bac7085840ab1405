package agent

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/watchword-iot/watchword/sdk/device"
)

// inherited are the variables of the agent's environment that every program gets, besides those that begin with "LC_". All
// others, which may be secret, must be named in the functions file.
var inherited = map[string]bool{
	"PATH": true, "HOME": true, "USER": true, "LOGNAME": true, "SHELL": true,
	"LANG": true, "LANGUAGE": true, "TZ": true, "TMPDIR": true, "XDG_RUNTIME_DIR": true,
}

// inheritedWindows are the variables without which Windows programs do not run.
var inheritedWindows = map[string]bool{
	"SYSTEMROOT": true, "SYSTEMDRIVE": true, "WINDIR": true, "COMSPEC": true, "PATHEXT": true, "TEMP": true, "TMP": true,
	"USERPROFILE": true, "USERNAME": true, "PROGRAMDATA": true, "PROGRAMFILES": true, "APPDATA": true, "LOCALAPPDATA": true,
}

// defaultPath is a program's PATH if the agent has none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// runMark is the variable that identifies the processes of one run.
const runMark = "WATCHWORD_RUN"

// reservedPrefix is the prefix of the variables that only the agent sets.
const reservedPrefix = "WATCHWORD_"

// environment returns the environment of a program: the inherited variables of the agent, those that the function passes
// on, those that it sets, and those of the command. A later one replaces an earlier one of the same name ([os/exec.Cmd]).
func environment(f Function, c *device.Command, mark string) []string {
	var env []string
	if runtime.GOOS != "windows" {
		env = append(env, "PATH="+defaultPath)
	}
	pass := map[string]bool{}
	for _, name := range f.Pass {
		pass[name] = true
	}
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if inherited[name] || strings.HasPrefix(name, "LC_") || pass[name] || runtime.GOOS == "windows" && (inherited[strings.ToUpper(name)] || inheritedWindows[strings.ToUpper(name)]) {
			env = append(env, v)
		}
	}
	for name, value := range f.Env {
		env = append(env, name+"="+value)
	}
	return append(env,
		"WATCHWORD_COMMAND="+string(c.ID), "WATCHWORD_FUNCTION="+c.Function, "WATCHWORD_BY="+string(c.By), fmt.Sprintf("WATCHWORD_SEQ=%d", c.Seq),
		runMark+"="+mark)
}

// validVariable reports whether a function may set or pass on a variable of this name.
func validVariable(name string) bool {
	return name != "" && !strings.ContainsAny(name, "=\x00") && !strings.HasPrefix(name, reservedPrefix)
}
