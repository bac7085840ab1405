package watchword_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
)

// until is a key with an end.
func until(k watchword.Key, ends time.Time) watchword.Key {
	k.Ends = ends
	return k
}

func TestKeyIsValidUntilItsEnd(t *testing.T) {
	for _, c := range []struct {
		name         string
		state        watchword.KeyState
		ends         time.Time
		valid, ended bool
	}{
		{"an active key without an end is valid", watchword.KeyActive, time.Time{}, true, false},
		{"a key is valid a nanosecond before its end", watchword.KeyActive, noon.Add(1), true, false},
		{"a key is not valid at its end", watchword.KeyActive, noon, false, true},
		{"a key is not valid after its end", watchword.KeyActive, noon.Add(-time.Second), false, true},
		{"a retired key is not valid", watchword.KeyRetired, time.Time{}, false, false},
		{"a revoked key is not valid before its end", watchword.KeyRevoked, noon.Add(time.Hour), false, false},
	} {
		sign := until(key("sign", watchword.Sign, c.state), c.ends)
		s := lamp(watchword.Active, sign, until(key("seal", watchword.Seal, c.state), c.ends))
		if sign.ValidAt(noon) != c.valid || sign.EndedAt(noon) != c.ended {
			t.Errorf("%s: valid %v, ended %v", c.name, sign.ValidAt(noon), sign.EndedAt(noon))
		}
		_, signs := s.SignKey("sign", noon)
		if _, seals := s.SealKey(noon); signs != c.valid || seals != c.valid || s.SignKeys(noon) != map[bool]int{true: 1}[c.valid] {
			t.Errorf("%s: signs %v, seals %v, %d keys", c.name, signs, seals, s.SignKeys(noon))
		}
		resumed, _, err := lamp(watchword.Suspended, sign).Resume(noon)
		if err != nil || (resumed.State == watchword.Active) != c.valid {
			t.Errorf("%s: it resumes as %s, %v", c.name, resumed.State, err)
		}
		permanent := c.valid && c.ends.IsZero()
		if s.HasPermanentKey() != permanent {
			t.Errorf("%s: permanent %v", c.name, !permanent)
		}
		if suspended := lamp(watchword.Suspended, sign); suspended.HasPermanentKey() {
			t.Errorf("%s: a suspended subject has a permanent key", c.name)
		}
	}
	if sealing := lamp(watchword.Active, key("seal", watchword.Seal, watchword.KeyActive)); sealing.HasPermanentKey() || sealing.SignKeys(noon) != 0 {
		t.Error("a sealing key signs")
	}
}

func TestAccessEndsWithTheLastKey(t *testing.T) {
	ends := func(in time.Duration) watchword.Key {
		return until(key("k", watchword.Sign, watchword.KeyActive), noon.Add(in))
	}
	permanent, revoked, seal := key("k", watchword.Sign, watchword.KeyActive), key("k", watchword.Sign, watchword.KeyRevoked), key("k", watchword.Seal, watchword.KeyActive)
	for _, c := range []struct {
		name string
		keys []watchword.Key
		want time.Time
	}{
		{"a key without an end", []watchword.Key{ends(time.Hour), permanent, ends(time.Minute)}, time.Time{}},
		{"the latest end counts", []watchword.Key{ends(time.Minute), ends(time.Hour), ends(time.Second)}, noon.Add(time.Hour)},
		{"ended and revoked keys do not count", []watchword.Key{revoked, ends(0), ends(time.Second)}, noon.Add(time.Second)},
		{"sealing keys do not count", []watchword.Key{seal, ends(time.Second)}, noon.Add(time.Second)},
		{"no valid key", []watchword.Key{revoked, ends(0)}, time.Time{}},
	} {
		s := alice(watchword.Active, 0, c.keys...)
		if got := s.AccessEnds(noon); !got.Equal(c.want) {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// alice is an operator with n signing keys that are valid.
func alice(st watchword.State, n int, more ...watchword.Key) watchword.Subject {
	s := watchword.Subject{ID: "alice", Kind: watchword.Operator, Role: watchword.OwnerRole, State: st, Version: 7, Incarnation: 2}
	for i := range n {
		s.Keys = append(s.Keys, key(fmt.Sprint("k", i), watchword.Sign, watchword.KeyActive))
	}
	s.Keys = append(s.Keys, more...)
	return s
}

func TestFurtherKeyIsAdded(t *testing.T) {
	service, device := alice(watchword.Active, 1), alice(watchword.Active, 1)
	service.Kind, device.Kind = watchword.Service, watchword.Device
	for _, c := range []struct {
		name string
		s    watchword.Subject
		want watchword.Code
	}{
		{"an operator gets a further key", alice(watchword.Active, 1), ""},
		{"a service too", service, ""},
		{"a device does not", device, watchword.Conflict},
		{"an operator whose keys have all ended gets one", alice(watchword.Active, 0, until(key("old", watchword.Sign, watchword.KeyActive), noon)), ""},
		{"the last free place is given", alice(watchword.Active, watchword.MaxSignKeys-1), ""},
		{"more keys than the limit are refused", alice(watchword.Active, watchword.MaxSignKeys), watchword.Conflict},
		{"keys that are revoked or have ended do not count", alice(watchword.Active, watchword.MaxSignKeys-1, key("r", watchword.Sign, watchword.KeyRevoked), until(key("e", watchword.Sign, watchword.KeyActive), noon)), ""},
		{"a new operator enrolls instead", alice(watchword.New, 0), watchword.Conflict},
		{"a suspended one gets no key", alice(watchword.Suspended, 1), watchword.Conflict},
		{"nor does a revoked one", alice(watchword.Revoked, 1), watchword.Conflict},
	} {
		after, err := c.s.AddSigningKey(until(key("next", watchword.Sign, watchword.KeyActive), noon.Add(time.Hour)), watchword.ByItself, noon)
		if watchword.CodeOf(err) != c.want {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if err != nil {
			continue
		}
		k, ok := after.SignKey("next", noon)
		if !ok || !k.Ends.Equal(noon.Add(time.Hour)) || len(after.Keys) != len(c.s.Keys)+1 || after.Version != 8 || after.State != watchword.Active || after.Incarnation != 2 {
			t.Errorf("%s: %+v", c.name, after)
		}
		if !slices.EqualFunc(after.Keys[:len(c.s.Keys)], c.s.Keys, func(a, b watchword.Key) bool { return a.ID == b.ID && a.State == b.State }) {
			t.Errorf("%s: the earlier keys changed: %+v", c.name, after.Keys)
		}
	}
}

func TestOneKeyIsRevoked(t *testing.T) {
	device := alice(watchword.Active, 2)
	device.Kind = watchword.Device
	for _, c := range []struct {
		name    string
		s       watchword.Subject
		key     watchword.KeyID
		changed bool
		want    watchword.Code
	}{
		{"one of two", alice(watchword.Active, 2), "k1", true, ""},
		{"the only one", alice(watchword.Active, 1), "k0", true, ""},
		{"one of a suspended operator", alice(watchword.Suspended, 2), "k1", true, ""},
		{"a retired one", alice(watchword.Active, 1, key("old", watchword.Sign, watchword.KeyRetired)), "old", true, ""},
		{"one that is revoked already", alice(watchword.Active, 1, key("old", watchword.Sign, watchword.KeyRevoked)), "old", false, ""},
		{"one that there is not", alice(watchword.Active, 1), "k9", false, watchword.NotFound},
		{"a sealing key is not one", alice(watchword.Active, 1, key("seal", watchword.Seal, watchword.KeyActive)), "seal", false, watchword.NotFound},
		{"a device's", device, "k1", false, watchword.Conflict},
	} {
		after, changed, err := c.s.RevokeKey(c.key, noon)
		if watchword.CodeOf(err) != c.want || changed != c.changed {
			t.Errorf("%s: changed %v, %v", c.name, changed, err)
		}
		if !changed {
			continue
		}
		for i, k := range after.Keys {
			want := c.s.Keys[i].State
			if k.ID == c.key {
				want = watchword.KeyRevoked
			}
			if k.State != want {
				t.Errorf("%s: key %s is %s", c.name, k.ID, k.State)
			}
		}
		if after.State != c.s.State || after.Version != 8 {
			t.Errorf("%s: %+v", c.name, after)
		}
	}
}

func TestEndedKeysAreRetired(t *testing.T) {
	before := alice(watchword.Active, 1, until(key("over", watchword.Sign, watchword.KeyActive), noon), until(key("later", watchword.Sign, watchword.KeyActive), noon.Add(time.Second)),
		until(key("revoked", watchword.Sign, watchword.KeyRevoked), noon.Add(-time.Hour)))
	after, changed := before.RetireEndedKeys(noon)
	if !changed || after.Version != 8 || before.Keys[1].State != watchword.KeyActive {
		t.Errorf("changed %v: %+v", changed, after)
	}
	want := []watchword.KeyState{watchword.KeyActive, watchword.KeyRetired, watchword.KeyActive, watchword.KeyRevoked}
	for i, k := range after.Keys {
		if k.State != want[i] || (k.State == watchword.KeyRetired) != k.Retired.Equal(noon) {
			t.Errorf("%s is %s since %s", k.ID, k.State, k.Retired)
		}
	}
	if again, changed := after.RetireEndedKeys(noon); changed || again.Version != 8 {
		t.Errorf("retired twice: %+v", again)
	}
}

// Who changes keys cannot get a longer end by it.
func TestReplacedKeyKeepsTheEnd(t *testing.T) {
	end := noon.Add(time.Hour)
	for _, c := range []struct {
		name     string
		old, new time.Time
		want     time.Time
	}{
		{"no end stays no end", time.Time{}, time.Time{}, time.Time{}},
		{"an end is inherited", end, time.Time{}, end},
		{"a later end is cut", end, end.Add(1), end},
		{"an earlier end stays", end, end.Add(-1), end.Add(-1)},
		{"a key without an end is replaced by one with an end", time.Time{}, end, end},
	} {
		s := lamp(watchword.Active, until(key("sign", watchword.Sign, watchword.KeyActive), c.old), key("seal", watchword.Seal, watchword.KeyActive))
		after, err := s.ReplaceKeys(until(key("new-sign", watchword.Sign, watchword.KeyActive), c.new), key("new-seal", watchword.Seal, watchword.KeyActive), noon)
		if err != nil {
			t.Error(err)
		}
		k, _ := after.SignKey("new-sign", noon)
		if seal, _ := after.SealKey(noon); !k.Ends.Equal(c.want) || !seal.Ends.IsZero() {
			t.Errorf("%s: the signing key ends at %s, the sealing key at %s", c.name, k.Ends, seal.Ends)
		}
	}
}

// The end of a key becomes earlier, never later.
func TestKeyEndIsSet(t *testing.T) {
	end := noon.Add(time.Hour)
	revoked := key("sign", watchword.Sign, watchword.KeyRevoked)
	device := lamp(watchword.Active, key("sign", watchword.Sign, watchword.KeyActive))
	for _, c := range []struct {
		name    string
		kind    watchword.Kind
		key     watchword.Key
		id      watchword.KeyID
		end     time.Time
		want    time.Time
		changed bool
		code    watchword.Code
	}{
		{"a key without an end gets one, in whole seconds", watchword.Operator, device.Keys[0], "sign", end.Add(time.Second - 1), end, true, ""},
		{"that of a service too", watchword.Service, device.Keys[0], "sign", end, end, true, ""},
		{"an end becomes earlier", watchword.Operator, until(device.Keys[0], end), "sign", end.Add(-time.Second), end.Add(-time.Second), true, ""},
		{"the same end changes nothing", watchword.Operator, until(device.Keys[0], end), "sign", end, end, false, ""},
		{"an end does not become later", watchword.Operator, until(device.Keys[0], end), "sign", end.Add(time.Second), end, false, watchword.Conflict},
		{"no end in this second", watchword.Operator, device.Keys[0], "sign", noon.Add(time.Second - 1), time.Time{}, false, watchword.BadRequest},
		{"a key that has ended stays ended", watchword.Operator, until(device.Keys[0], noon), "sign", end, noon, false, watchword.Conflict},
		{"a revoked key", watchword.Operator, revoked, "sign", end, time.Time{}, false, watchword.Conflict},
		{"an unknown key", watchword.Operator, device.Keys[0], "other", end, time.Time{}, false, watchword.NotFound},
		{"a key of a device", watchword.Device, device.Keys[0], "sign", end, time.Time{}, false, watchword.Conflict},
	} {
		s := device
		s.Kind, s.Keys = c.kind, []watchword.Key{c.key}
		after, changed, err := s.SetKeyEnd(c.id, c.end, noon)
		if watchword.CodeOf(err) != c.code || changed != c.changed || !after.Keys[0].Ends.Equal(c.want) || changed != (after.Version == s.Version+1) {
			t.Errorf("%s: %v until %s, version %d after %d, %v", c.name, changed, after.Keys[0].Ends, after.Version, s.Version, err)
		}
		if !s.Keys[0].Ends.Equal(c.key.Ends) {
			t.Errorf("%s: the subject of before has changed", c.name)
		}
	}
}

// Each method with which a subject gets a key keeps the bound of new keys: a new one too, since it takes a Key.
func TestNewKeysAreBounded(t *testing.T) {
	subject := func(kind watchword.Kind, state watchword.State, n int, added time.Time) watchword.Subject {
		s := watchword.Subject{ID: "x", Kind: kind, State: state}
		for i := range n {
			k := key(fmt.Sprint("old-", i), watchword.Sign, watchword.KeyRevoked)
			k.Added = added
			s.Keys = append(s.Keys, k)
		}
		return s
	}
	full := noon.Add(time.Millisecond - watchword.NewKeysWindow)
	limits := map[string]int{
		"AddSigningKey of itself": watchword.MaxNewKeys, "AddSigningKey": watchword.MaxNewKeysByOthers, "Enroll": watchword.MaxNewKeysByOthers, "ReplaceKeys": watchword.MaxNewKeys,
	}
	methods := 0
	check := func(m reflect.Method, by watchword.KeyGiver) (taken bool) {
		name := m.Name
		if by == watchword.ByItself {
			name += " of itself"
		}
		limit := limits[name]
		in := []reflect.Value{{}}
		keys := 0
		for i := 1; i < m.Type.NumIn(); i++ {
			switch p := m.Type.In(i); p {
			case reflect.TypeFor[watchword.Key]():
				purpose := []watchword.Purpose{watchword.Sign, watchword.Seal}[keys]
				in = append(in, reflect.ValueOf(key("new-"+string(purpose), purpose, watchword.KeyActive)))
				keys++
			case reflect.TypeFor[time.Time]():
				in = append(in, reflect.ValueOf(noon))
			case reflect.TypeFor[watchword.KeyGiver]():
				in, taken = append(in, reflect.ValueOf(by)), true
			default:
				in = append(in, reflect.Zero(p))
			}
		}
		if keys == 0 || by == watchword.ByItself && !taken {
			return false
		}
		methods++
		if limit == 0 {
			t.Errorf("no limit is stated for %s", name)
			return false
		}
		codes := func(n int, added time.Time) (all []watchword.Code) {
			for _, kind := range []watchword.Kind{watchword.Device, watchword.Operator, watchword.Service} {
				for _, state := range []watchword.State{watchword.New, watchword.Active, watchword.Suspended, watchword.Revoked} {
					in[0] = reflect.ValueOf(subject(kind, state, n, added))
					out := m.Func.Call(in)
					err, _ := out[len(out)-1].Interface().(error)
					all = append(all, watchword.CodeOf(err))
				}
			}
			return all
		}
		at := codes(limit, full)
		for _, c := range []struct {
			name  string
			codes []watchword.Code
		}{
			{"one key less", codes(limit-1, full)}, {"as many keys, a day ago", codes(limit, noon.Add(-watchword.NewKeysWindow))},
		} {
			for i, code := range c.codes {
				if code == "" && at[i] != watchword.RateLimited || code != "" && at[i] != code {
					t.Errorf("%s of case %d: %q at the bound, %q with %s", name, i, at[i], code, c.name)
				}
			}
			if !slices.Contains(c.codes, "") {
				t.Errorf("%s never gives a key with %s: %q", name, c.name, c.codes)
			}
		}
		return taken
	}
	for m := range reflect.TypeFor[watchword.Subject]().Methods() {
		check(m, watchword.ByAnother)
		check(m, watchword.ByItself)
	}
	if methods < 4 {
		t.Errorf("only %d methods take a key", methods)
	}
}

func TestKeyNameIsBounded(t *testing.T) {
	for name, want := range map[string]watchword.Code{
		"": "", "alice's laptop (2)": "", strings.Repeat("x", watchword.MaxKeyName): "",
		strings.Repeat("x", watchword.MaxKeyName+1): watchword.BadRequest, "a\nb": watchword.BadRequest, "\x7f": watchword.BadRequest, "é": watchword.BadRequest,
	} {
		if got := watchword.CodeOf(watchword.CheckKeyName(name)); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

// Whether a key is valid depends on its state and its end. Only the rules of this package compare the state with active: other
// code asks [watchword.Key.ValidAt] with the time.
func TestOnlyOneRuleSaysWhichKeysAreValid(t *testing.T) {
	seen := 0
	for _, s := range sources(t) {
		if s.test || s.pkg == "storetest" {
			continue
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, filepath.FromSlash(s.path), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			var operands []ast.Expr
			switch n := n.(type) {
			case *ast.BinaryExpr:
				operands = []ast.Expr{n.X, n.Y}
			case *ast.CaseClause:
				operands = n.List
			default:
				return true
			}
			for _, e := range operands {
				if sel, ok := e.(*ast.SelectorExpr); ok {
					e = sel.Sel
				}
				id, ok := e.(*ast.Ident)
				if !ok || id.Name != "KeyActive" {
					continue
				}
				if seen++; s.path != "subject.go" && s.path != "subject_changes.go" {
					t.Errorf("%s: compares the state of a key: ask Key.ValidAt", fset.Position(n.Pos()))
				}
			}
			return true
		})
	}
	if seen == 0 {
		t.Error("no comparison was found")
	}
}
