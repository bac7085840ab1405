package mqtt

import (
	"reflect"
	"testing"
	"time"
)

// TestOptionsDefaults holds that every option has a default but for those whose zero value means
// something, and that a default replaces nothing that was set.
func TestOptionsDefaults(t *testing.T) {
	zeroMeans := map[string]bool{"PublishRate": true, "ControlRate": true, "ConnectRate": true, "ControlCharacters": true, "HandshakeFailed": true, "Issuers": true}
	filled := reflect.ValueOf(Options{}.withDefaults())
	set := Options{}
	for i := range filled.NumField() {
		name := filled.Type().Field(i).Name
		if filled.Field(i).IsZero() != zeroMeans[name] {
			t.Errorf("%s: zero after withDefaults: %v", name, filled.Field(i).IsZero())
		}
		switch f := reflect.ValueOf(&set).Elem().Field(i); f.Kind() {
		case reflect.Int, reflect.Int64:
			f.SetInt(int64(i) + 1)
		case reflect.Float64:
			f.SetFloat(float64(i) + 1)
		}
	}
	set.Now = func() time.Time { return time.Unix(7, 0) }
	got := reflect.ValueOf(set.withDefaults())
	for i := range got.NumField() {
		switch f := got.Field(i); f.Kind() {
		case reflect.Int, reflect.Int64, reflect.Float64:
			if !f.Equal(reflect.ValueOf(set).Field(i)) {
				t.Errorf("%s: withDefaults replaced %v by %v", got.Type().Field(i).Name, reflect.ValueOf(set).Field(i), f)
			}
		}
	}
	if n := set.withDefaults().Now(); !n.Equal(time.Unix(7, 0)) {
		t.Errorf("withDefaults replaced the clock: %v", n)
	}
}
