package audit_test

import (
	"reflect"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
)

// What Body writes, Parse reads: byte for byte one entry, whatever stands in it.
func FuzzBody(f *testing.F) {
	f.Add("default", int64(1_790_000_000_123), "token.issue", "lamp-1", "k", "tok_1", "done", "", "trace", "reason", "he said \"no\"\n</script>\u2028", "remote", "127.0.0.1")
	f.Add("", int64(0), "", "", "", "", "", "denied", "", "", "", "a", "")
	f.Fuzz(func(t *testing.T, tenant string, at int64, kind, actor, key, object, outcome, code, trace, k1, v1, k2, v2 string) {
		e := audit.Entry{
			Seq: 7, Tenant: watchword.TenantID(tenant), At: time.UnixMilli(at % (1 << 44)).UTC(), Kind: kind, Actor: watchword.SubjectID(actor), Key: watchword.KeyID(key),
			Object: object, Outcome: audit.Outcome(outcome), Code: watchword.Code(code), Trace: trace, Data: map[string]string{k1: v1, k2: v2},
		}
		b, err := e.Body()
		if err != nil {
			t.Fatal(err)
		}
		again, err := audit.Parse(7, b)
		if err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		whole := true
		for _, s := range []string{tenant, kind, actor, key, object, outcome, code, trace, k1, v1, k2, v2} {
			whole = whole && utf8.ValidString(s)
		}
		if whole && !reflect.DeepEqual(again, e) {
			t.Errorf("%s is read as %+v, and was %+v", b, again, e)
		}
		if c, err := again.Body(); err != nil || whole && string(c) != string(b) {
			t.Errorf("written again it is %s, and was %s", c, b)
		}
	})
}
