package watchword_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
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
	for form, got := range map[string]string{
		"%v": fmt.Sprintf("%v", secret), "%s": fmt.Sprintf("%s", secret), "%q": fmt.Sprintf("%q", secret), "%#v": fmt.Sprintf("%#v", secret),
		"%+v of a struct": fmt.Sprintf("%+v", in), "%#v of a struct": fmt.Sprintf("%#v", in), "JSON": string(encoded), "slog": logged.String(),
	} {
		if strings.Contains(got, string(secret)) || !strings.Contains(got, "[secret]") {
			t.Errorf("%s gives %s", form, got)
		}
	}
}
