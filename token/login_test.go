package token_test

import (
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/token"
)

func TestLoginLink(t *testing.T) {
	key, pin := strings.Repeat("A", 43), strings.Repeat("E", 43)
	want := token.LoginRequest{Server: "https://hub.example:8443/t/a", UserCode: "BCDF-GHJK", Key: watchword.KeyID(key), Pin: pin}
	if got, err := token.ParseLoginLink(" " + want.Link() + "\n"); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	good := "https://hub.example/login#code=BCDF-GHJK&key=" + key + "&pin=" + pin
	if _, err := token.ParseLoginLink(good); err != nil {
		t.Fatal(err)
	}
	for name, link := range map[string]string{
		"plain HTTP":              strings.Replace(good, "https", "http", 1),
		"no host":                 strings.Replace(good, "hub.example", "", 1),
		"a user":                  strings.Replace(good, "hub", "user@hub", 1),
		"a query":                 strings.Replace(good, "login#", "login?x=1#", 1),
		"another path":            strings.Replace(good, "/login", "/e", 1),
		"no code":                 strings.Replace(good, "code=BCDF-GHJK&", "", 1),
		"an escape in the code":   strings.Replace(good, "BCDF-GHJK", "BCDF-GH%1B", 1),
		"a code without the dash": strings.Replace(good, "BCDF-GHJK", "BCDFGHJKL", 1),
		"two codes":               good + "&code=BCDF-GHJK",
		"a further member":        good + "&role=owner",
		"no key":                  strings.Replace(good, "key="+key+"&", "", 1),
		"a key that is cut":       strings.Replace(good, key, key[1:], 1),
		"no pin":                  strings.Replace(good, "&pin="+pin, "", 1),
		"a pin that is cut":       good[:len(good)-1],
		"an enrollment link":      "https://hub.example/e#code=" + strings.Repeat("A", 22) + "&pin=" + pin,
		"nothing":                 "",
	} {
		if got, err := token.ParseLoginLink(link); watchword.CodeOf(err) != watchword.BadRequest {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
}
