package backup_test

import (
	"encoding/json"
	"math"
	"reflect"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/backup"
)

// Each kind of audit entries is known: what it changed is journaled, or it changed no authority.
func TestEachKindOfEntriesIsJournaledOrNot(t *testing.T) {
	for _, kind := range audit.Kinds {
		e := audit.Entry{Tenant: "t", Kind: kind, Object: "x", Outcome: audit.Done}
		refs, known := backup.Changed(e)
		if !known {
			t.Errorf("%s: does it change authority that a restore must not lose? Add it to changes", kind)
		}
		for _, ref := range refs {
			if ref.Kind != backup.ServerObject && (ref.Tenant != "t" || ref.ID != "x") {
				t.Errorf("%s changes %+v", kind, ref)
			}
		}
		e.Outcome = audit.Refused
		if refs, _ := backup.Changed(e); len(refs) > 0 {
			t.Errorf("%s that was refused changes something", kind)
		}
	}
	for _, kind := range []string{audit.DeviceRevoke, audit.KindFor(watchword.Operator, audit.DeviceRevoke), audit.KindFor(watchword.Service, audit.DeviceSuspend), audit.OperatorRole} {
		if refs, _ := backup.Changed(audit.Entry{Kind: kind, Outcome: audit.Done}); len(refs) != 1 || refs[0].Kind != backup.SubjectObject {
			t.Errorf("%s changes %+v", kind, refs)
		}
	}
}

func TestARowIsReadAsItWasWritten(t *testing.T) {
	in := backup.Row{int64(math.MaxInt64), int64(math.MinInt64), "text \x00 é", []byte{0, 255}, []byte{}, "", nil}
	b, err := json.Marshal(in)
	must(t, err)
	var out backup.Row
	must(t, json.Unmarshal(b, &out))
	if !reflect.DeepEqual(in, out) {
		t.Errorf("%#v was read as %#v", in, out)
	}
	if _, err := json.Marshal(backup.Row{1.5}); err == nil {
		t.Error("a value of an unknown type was written")
	}
	for _, bad := range []string{`[1.5]`, `[true]`, `[{"base64":1}]`, `[{"base64":"!"}]`, `[{"other":"x"}]`, `[[]]`, `{}`} {
		if err := json.Unmarshal([]byte(bad), &out); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
}
