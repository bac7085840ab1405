package watchword_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func key(id string, p watchword.Purpose, st watchword.KeyState) watchword.Key {
	return watchword.Key{ID: watchword.KeyID(id), Purpose: p, State: st}
}

func lamp(st watchword.State, keys ...watchword.Key) watchword.Subject {
	return watchword.Subject{ID: "lamp-1", Kind: watchword.Device, State: st, Version: 7, Incarnation: 2, Labels: watchword.Labels{"a": "b"}, Keys: keys}
}

func TestSubjectStateTransitions(t *testing.T) {
	sign, retired := key("sign", watchword.Sign, watchword.KeyActive), key("sign", watchword.Sign, watchword.KeyRetired)
	seal := key("seal", watchword.Seal, watchword.KeyActive)
	suspend := func(s watchword.Subject) (watchword.Subject, bool, error) { return s.Suspend(noon) }
	resume := func(s watchword.Subject) (watchword.Subject, bool, error) { return s.Resume(noon) }
	revoke := func(s watchword.Subject) (watchword.Subject, bool, error) {
		out, changed := s.Revoke(noon)
		return out, changed, nil
	}
	enroll := func(s watchword.Subject) (watchword.Subject, bool, error) {
		out, err := s.Enroll(key("new-sign", watchword.Sign, watchword.KeyActive), key("new-seal", watchword.Seal, watchword.KeyActive), noon)
		return out, err == nil, err
	}
	for _, c := range []struct {
		name string
		do   func(watchword.Subject) (watchword.Subject, bool, error)
		from watchword.Subject
		to   watchword.State // empty: it stays
		want watchword.Code
	}{
		{"a new one is suspended", suspend, lamp(watchword.New), watchword.Suspended, ""},
		{"an active one is suspended", suspend, lamp(watchword.Active, sign), watchword.Suspended, ""},
		{"a suspended one is suspended already", suspend, lamp(watchword.Suspended), "", ""},
		{"a revoked one cannot be suspended", suspend, lamp(watchword.Revoked), "", watchword.Conflict},
		{"one with a signing key resumes as active", resume, lamp(watchword.Suspended, retired, sign), watchword.Active, ""},
		{"one without keys resumes as new", resume, lamp(watchword.Suspended), watchword.New, ""},
		{"one whose signing key is retired resumes as new", resume, lamp(watchword.Suspended, retired, seal), watchword.New, ""},
		{"a new one need not resume", resume, lamp(watchword.New), "", ""},
		{"an active one need not resume", resume, lamp(watchword.Active), "", ""},
		{"a revoked one cannot resume", resume, lamp(watchword.Revoked), "", watchword.Conflict},
		{"a new one is revoked", revoke, lamp(watchword.New), watchword.Revoked, ""},
		{"an active one is revoked", revoke, lamp(watchword.Active, sign, seal), watchword.Revoked, ""},
		{"a suspended one is revoked", revoke, lamp(watchword.Suspended, sign), watchword.Revoked, ""},
		{"a revoked one is revoked already", revoke, lamp(watchword.Revoked), "", ""},
		{"a new one enrolls", enroll, lamp(watchword.New), watchword.Active, ""},
		{"a revoked one enrolls", enroll, lamp(watchword.Revoked, key("sign", watchword.Sign, watchword.KeyRevoked)), watchword.Active, ""},
		{"an active one does not enroll again", enroll, lamp(watchword.Active, sign), "", watchword.Conflict},
		{"a suspended one does not enroll", enroll, lamp(watchword.Suspended), "", watchword.Conflict},
	} {
		before := lamp(c.from.State, c.from.Keys...)
		after, changed, err := c.do(c.from)
		if watchword.CodeOf(err) != c.want || changed != (c.to != "") {
			t.Errorf("%s: changed %v, %v", c.name, changed, err)
		}
		if !reflect.DeepEqual(c.from, before) {
			t.Errorf("%s: what it got is %+v now", c.name, c.from)
		}
		if c.to == "" {
			if !reflect.DeepEqual(after, before) {
				t.Errorf("%s: %+v", c.name, after)
			}
			continue
		}
		if after.State != c.to || after.Version != 8 || !after.Changed.Equal(noon) {
			t.Errorf("%s: %+v", c.name, after)
		}
		lives := before.Incarnation
		if c.to == watchword.Active && before.State == watchword.Revoked {
			lives++
		}
		if after.Incarnation != lives {
			t.Errorf("%s: life %d, want %d", c.name, after.Incarnation, lives)
		}
		for _, k := range after.Keys[:len(before.Keys)] {
			if (k.State == watchword.KeyRevoked) != (c.to == watchword.Revoked || before.State == watchword.Revoked) {
				t.Errorf("%s: key %s is %s", c.name, k.ID, k.State)
			}
		}
	}
	s, err := lamp(watchword.New).Enroll(sign, seal, noon)
	if got, ok := s.SealKey(noon); err != nil || len(s.Keys) != 2 || !ok || got.ID != "seal" {
		t.Errorf("after enrollment: %+v, %v", s.Keys, err)
	}
}

func TestDeletedSubjectIsATombstone(t *testing.T) {
	for _, st := range []watchword.State{watchword.New, watchword.Active, watchword.Suspended, watchword.Revoked} {
		s := lamp(st, key("sign", watchword.Sign, watchword.KeyActive)).Delete(noon)
		if s.State != watchword.Revoked || len(s.Labels) != 0 || s.Version != 8 || s.Keys[0].State != watchword.KeyRevoked {
			t.Errorf("%s: %+v", st, s)
		}
	}
}

func TestLabelsAndProofChangeTheVersion(t *testing.T) {
	for _, c := range []struct {
		name      string
		ifVersion int64
		want      watchword.Code
	}{
		{"any version", 0, ""}, {"the version of now", 7, ""}, {"an older version", 6, watchword.PreconditionFailed}, {"a later version", 8, watchword.PreconditionFailed},
	} {
		s, changed, err := lamp(watchword.Suspended).Relabel(watchword.Labels{"c": "d"}, c.ifVersion, noon)
		if changed != (err == nil) || watchword.CodeOf(err) != c.want || err == nil && (s.Labels.String() != "c=d" || s.Version != 8 || s.State != watchword.Suspended) {
			t.Errorf("%s: %+v, %v", c.name, s, err)
		}
	}
	if s, changed, err := lamp(watchword.Active).Relabel(lamp(watchword.Active).Labels, 7, noon); changed || err != nil || s.Version != 7 {
		t.Errorf("the same labels change something: %+v, %v", s, err)
	}
	if _, changed, err := lamp(watchword.Active).Relabel(lamp(watchword.Active).Labels, 6, noon); changed || watchword.CodeOf(err) != watchword.PreconditionFailed {
		t.Errorf("the same labels under an older version: %v", err)
	}
	s, changed := lamp(watchword.Active).SetProof(watchword.RequireProof, noon)
	if !changed || s.Proof != watchword.RequireProof || s.Version != 8 {
		t.Errorf("a proof is required: %+v", s)
	}
	if _, changed := s.SetProof(watchword.RequireProof, noon); changed {
		t.Error("a proof that is required already changes something")
	}
}

func TestKeysAreReplaced(t *testing.T) {
	sign, seal := key("sign", watchword.Sign, watchword.KeyActive), key("seal", watchword.Seal, watchword.KeyActive)
	old := key("old", watchword.Sign, watchword.KeyRetired)
	for _, c := range []struct {
		name       string
		sign, seal watchword.Key
		want       string
	}{
		{"both keys", key("s2", watchword.Sign, watchword.KeyActive), key("e2", watchword.Seal, watchword.KeyActive), "old retired, sign retired now, seal retired now, s2 active, e2 active, "},
		{"the sealing key alone", sign, key("e2", watchword.Seal, watchword.KeyActive), "old retired, sign active, seal retired now, e2 active, "},
		{"the signing key alone", key("s2", watchword.Sign, watchword.KeyActive), seal, "old retired, sign retired now, seal active, s2 active, "},
	} {
		s, err := lamp(watchword.Active, old, sign, seal).ReplaceKeys(c.sign, c.seal, noon)
		if err != nil {
			t.Error(err)
		}
		got := ""
		for _, k := range s.Keys {
			got += string(k.ID) + " " + string(k.State)
			if k.Retired.Equal(noon) {
				got += " now"
			}
			got += ", "
		}
		if got != c.want || s.Version != 8 || s.State != watchword.Active {
			t.Errorf("%s: %s of version %d", c.name, got, s.Version)
		}
	}
}
