package watchword_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"testing"
)

// openers opens files by their names. Code that trusts their content reads them through internal/durable, which checks
// owner, mode and folders first.
var openers = map[string]bool{
	"os.ReadFile": true, "os.Open": true, "os.OpenFile": true, "os.Create": true, "os.CreateTemp": true, "os.ReadDir": true, "os.DirFS": true, "os.OpenRoot": true,
	"os.OpenInRoot": true, "os.WriteFile": true, "os.MkdirAll": true, "os.Mkdir": true, "os.MkdirTemp": true, "os.CopyFS": true, "tls.LoadX509KeyPair": true,
	"ioutil.ReadFile": true, "ioutil.ReadDir": true, "syscall.Open": true, "unix.Open": true, "toml.LoadFile": true, "rand.Open": true,
}

// untrustedOpens is where files are opened in another way, as "file function call", and why that may be.
var untrustedOpens = map[string]string{
	"sdk/agent/line_queue.go OpenLineQueue os.OpenFile": "durable.CheckPrivate comes first",
	"sdk/agent/line_queue.go writeSent os.OpenFile":     "it is only written",
	"sdk/agent/line_queue.go compact os.OpenFile":       "it was just written by durable.Replace",
	"server/sqlite/store.go Open os.OpenFile":           "server.openData checked the folder and the file",
	"server/verify_log.go VerifyLog os.ReadFile":        "one more checkpoint that the log must extend; it can only refuse",

	"server/backup/journal.go CreateJournal os.OpenFile":      "a new file",
	"server/backup/journal.go openJournal os.OpenFile":        "durable.CheckFile checked it, and each frame is authenticated",
	"server/backup/journal_read.go read os.Open":              "likewise",
	"server/backup_journal.go journalFiles os.ReadDir":        "names of files alone",
	"server/backup/extract.go member os.MkdirAll":             "a new folder of the caller",
	"server/backup/extract.go member os.OpenFile":             "a new file in that folder",
	"server/backup_verify.go VerifyBackup os.Open":            "a backup, whose content is verified",
	"server/backup_verify.go VerifyBackup os.MkdirTemp":       "a folder of its own (0700)",
	"server/backup_verify.go checkRestoredConfig os.ReadFile": "in that folder",
	"server/restore_target.go newRestoreTarget os.Mkdir":      "a folder of its own (0700)",
	"server/restore_target.go newRestoreTarget os.ReadDir":    "whether the folder is empty",
	"server/restore.go extract os.Open":                       "a backup, whose content is verified",
	"server/restore_source.go readChanges os.ReadFile":        "a checkpoint, which is verified",
	"server/restore_source.go readChanges os.Open":            "an export or a checkpoint, which is verified",
	"server/restore_against.go readKeptCheckpoint os.Open":    "a checkpoint, which is verified",
	"server/restore_source.go readExport os.Open":             "likewise",

	"sdk/agent/tree_linux.go makeCgroup os.Mkdir":       "a control group below the own one: the kernel's file system",
	"sdk/agent/tree_linux.go makeCgroup os.Open":        "likewise",
	"sdk/agent/tree_linux.go killOnce os.WriteFile":     "likewise",
	"sdk/agent/tree_linux.go killOnce os.ReadFile":      "likewise",
	"sdk/agent/tree_linux.go processes os.Open":         "/proc, the kernel's",
	"sdk/agent/tree_linux.go readProcess os.ReadFile":   "likewise",
	"sdk/agent/tree_linux.go marked os.ReadFile":        "likewise",
	"sdk/agent/tree_linux.go readOwnCgroup os.ReadFile": "likewise",

	"internal/testport/port.go lock os.MkdirAll": "lock files of tests, which have no content",
	"internal/testport/port.go lock os.OpenFile": "likewise",

	"server/internal/localsocket/peer_linux.go address os.Open": "the data folder, to name it: nothing is read",

	"cmd/watchword/app.go readInput os.Open":                "what the user who runs it names, to be checked or sent; not whom to trust (readTrust)",
	"cmd/watchword/audit_verify.go file os.Open":            "an export or a proof, which is verified",
	"cmd/watchword/audit_verify.go mirrorDir os.ReadFile":   "a mirror of the log, which is verified",
	"cmd/watchword/audit_mirror.go mirrorOnce os.MkdirAll":  "a mirror of the log: it is verified before it is used",
	"cmd/watchword/audit_mirror.go mirrorOnce os.MkdirTemp": "likewise",
	"cmd/watchword/audit_mirror.go mirrorOnce os.WriteFile": "likewise",
	"cmd/watchword/audit.go auditExport os.OpenFile":        "a new file, for output",
	"cmd/watchword/demo.go demo os.MkdirTemp":               "a folder of its own (0700)",
	"cmd/watchword/demo.go demo os.OpenFile":                "in that folder",
	"cmd/watchword/sim.go sim os.MkdirTemp":                 "a folder of its own (0700)",
	"cmd/watchword/sim.go sim os.OpenFile":                  "output alone",
}

func TestTrustedFilesAreReadInOneWay(t *testing.T) {
	used := map[string]bool{}
	for _, s := range sources(t) {
		if dir := path.Dir(s.path); s.test || s.pkg == "bench" || s.pkg == "attack" || dir == "internal/durable" {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), s.path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			name := ""
			if fn, ok := d.(*ast.FuncDecl); ok {
				name = fn.Name.Name
			}
			ast.Inspect(d, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr) // a call, or the function as a value
				if !ok {
					return true
				}
				pkg, ok := sel.X.(*ast.Ident)
				if !ok || !openers[pkg.Name+"."+sel.Sel.Name] {
					return true
				}
				key := s.path + " " + name + " " + pkg.Name + "." + sel.Sel.Name
				if used[key] = true; untrustedOpens[key] == "" {
					t.Errorf("%q opens a file without internal/durable: read it with durable.ReadTrusted or ReadPrivate, make folders with durable.Folder, or say in unbelieved why it is not trusted", key)
				}
				return true
			})
		}
	}
	for key := range untrustedOpens {
		if !used[key] {
			t.Errorf("%q is on the list and opens nothing", key)
		}
	}
}
