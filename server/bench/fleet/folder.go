package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/mqttstore"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/sqlite"
)

// format grows when the contents of a folder change, so that older ones are not used.
const format = 2

// What a fleet has for each 1,000 devices.
const (
	sessionsPer1000 = 930
	entriesPer1000  = 10_000
	commandsPer1000 = 5_000
)

// folder returns the data folder of a fleet, and makes it where it is not there yet. Its name has the schema of this build, which
// another build may not open.
func folder(ctx context.Context, below string, devices int) (string, error) {
	schema, err := sqlite.SchemaVersion()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(below, fmt.Sprintf("%d-schema%d-%d", devices, schema, format))
	if _, err := os.Stat(filepath.Join(dir, "complete")); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return filepath.Join(dir, "data"), err
	}
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return "", err
	}
	began := time.Now()
	f := &fleet{data: filepath.Join(dir, "data"), devices: devices}
	if err := errors.Join(f.start(ctx), f.stop()); err != nil { // the first start initializes the folder
		return "", err
	}
	if err := f.fill(ctx); err != nil {
		return "", err
	}
	fmt.Fprintf(os.Stderr, "made %s in %s\n", dir, time.Since(began).Round(time.Millisecond))
	return f.data, os.WriteFile(filepath.Join(dir, "complete"), nil, 0o600)
}

// device is one device of a fleet.
type device struct {
	id     watchword.SubjectID
	labels watchword.Labels
	state  watchword.State
}

// deviceAt returns the device of a number from 0. Of 20 devices 12 are lamps, 5 meters, 2 gateways and 1 a camera; each kind has
// three models, and a site has some 500 devices. One device in 100 is suspended, one not enrolled yet.
func (f *fleet) deviceAt(i int) device {
	kind := "lamp"
	switch n := i % 20; {
	case n >= 19:
		kind = "camera"
	case n >= 17:
		kind = "gateway"
	case n >= 12:
		kind = "meter"
	}
	d := device{
		id: watchword.SubjectID(fmt.Sprintf("dev-%06d", i)), state: watchword.Active,
		labels: watchword.Labels{"kind": kind, "model": fmt.Sprintf("%s-%c", kind, 'a'+rune(i/20%3)), "site": fmt.Sprintf("plant-%03d", i/60%f.sites())},
	}
	switch i % 100 {
	case 98:
		d.state = watchword.Suspended
	case 99:
		d.state = watchword.New
	}
	return d
}

func (f *fleet) sites() int { return max(f.devices/500, 2) }

// policies returns the policies of the fleet: one for all devices, one for each kind, and one for the lamps of each of 50 sites.
func (f *fleet) policies() map[string]string {
	out := map[string]string{
		"all":      "for = {}\nkinds = [\"device\"]\n[[allow]]\npublish = [\"plant/${site}/alive/${id}\"]\nsubscribe = [\"plant/${site}/notice/#\"]\n",
		"lamps":    "for = { kind = \"lamp\" }\n[[allow]]\npublish = [\"plant/${site}/lux\", \"plant/${site}/power/${id}\"]\nsubscribe = [\"plant/${site}/scene/#\"]\n[[allow]]\ncall = [\"lamp.set\"]\non = { kind = \"lamp\", site = \"${site}\" }\nargs = { level = { maximum = 80 } }\n",
		"meters":   "for = { kind = \"meter\" }\n[[allow]]\npublish = [\"plant/${site}/reading/${id}\"]\n",
		"gateways": "for = { kind = \"gateway\" }\n[[allow]]\npublish = [\"plant/${site}/#\"]\nsubscribe = [\"plant/${site}/#\"]\n[[deny]]\ncall = [\"firmware.*\"]\n",
		"cameras":  "for = { kind = \"camera\" }\n[[allow]]\npublish = [\"plant/${site}/motion/${id}\"]\n",
	}
	for i := range min(f.sites(), 50) {
		site := fmt.Sprintf("plant-%03d", i)
		out["lamps-"+site] = "for = { kind = \"lamp\", site = \"" + site + "\" }\n[[allow]]\nsubscribe = [\"plant/" + site + "/evening/${id}\"]\n"
	}
	return out
}

// fill writes the fleet to the store of a stopped server: the log and the policies through the store, all else with SQL in a few
// large transactions.
func (f *fleet) fill(ctx context.Context) (err error) {
	path := filepath.Join(f.data, "watchword.db")
	st, err := sqlite.Open(ctx, path, sqlite.Options{})
	if err != nil {
		return err
	}
	if err := errors.Join(f.fillLog(ctx, st), f.fillPolicies(ctx, st), st.Close()); err != nil {
		return err
	}
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=synchronous(OFF)&_pragma=journal_mode(WAL)&_pragma=cache_size(-400000)")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	for _, part := range []func(*inserter) error{f.fillSubjects, f.fillKeys, f.fillCommands, f.fillSessions} {
		if err := inTransaction(ctx, db, part); err != nil {
			return err
		}
	}
	_, err = db.ExecContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`)
	return err
}

func (f *fleet) fillPolicies(ctx context.Context, st *sqlite.Store) error {
	by := audit.Actor{Tenant: watchword.DefaultTenant}
	for name, text := range f.policies() {
		if _, _, err := st.PutPolicy(ctx, by, name, []byte(text), -1, time.Now(), audit.FixedEntry[policy.Stored](by.DoneEntry(audit.PolicyApply, name, time.Now(), map[string]string{"source": text}))); err != nil {
			return err
		}
	}
	return nil
}

// fillLog writes entries of the last 30 days: of 20, 13 are tokens, 5 are of a command, and 2 of a session.
func (f *fleet) fillLog(ctx context.Context, st *sqlite.Store) error {
	const group = 2000
	all := f.devices / 1000 * entriesPer1000
	begin, span := time.Now().Add(-30*24*time.Hour), 30*24*time.Hour
	kinds := []string{audit.CommandOrder, audit.CommandHandOver, audit.CommandHandOver, audit.CommandSettle, audit.CommandSettle, audit.SessionOpen, audit.SessionClose}
	entries := make([]audit.Entry, 0, group)
	for i := range all {
		at := begin.Add(time.Duration(float64(span) * float64(i) / float64(all)))
		by := audit.Actor{Tenant: watchword.DefaultTenant, Subject: f.deviceAt(i * 7919 % f.devices).id, Key: watchword.KeyID(jose.Hash([]byte(strconv.Itoa(i % f.devices))))}
		kind, object, data := audit.TokenIssue, watchword.NewID("tok_", at), map[string]string(nil)
		if n := i % 20; n >= 13 {
			kind, object, data = kinds[n-13], watchword.NewID("cmd_", at), map[string]string{"function": "lamp.set", "device": string(by.Subject)}
		}
		e := by.DoneEntry(kind, object, at, data)
		e.Outcome = audit.Done
		if audit.NeedsAuthority(kind) {
			e.Actor, e.Key = "", "" // an act of a subject has versions, which only its transaction knows
		}
		if entries = append(entries, e); len(entries) == group || i == all-1 {
			if err := st.AddEntry(ctx, entries...); err != nil {
				return err
			}
			entries = entries[:0]
		}
	}
	return nil
}

func (f *fleet) fillSubjects(t *inserter) error {
	now := time.Now()
	for i := range f.devices {
		d := f.deviceAt(i)
		text, err := json.Marshal(d.labels)
		if err != nil {
			return err
		}
		at := now.Add(-time.Duration(i) * time.Second).UnixMilli()
		t.insert("subjects", "tenant, id, kind, state, labels, version, incarnation, created, changed", watchword.DefaultTenant, d.id, watchword.Device, d.state, string(text), 1, 1, at, at)
		for k, v := range d.labels {
			t.insert("labels", "tenant, key, value, subject", watchword.DefaultTenant, k, v, d.id)
		}
	}
	return t.err
}

// fillKeys writes two keys and one token for each enrolled device.
func (f *fleet) fillKeys(t *inserter) error {
	now := time.Now()
	for i := range f.devices {
		d := f.deviceAt(i)
		if d.state == watchword.New {
			continue
		}
		var sign watchword.KeyID
		for _, p := range []watchword.Purpose{watchword.Sign, watchword.Seal} {
			k, err := jose.GenerateKey(jose.P256)
			if err != nil {
				return err
			}
			pub := k.Public()
			if t.insert("subject_keys", "tenant, subject, id, purpose, jwk, state, added", watchword.DefaultTenant, d.id, pub.ID(), p, []byte(pub.JWK()), watchword.KeyActive, now.UnixMilli()); p == watchword.Sign {
				sign = pub.ID()
			}
		}
		issued := now.Add(-time.Duration(i) * time.Second)
		jti := watchword.NewID("tok_", issued)
		t.insert("tokens", "jti, tenant, subject, assertion, incarnation, key, claims_digest, issued, expires, assertion_expires", jti, watchword.DefaultTenant, d.id, jti, 1, sign, make([]byte, 32),
			issued.UnixMilli(), now.Add(1000*time.Hour).UnixMilli(), issued.Add(time.Minute).UnixMilli())
	}
	return t.err
}

// fillCommands writes commands of the last 30 days, each with its hand-over: of 1,000, 900 are done, 60 failed, 35 expired, and 5
// wait for their devices.
func (f *fleet) fillCommands(t *inserter) error {
	now, span := time.Now(), 30*24*time.Hour
	all := f.devices / 1000 * commandsPer1000
	args, receipt, jws := make([]byte, 60), make([]byte, 300), make([]byte, 400)
	seqs := map[watchword.SubjectID]int{}
	for i := range all {
		d := f.deviceAt(i * 7919 % f.devices)
		at := now.Add(-span).Add(time.Duration(float64(span) * float64(i) / float64(all)))
		id := watchword.NewID("cmd_", at)
		state, status, settled := watchword.Done, "ok", at.Add(time.Second)
		switch n := i % 1000; {
		case n >= 995:
			state, status, settled = watchword.Queued, "", time.UnixMilli(0)
			at = now.Add(365 * 24 * time.Hour) // they are still waiting when the folder is used again
		case n >= 960:
			state, status = watchword.Expired, ""
		case n >= 900:
			state, status = watchword.Failed, "failed"
		}
		seqs[d.id]++
		t.insert("commands", "tenant, id, device, incarnation, epoch, seq, function, args, args_hash, signed_order, orderer, orderer_key, state, created, expires, settled_at, status, receipt",
			watchword.DefaultTenant, id, d.id, 1, 1, seqs[d.id], "lamp.set", args, jose.Hash(args), "", "admin", "", state, at.UnixMilli(), at.Add(time.Hour).UnixMilli(), settled.UnixMilli(), status, receipt)
		if state != watchword.Queued {
			t.insert("handovers", "tenant, command, hash, nonce, jws, at", watchword.DefaultTenant, id, jose.Hash([]byte(id)), "nonce", jws, at.UnixMilli())
		}
	}
	return t.err
}

// fillSessions writes persistent MQTT sessions without an end, each with two subscriptions.
func (f *fleet) fillSessions(t *inserter) error {
	now, n := time.Now().UnixMilli(), int64(0)
	for i := range f.devices {
		d := f.deviceAt(i)
		if i%1000 >= sessionsPer1000+18 || d.state == watchword.New || i%100 == 98 {
			continue
		}
		n++
		t.insert("mqtt_sessions", "id, tenant, client, subject, incarnation, expiry, disconnected_at", n, watchword.DefaultTenant, string(d.id), d.id, 1, int64(mqttstore.NeverExpires), now)
		for _, filter := range []string{"devices/" + string(d.id) + "/config", "plant/" + d.labels["site"] + "/notice/#"} {
			t.insert("mqtt_subscriptions", "session, filter, options, identifier", n, filter, 1, 0)
		}
	}
	return t.err
}
