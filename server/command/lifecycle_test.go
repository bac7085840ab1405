package command_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/command"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

var allStates = []watchword.CommandState{
	watchword.Queued, watchword.Sent, watchword.Delivered, watchword.Accepted, watchword.Done, watchword.Refused, watchword.Failed, watchword.Interrupted,
	watchword.Expired, watchword.Cancelled, watchword.Unknown, watchword.Undeliverable,
}

// snapshot is a command of lamp-1, in a state, whose version "h" was handed over.
func snapshot(state watchword.CommandState) command.Snapshot {
	return command.Snapshot{
		Row:      command.Row{ID: "cmd_1", Device: "lamp-1", Incarnation: 2, Epoch: 1, Seq: 5, State: state, Expires: noon.Add(time.Minute)},
		Target:   watchword.Subject{ID: "lamp-1", Kind: watchword.Device, State: watchword.Active, Incarnation: 2},
		Versions: 1, VersionKnown: true, LoggedSeq: 40,
	}
}

func receipt(st watchword.ReceiptStatus) command.ReceiptUpdate {
	return command.ReceiptUpdate{Device: "lamp-1", ID: "cmd_1", Epoch: 1, Seq: 5, Hash: "h", Status: st, Key: "key", JWS: []byte("receipt"), At: noon}
}

func TestHandoverRule(t *testing.T) {
	for _, c := range []struct {
		name  string
		with  func(*command.Snapshot, *command.Handover)
		isNew bool
		want  watchword.Code
	}{
		{"a queued command is sent", func(s *command.Snapshot, _ *command.Handover) {
			s.State, s.VersionKnown, s.Versions = watchword.Queued, false, 0
		}, true, ""},
		{"a sent command is sent again, in a version that is known", func(*command.Snapshot, *command.Handover) {}, false, ""},
		{"a sent command is sent again, in another version", func(s *command.Snapshot, _ *command.Handover) { s.VersionKnown = false }, true, ""},
		{"the last version that there may be is sent", func(s *command.Snapshot, _ *command.Handover) {
			s.VersionKnown, s.Versions = false, command.MaxHandovers-1
		}, true, ""},
		{"one version more is too many", func(s *command.Snapshot, _ *command.Handover) {
			s.VersionKnown, s.Versions = false, command.MaxHandovers
		}, false, watchword.Busy},
		{"a known version is sent however many there are", func(s *command.Snapshot, _ *command.Handover) { s.Versions = command.MaxHandovers }, false, ""},
		{"a millisecond before its end it is sent", func(s *command.Snapshot, h *command.Handover) { h.At = s.Expires.Add(-time.Millisecond) }, false, ""},
		{"at its end it is not sent", func(s *command.Snapshot, h *command.Handover) { h.At = s.Expires }, false, watchword.Conflict},
		{"a suspended device gets none", func(s *command.Snapshot, _ *command.Handover) { s.Target.State = watchword.Suspended }, false, watchword.SubjectSuspended},
		{"a device gets none of its earlier life", func(s *command.Snapshot, _ *command.Handover) { s.Target.Incarnation++ }, false, watchword.Conflict},
	} {
		s, h := snapshot(watchword.Sent), command.Handover{Hash: "h", At: noon}
		s.SentAt = noon.Add(-time.Second)
		c.with(&s, &h)
		r, isNew, err := s.HandOver(h)
		wantCode(t, c.name, err, c.want)
		if err != nil {
			continue
		}
		sent := noon.Add(-time.Second)
		if s.State == watchword.Queued {
			sent = h.At
		}
		if isNew != c.isNew || r.State != watchword.Sent || !r.SentAt.Equal(sent) {
			t.Errorf("%s: new %v, %+v", c.name, isNew, r)
		}
	}
	for _, state := range allStates {
		_, _, err := snapshot(state).HandOver(command.Handover{Hash: "h", At: noon})
		if passes := state == watchword.Queued || state == watchword.Sent; (err == nil) != passes {
			t.Errorf("%s: %v", state, err)
		}
	}
}

func TestAcknowledgeRule(t *testing.T) {
	for _, c := range []struct {
		name string
		a    command.Acknowledgement
		with func(*command.Snapshot)
		want bool
	}{
		{"its number is the last of all", command.Acknowledgement{Epoch: 1, UpTo: 5}, nil, true},
		{"its number is over all", command.Acknowledgement{Epoch: 1, UpTo: 4}, nil, false},
		{"its number is named", command.Acknowledgement{Epoch: 1, Each: []int64{9, 5}}, nil, true},
		{"other numbers are named", command.Acknowledgement{Epoch: 1, Each: []int64{4, 6}}, nil, false},
		{"numbers of another epoch are named", command.Acknowledgement{Epoch: 2, UpTo: 9, Each: []int64{5}}, nil, false},
		{"a suspended device acknowledges nothing", command.Acknowledgement{Epoch: 1, UpTo: 5}, func(s *command.Snapshot) { s.Target.State = watchword.Suspended }, false},
		{"what was not sent is not acknowledged", command.Acknowledgement{Epoch: 1, UpTo: 5}, func(s *command.Snapshot) { s.State = watchword.Queued }, false},
		{"what has ended is not acknowledged", command.Acknowledgement{Epoch: 1, UpTo: 5}, func(s *command.Snapshot) { s.State = watchword.Expired }, false},
	} {
		s := snapshot(watchword.Sent)
		if c.with != nil {
			c.with(&s)
		}
		want := s.Row
		if c.want {
			want.State, want.DeliveredAt = watchword.Delivered, noon
		}
		if r, changed := s.Acknowledge(c.a, noon); changed != c.want || !reflect.DeepEqual(r, want) {
			t.Errorf("%s: changed %v, %+v", c.name, changed, r)
		}
	}
}

func TestMismatchedReceiptIsRefused(t *testing.T) {
	for name, with := range map[string]func(*command.Snapshot, *command.ReceiptUpdate){
		"another device":                  func(_ *command.Snapshot, r *command.ReceiptUpdate) { r.Device = "lamp-2" },
		"another epoch":                   func(_ *command.Snapshot, r *command.ReceiptUpdate) { r.Epoch = 2 },
		"another number":                  func(_ *command.Snapshot, r *command.ReceiptUpdate) { r.Seq = 6 },
		"a version that was not sent":     func(s *command.Snapshot, _ *command.ReceiptUpdate) { s.VersionKnown = false },
		"another life of the device":      func(s *command.Snapshot, _ *command.ReceiptUpdate) { s.Target.Incarnation = 3 },
		"a status that there is not":      func(_ *command.Snapshot, r *command.ReceiptUpdate) { r.Status = "maybe" },
		"no status":                       func(_ *command.Snapshot, r *command.ReceiptUpdate) { r.Status = "" },
		"no status, before any is stored": func(s *command.Snapshot, r *command.ReceiptUpdate) { r.Status, s.Status = "", "" },
	} {
		s, r := snapshot(watchword.Sent), receipt(watchword.StatusDone)
		with(&s, &r)
		_, changed, err := s.ApplyReceipt(r)
		wantCode(t, name, err, watchword.ReceiptInvalid)
		if changed {
			t.Errorf("%s: it changes", name)
		}
	}
}

// The states that take a receipt, for each status; all others refuse it.
func TestReceiptTransitions(t *testing.T) {
	answered := []watchword.CommandState{watchword.Sent, watchword.Delivered, watchword.Unknown, watchword.Undeliverable}
	last := append(slices.Clone(answered), watchword.Accepted, watchword.Expired)
	late := noon.Add(time.Minute) // the command's end
	for _, c := range []struct {
		status watchword.ReceiptStatus
		at     time.Time
		to     watchword.CommandState
		from   []watchword.CommandState
	}{
		{watchword.StatusAccepted, noon, watchword.Accepted, answered},
		{watchword.StatusAccepted, late, watchword.Accepted, answered[:2]},
		{watchword.StatusDone, noon, watchword.Done, last},
		{watchword.StatusDone, late, watchword.Done, last},
		{watchword.StatusRefused, late, watchword.Refused, last},
		{watchword.StatusFailed, late, watchword.Failed, last},
		{watchword.StatusConflict, late, watchword.Failed, last},
		{watchword.StatusInterrupted, late, watchword.Interrupted, last},
	} {
		for _, from := range allStates {
			s, r := snapshot(from), receipt(c.status)
			r.At, s.Reason = c.at, &command.Reason{}
			row, changed, err := s.ApplyReceipt(r)
			if !slices.Contains(c.from, from) {
				wantCode(t, string(from)+", then "+string(c.status), err, watchword.Conflict)
				continue
			}
			want := s.Row
			want.State, want.Status, want.Receipt, want.ReceiptKey, want.Reason, want.DeliveredAt = c.to, c.status, r.JWS, r.Key, nil, c.at
			if c.to != watchword.Accepted {
				want.SettledAt = c.at
			}
			if err != nil || !changed || !reflect.DeepEqual(row, want) {
				t.Errorf("%s, then %s at %s: changed %v, %v\n got %+v\nwant %+v", from, c.status, c.at, changed, err, row, want)
			}
			r.At = late
			again, changed, err := command.Snapshot{Row: row, Target: s.Target, VersionKnown: true}.ApplyReceipt(r)
			if err != nil || changed || !reflect.DeepEqual(again, row) {
				t.Errorf("%s, then %s twice: changed %v, %v", from, c.status, changed, err)
			}
		}
	}
	s := snapshot(watchword.Delivered)
	s.DeliveredAt = noon.Add(-time.Second)
	if r, _, err := s.ApplyReceipt(receipt(watchword.StatusDone)); err != nil || !r.DeliveredAt.Equal(s.DeliveredAt) {
		t.Errorf("the time of delivery moved to %s, %v", r.DeliveredAt, err)
	}
	s = snapshot(watchword.Unknown)
	s.SettledAt = noon.Add(-time.Second)
	if r, _, err := s.ApplyReceipt(receipt(watchword.StatusAccepted)); err != nil || !r.SettledAt.IsZero() {
		t.Errorf("a command that is open again was settled at %s, %v", r.SettledAt, err)
	}
}

func TestExpireAndCancelRules(t *testing.T) {
	why := command.Reason{Code: watchword.TooLarge, Size: 9}
	for _, c := range []struct {
		name string
		end  func(command.Row) (command.Row, bool)
		to   map[watchword.CommandState]watchword.CommandState // all others stay
	}{
		{"its device cannot take it", func(r command.Row) (command.Row, bool) {
			return r.MarkUndeliverable(command.UndeliverableUpdate{Reason: why, SentAt: noon.Add(-time.Second), At: noon})
		}, map[watchword.CommandState]watchword.CommandState{watchword.Queued: watchword.Undeliverable, watchword.Sent: watchword.Undeliverable}},
		{"it is cancelled", func(r command.Row) (command.Row, bool) {
			out, err := r.Cancel(noon)
			if err != nil && (watchword.CodeOf(err) != watchword.Conflict || !strings.Contains(err.Error(), string(r.State))) {
				t.Errorf("%s cannot be cancelled: %v", r.State, err)
			}
			return out, err == nil
		}, map[watchword.CommandState]watchword.CommandState{watchword.Queued: watchword.Cancelled}},
		{"its end has come", func(r command.Row) (command.Row, bool) { r.Expires = noon; return r.Expire(noon) }, map[watchword.CommandState]watchword.CommandState{
			watchword.Queued: watchword.Expired, watchword.Sent: watchword.Expired, watchword.Delivered: watchword.Unknown, watchword.Accepted: watchword.Unknown,
		}},
		{"its end is later than a command's can be: the clock went back", func(r command.Row) (command.Row, bool) {
			r.Expires = command.LatestEnd(noon).Add(time.Millisecond)
			return r.Expire(noon)
		}, map[watchword.CommandState]watchword.CommandState{
			watchword.Queued: watchword.Expired, watchword.Sent: watchword.Expired, watchword.Delivered: watchword.Unknown, watchword.Accepted: watchword.Unknown,
		}},
		{"its end is as late as can be", func(r command.Row) (command.Row, bool) { r.Expires = command.LatestEnd(noon); return r.Expire(noon) }, nil},
		{"its end is to come", func(r command.Row) (command.Row, bool) { return r.Expire(r.Expires.Add(-time.Millisecond)) }, nil},
		{"its device is revoked", func(r command.Row) (command.Row, bool) {
			to := command.StateWithoutDevice(r.State)
			changed := to != r.State
			if r.State = to; changed {
				r.SettledAt = noon
			}
			return r, changed
		}, map[watchword.CommandState]watchword.CommandState{
			watchword.Queued: watchword.Cancelled, watchword.Sent: watchword.Cancelled, watchword.Delivered: watchword.Unknown, watchword.Accepted: watchword.Unknown,
		}},
	} {
		for _, from := range allStates {
			before := snapshot(from).Row
			after, changed := c.end(before)
			to, ends := c.to[from]
			if !ends {
				to = from
			}
			if changed != ends || after.State != to || ends != after.SettledAt.Equal(noon) {
				t.Errorf("%s, %s: got %s, changed %v, settled at %s, want %s", from, c.name, after.State, changed, after.SettledAt, to)
			}
			if changed && to == watchword.Undeliverable && (*after.Reason != why || !after.SentAt.Equal(noon.Add(-time.Second))) {
				t.Errorf("%s, %s: %+v", from, c.name, after)
			}
		}
	}
}

func TestUnfinishedStatesAreThoseThatAreNotFinal(t *testing.T) {
	for _, s := range allStates {
		if slices.Contains(command.Unfinished, s) == s.Final() {
			t.Errorf("%s", s)
		}
	}
}
