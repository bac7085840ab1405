package attack_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
)

// smallDisk is a disk of its own, of so many bytes.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "disk")
	must(t, os.Mkdir(dir, 0o700))
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		if os.Getenv("WATCHWORD_OUTSIDE") == "required" && os.Geteuid() == 0 {
			t.Fatalf("a disk of its own cannot be mounted: %v", err)
		}
		t.Skipf("a disk of its own cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill leaves no room on the disk, and returns what makes some again.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	name := filepath.Join(dir, "filler")
	f, err := os.Create(name)
	must(t, err)
	for n := 64 << 10; n > 0; n /= 2 {
		for b := bytes.Repeat([]byte{1}, n); ; {
			if _, err := f.Write(b); err != nil {
				break // full
			}
		}
	}
	must(t, f.Close())
	return func() { must(t, os.Remove(name)) }
}

// With a full disk nothing is done that could not be written; operations without a write continue; and clients get the
// reason.
func TestDiskFull(t *testing.T) {
	dir := smallDisk(t, "8m")
	srv := serveOn(t, filepath.Join(dir, "data"), nil)
	ctx := t.Context()
	lamp := srv.enroll("lamp-1", device.Options{}, nil)
	watchCtx, stopWatch := context.WithCancel(ctx)
	defer stopWatch()
	events, opened := make(chan api.Event, 100), make(chan struct{})
	go func() {
		_ = srv.admin.Watch(watchCtx, "", "", func() { close(opened) }, func(e api.Event) error { events <- e; return nil }) // ends with the test
	}()
	<-opened
	event := func(what string) {
		t.Helper()
		must(t, lamp.Publish(ctx, "lux", what))
		for e := range events {
			if string(e.Data) == `"`+what+`"` {
				return
			}
		}
	}
	event("before")
	ready := func() (int, string) {
		t.Helper()
		res, err := http.Get("http://" + srv.info.Metrics + "/readyz")
		must(t, err)
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		must(t, err)
		return res.StatusCode, string(b)
	}
	if status, says := ready(); status != http.StatusOK {
		t.Fatalf("%d %s", status, says)
	}

	free := fill(t, dir)
	// Free space in the database's own files is used first.
	n := 0
	for ; n < 20_000; n++ {
		if _, err := srv.admin.CreateDevice(ctx, watchword.SubjectID("more-"+strings.Repeat("x", 10)+itoa(n)), nil, 0); err != nil {
			wants(t, "a device on a full disk", err, watchword.Unavailable)
			if !strings.Contains(err.Error(), "the disk is full") {
				t.Errorf("it says %v", err)
			}
			break
		}
	}
	if status, says := ready(); status != http.StatusServiceUnavailable || !strings.Contains(says, "the disk is full") {
		t.Errorf("/readyz: %d %s", status, says)
	}
	for what, act := range map[string]func() error{
		"a command": func() error {
			_, err := srv.admin.Send(ctx, admin.CommandOrder{Device: "lamp-1", Function: "f"})
			return err
		},
		"a read of the log": func() error { _, err := srv.admin.Entries(ctx, 0, 1); return err },
		"a suspension":      func() error { _, err := srv.admin.Suspend(ctx, "lamp-1", "why"); return err },
		"a policy": func() error {
			_, err := srv.admin.ApplyPolicy(ctx, "p", []byte("name = \"p\"\nfor = {}\n[[allow]]\npublish = [\"a\"]\n"), -1)
			return err
		},
	} {
		wants(t, what, act(), watchword.Unavailable)
	}
	if a, err := lamp.Assertion(time.Minute); err != nil {
		t.Error(err)
	} else if got := srv.exchangeAssertion(a); got.status != http.StatusServiceUnavailable {
		t.Errorf("a token: %d %s", got.status, got.body)
	}
	event("while the disk is full")
	a, err := srv.admin.Device(ctx, "lamp-1")
	if err != nil || a.State != watchword.Active {
		t.Errorf("the device is %+v %v", a, err)
	}

	free()
	if status, says := ready(); status != http.StatusOK {
		t.Errorf("with room again: %d %s", status, says)
	}
	if _, err := srv.admin.CreateDevice(ctx, "after", nil, 0); err != nil {
		t.Error(err)
	}
	event("after")
	srv.checkpointNote()
	v, err := server.VerifyLog(ctx, srv.dir, nil)
	if err != nil || v.Bodies != v.Entries {
		t.Errorf("%+v %v", v, err)
	}
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

// kill -9 at a moment of chance, while many act: each act that was answered is in the
// log, and the log holds.
func TestAnsweredActsAreLogged(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	var kept [][]byte
	answered := map[string]bool{}
	for round := range 4 {
		s := start(t, data, "serve")
		s.until("next ")
		cl, err := admin.Local(data)
		must(t, err)
		var mu sync.Mutex
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		enough := make(chan struct{})
		count := 0
		for worker := range 8 {
			wg.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					id := "d-" + itoa(round) + "-" + itoa(worker) + "-" + itoa(i)
					if _, err := cl.CreateDevice(ctx, watchword.SubjectID(id), nil, 0); err != nil {
						return // the server is gone
					}
					mu.Lock()
					answered[id] = true
					if count++; count == 100+37*round {
						close(enough)
					}
					mu.Unlock()
				}
			})
		}
		<-enough
		if note, err := cl.LogFile(ctx, "checkpoint"); err == nil {
			kept = append(kept, note)
		}
		s.kill9()
		cancel()
		wg.Wait()
	}
	// Dead, and alive again.
	if _, err := server.VerifyLog(t.Context(), data, nil, kept...); err != nil {
		t.Errorf("as it was killed: %v", err)
	}
	s := start(t, data, "serve")
	s.until("next ")
	cl, err := admin.Local(data)
	must(t, err)
	es, err := cl.FindEntries(t.Context(), admin.LogQuery{Kind: "device.create"}, 1_000_000)
	must(t, err)
	for _, e := range es {
		delete(answered, e.Object)
	}
	if len(answered) > 0 {
		t.Errorf("%d answered acts are not in the log: %v", len(answered), answered)
	}
	if len(kept) == 0 {
		t.Error("no checkpoint was kept")
	}
	keys, err := server.LogKeys(t.Context(), data)
	must(t, err)
	if v, err := server.VerifyLog(t.Context(), data, fixedKeys(keys[:1]), kept...); err != nil || v.Checkpoints < len(kept) {
		t.Errorf("%+v %v", v, err)
	}
	if _, err := ledger.ReadCheckpoint(kept[0]); err != nil {
		t.Error(err)
	}
}
