package server

import (
	"reflect"
	"slices"
	"testing"
	"time"
)

// Each key of the configuration either takes effect at a reload, or is named as one that takes effect at the next start.
func TestEachKeyIsReloadedOrNamed(t *testing.T) {
	keys := 0
	_ = eachKey(new(Config), func(section, key string, _ reflect.Value, _ bool) error { // the callback returns no error
		keys++
		name, old, next := section+"."+key, Defaults(), Defaults()
		if got, atStart := old.Reloaded(next); len(atStart) > 0 || !reflect.DeepEqual(got, old) {
			t.Fatalf("nothing changed, and it says %q", atStart)
		}
		_ = eachKey(&next, func(s, k string, v reflect.Value, _ bool) error { // likewise
			if s+"."+k != name {
				return nil
			}
			switch p := v.Addr().Interface().(type) {
			case *string:
				*p += "x"
			case *[]string:
				*p = append(*p, "x")
			case *int:
				*p++
			case *bool:
				*p = !*p
			case *Duration:
				p.Duration += time.Second
			default:
				t.Fatalf("%s is a %T", name, p)
			}
			return nil
		})
		got, atStart := old.Reloaded(next)
		if reloadableKeys[name] {
			if len(atStart) > 0 || !reflect.DeepEqual(got, next) {
				t.Errorf("%s was not changed; it says %q", name, atStart)
			}
		} else if !slices.Equal(atStart, []string{name}) || !reflect.DeepEqual(got, old) {
			t.Errorf("%s is to be named, and changed nothing: %q", name, atStart)
		}
		return nil
	})
	if keys < 50 {
		t.Errorf("looked at %d keys", keys)
	}
}
