package server_test

import (
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
)

// seedVariable is the environment variable with the seed of a run that is to be repeated.
const seedVariable = "WATCHWORD_TEST_SEED"

// randomActs does acts of authority by chance. Acts that do not fit are refused, which is as good.
type randomActs struct {
	t    *testing.T
	r    *rand.Rand
	a    *admin.Client
	link map[string]string // the last link of each subject
	done map[string]int    // acts that were carried out, by kind
}

func (x *randomActs) pick(of ...string) string { return of[x.r.IntN(len(of))] }

func (x *randomActs) labels() watchword.Labels {
	l := watchword.Labels{}
	for _, k := range []string{"site", "kind", "role"} {
		if x.r.IntN(2) == 0 {
			l[k] = x.pick("a", "b", "c")
		}
	}
	return l
}

// act does one. Only refusals for what the acts before did are accepted.
func (x *randomActs) act() {
	x.t.Helper()
	kind, err := x.try()
	switch code := watchword.CodeOf(err); {
	case err == nil:
		x.done[kind]++
	case slices.Contains([]watchword.Code{watchword.Conflict, watchword.NotFound, watchword.CodeInvalid, watchword.BadRequest, watchword.RateLimited}, code):
	default:
		x.t.Errorf("%s: %v", kind, err)
	}
}

func (x *randomActs) try() (kind string, err error) {
	ctx, a := x.t.Context(), x.a
	switch x.r.IntN(10) {
	case 0:
		name := x.pick("p", "q", "r")
		if x.r.IntN(4) == 0 {
			return "policy delete", a.DeletePolicy(ctx, name)
		}
		text := fmt.Sprintf("subjects = [%q]\n[[allow]]\npublish = [\"x/%d\"]\n", "lamp-"+strconv.Itoa(x.r.IntN(14)), x.r.IntN(3))
		_, err = a.ApplyPolicy(ctx, name, []byte(text), -1)
		return "policy apply", err
	case 1, 2, 3:
		return x.person("operator", a.Operators())
	case 4:
		return x.person("service", a.Services())
	case 5:
		if x.r.IntN(4) > 0 {
			break
		}
		_, err = a.RotateKey(ctx, x.pick("issuer", "command"), true)
		return "key rotate", err
	}
	name := "lamp-" + strconv.Itoa(x.r.IntN(14))
	id := watchword.SubjectID(name)
	switch x.r.IntN(12) {
	case 0, 1, 2:
		d, err := a.CreateDeviceWithProof(ctx, id, x.labels(), x.pick("", "required"), time.Hour)
		if err != nil {
			return "device create", err
		}
		x.done["device create"]++
		if x.link[name] = d.Enrollment.Link; x.r.IntN(4) == 0 {
			return "device wait", nil
		}
		return "device enroll", x.enrollDevice(name)
	case 3, 4, 5:
		return "device enroll", x.enrollDevice(name)
	case 6:
		_, err = a.SetLabels(ctx, id, x.labels(), 0)
		return "device labels", err
	case 7:
		_, err = a.SetProof(ctx, id, x.pick("", "required"))
		return "device proof", err
	case 8:
		_, err = a.Suspend(ctx, id, "")
		return "device suspend", err
	case 9:
		_, err = a.Resume(ctx, id)
		return "device resume", err
	case 10:
		_, err = a.Revoke(ctx, id, "")
		return "device revoke", err
	}
	if x.r.IntN(6) > 0 {
		e, err := a.Link(ctx, id, time.Hour)
		if err != nil {
			return "device link", err
		}
		x.link[name] = e.Link
		return "device enroll again", x.enrollDevice(name)
	}
	return "device delete", a.DeleteDevice(ctx, id)
}

// enrollDevice enrolls new keys with the last link of a device.
func (x *randomActs) enrollDevice(name string) error {
	d, err := device.OpenWith(filepath.Join(x.t.TempDir(), "d"), device.Options{Log: quiet.Log})
	must(x.t, err)
	return errors.Join(d.Enroll(x.t.Context(), x.link[name]), d.Close())
}

// person does an act with an operator or a service.
func (x *randomActs) person(kind string, m admin.Subjects) (what string, err error) {
	ctx, name := x.t.Context(), kind+"-"+strconv.Itoa(x.r.IntN(6))
	id := watchword.SubjectID(name)
	switch x.r.IntN(11) {
	case 0, 1:
		made, err := x.addPerson(kind, id)
		if err != nil {
			return kind + " create", err
		}
		x.done[kind+" create"]++
		x.link[name] = made
		return kind + " enroll", x.enrollPerson(name)
	case 2, 3:
		return kind + " enroll", x.enrollPerson(name)
	case 4, 5:
		e, err := m.Link(ctx, id, time.Hour, time.Duration(x.r.IntN(2))*24*time.Hour)
		if err != nil {
			return kind + " link", err
		}
		x.link[name] = e.Link
		return kind + " enroll again", x.enrollPerson(name)
	case 6:
		keys, err := m.Keys(ctx, id)
		if err != nil || len(keys) == 0 {
			return kind + " keys", err
		}
		return kind + " key revoke", m.RevokeKey(ctx, id, keys[x.r.IntN(len(keys))].ID)
	case 7:
		_, err = m.Suspend(ctx, id, "")
		return kind + " suspend", err
	case 8:
		_, err = m.Resume(ctx, id)
		return kind + " resume", err
	case 9:
		if kind == "operator" {
			_, err = x.a.SetRole(ctx, id, x.pick("viewer", "operator", "auditor", "admin", "owner"))
			return "operator role", err
		}
		_, err = m.SetLabels(ctx, id, x.labels(), 0)
		return "service labels", err
	}
	if x.r.IntN(3) > 0 {
		_, err = m.Revoke(ctx, id, "")
		return kind + " revoke", err
	}
	return kind + " delete", m.Delete(ctx, id)
}

// enrollPerson enrolls a new key with the last link of an operator or a service.
func (x *randomActs) enrollPerson(name string) error {
	key, err := jose.GenerateKey("P-256")
	must(x.t, err)
	_, err = admin.Enroll(x.t.Context(), x.link[name], key, x.pick("", "laptop"), nil)
	return err
}

func (x *randomActs) addPerson(kind string, id watchword.SubjectID) (link string, err error) {
	if kind == "operator" {
		s, err := x.a.CreateOperator(x.t.Context(), id, x.pick("viewer", "operator", "auditor", "admin", "owner"), time.Hour)
		if err != nil {
			return "", err
		}
		return s.Enrollment.Link, nil
	}
	s, err := x.a.CreateService(x.t.Context(), id, x.labels(), time.Hour)
	if err != nil {
		return "", err
	}
	return s.Enrollment.Link, nil
}

// authorityOf is who may do what by the store in a folder, one line for each fact. versions says that the versions of subjects and
// policies count too.
func authorityOf(t *testing.T, dir string, versions bool) (out []string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "watchword.db")+"?mode=ro")
	must(t, err)
	defer db.Close()
	of := map[string]string{
		"subject":  `SELECT tenant, id, kind, role, state, labels, incarnation, proof, created, changed, deleted`,
		"policy":   `SELECT tenant, name, source, changed, deleted`,
		"label":    `SELECT * FROM labels`,
		"function": `SELECT * FROM functions`,
		"key":      `SELECT tenant, subject, id, purpose, jwk, state, added, name, ends FROM subject_keys`,
	}
	if versions {
		of["subject"] += ", version, authority_version"
		of["policy"] += ", version"
	}
	of["subject"] += " FROM subjects"
	of["policy"] += " FROM policies"
	for what, q := range of {
		rs, err := db.QueryContext(t.Context(), q)
		must(t, err)
		names, err := rs.Columns()
		must(t, err)
		for rs.Next() {
			values, into := make([]any, len(names)), make([]any, len(names))
			for i := range values {
				into[i] = &values[i]
			}
			must(t, rs.Scan(into...))
			out = append(out, fmt.Sprintf("%s %q", what, values))
		}
		must(t, rs.Err())
		must(t, rs.Close())
	}
	slices.Sort(out)
	return out
}

// Whatever was done before and after a backup, the server that is restored from it and from what came after it allows exactly what the
// lost one allowed.
func TestARestoreOfRandomActsIsExact(t *testing.T) {
	seed := rand.Uint64()
	if text := os.Getenv(seedVariable); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		must(t, err)
	}
	t.Logf("seed %d: repeat it with %s=%d", seed, seedVariable, seed)
	id, key := newIdentity(t)
	c, dir := config(t, filepath.Join(t.TempDir(), "data")), t.TempDir()
	c.Backup = server.BackupConfig{Recipients: key.Recipients, Journal: dir, Keep: 2}
	file := filepath.Join(t.TempDir(), "b")
	s, a, stop := startServer(t, c, quiet)
	x := &randomActs{t: t, r: rand.New(rand.NewPCG(seed, 1)), a: a, link: map[string]string{}, done: map[string]int{}}
	const acts = 240
	at := x.r.IntN(acts)
	for i := range acts {
		if i == at {
			db, err := sql.Open("sqlite", "file:"+filepath.Join(c.Data, "watchword.db")+"?_pragma=busy_timeout(10000)")
			must(t, err)
			_, err = db.ExecContext(t.Context(), `INSERT INTO functions (tenant, device, name) SELECT tenant, id, 'f' FROM subjects WHERE kind = 'device' AND state IN ('active', 'suspended')`)
			must(t, err)
			must(t, db.Close())
			_, err = server.CreateBackup(t.Context(), c, quiet, file, false, server.BackupKey{})
			must(t, err)
		}
		x.act()
	}
	_, err := a.CreateDevice(t.Context(), "last", nil, time.Hour) // the journal has what is before it
	must(t, err)
	covered(t, s, dir, newest(t, a, audit.DeviceCreate))
	stop()
	t.Logf("backup before act %d; done: %v", at, x.done)
	for _, tc := range []struct {
		source   string
		versions bool // a log does not have those of acts that changed nothing
	}{{dir, true}, {c.Data, false}} {
		r := server.RestoreOptions{File: file, Identities: []age.Identity{id}, Data: filepath.Join(t.TempDir(), "restored"), Source: tc.source}
		_, err := server.RestoreBackup(t.Context(), r, quiet)
		must(t, err)
		want, got := authorityOf(t, c.Data, tc.versions), authorityOf(t, r.Data, tc.versions)
		for _, line := range want {
			if !slices.Contains(got, line) {
				t.Errorf("seed %d, from %s: it lacks %s", seed, filepath.Base(tc.source), line)
			}
		}
		for _, line := range got {
			if !slices.Contains(want, line) {
				t.Errorf("seed %d, from %s: it still has %s", seed, filepath.Base(tc.source), line)
			}
		}
		if len(want) < 10 || !strings.Contains(strings.Join(want, "\n"), "subject ") {
			t.Errorf("seed %d: the lost server had only %v", seed, want)
		}
	}
}
