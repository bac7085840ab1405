package command_test

import (
	"context"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/command"
)

// A wait for a command returns its end when the end of its device ends it.
func TestDeviceRevocationEndsCommandWaits(t *testing.T) {
	s := newSetup(t, options{})
	s.subject("lamp-2", watchword.Device, watchword.Labels{"kind": "lamp"})
	wait := func(device watchword.SubjectID) <-chan command.Row {
		t.Helper()
		row := s.order(command.Call{Device: device, Function: "blink"})
		ended := make(chan command.Row, 1)
		w := s.Watch(tenant, row.ID)
		go func() {
			defer w.Close()
			ended <- w.Wait(t.Context(), row)
		}()
		return ended
	}
	one, two := wait("lamp-1"), wait("lamp-2")
	_, err := s.store.Revoke(t.Context(), audit.Actor{Tenant: tenant}, "lamp-1", s.now(), audit.FixedEntry[watchword.Subject](s.entry(audit.DeviceRevoke, "lamp-1", nil)))
	must(t, err)
	s.changed("lamp-1")
	select {
	case row := <-one:
		if row.State != watchword.Cancelled {
			t.Errorf("it ended as %s", row.State)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("10 s passed without the end of a command whose device was revoked")
	}
	select {
	case row := <-two:
		t.Errorf("the command of another device ended as %s", row.State)
	default:
	}
}

// A wait for a command of one tenant is not woken by another tenant: neither by the command with the same id nor by the end
// of the device with the same id.
func TestAWaitIsForACommandOfOneTenant(t *testing.T) {
	s := newSetup(t, options{})
	row := s.order(command.Call{Device: "lamp-1", Function: "blink"})
	foreign := row
	foreign.Tenant = "other"
	here, there := s.Watch(tenant, row.ID), s.Watch("other", row.ID)
	defer here.Close()
	defer there.Close()
	ended := make(chan command.Row, 1)
	waits, stop := context.WithCancel(t.Context())
	go func() { ended <- there.Wait(waits, foreign) }()
	_, err := s.store.Revoke(t.Context(), audit.Actor{Tenant: tenant}, "lamp-1", s.now(), audit.FixedEntry[watchword.Subject](s.entry(audit.DeviceRevoke, "lamp-1", nil)))
	must(t, err)
	s.changed("lamp-1")
	if got := here.Wait(t.Context(), row); got.State != watchword.Cancelled {
		t.Errorf("the command ended as %s", got.State)
	}
	stop()
	if got := <-ended; got.Tenant != "other" || got.State.Final() {
		t.Errorf("the wait in another tenant was given %s of %s", got.State, got.Tenant)
	}
	if _, err := s.Wait(t.Context(), "other", row.ID); watchword.CodeOf(err) != watchword.NotFound {
		t.Errorf("another tenant can wait for it: %v", err)
	}
}
