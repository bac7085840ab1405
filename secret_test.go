package watchword_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
)

func TestASecretIsNotPrinted(t *testing.T) {
	const secret = watchword.Secret("hunter2")
	in := struct{ Password watchword.Secret }{secret}
	var logged strings.Builder
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", slog.Any("password", secret))
	encoded, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	verbs := map[string]string{}
	for _, verb := range []string{"%v", "%s", "%q", "%#v"} {
		verbs[verb] = fmt.Sprintf(verb, secret)
	}
	maps.Copy(verbs, map[string]string{
		"%+v of a struct": fmt.Sprintf("%+v", in), "%#v of a struct": fmt.Sprintf("%#v", in), "JSON": string(encoded), "slog": logged.String(),
	})
	for form, got := range verbs {
		if strings.Contains(got, string(secret)) || !strings.Contains(got, "[secret]") {
			t.Errorf("%s gives %s", form, got)
		}
	}
}
