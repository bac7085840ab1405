package httpapi

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"testing"

	"github.com/watchword-iot/watchword/server/authn"
)

var update = flag.Bool("update", false, "write testdata/openapi.json anew")

// testdata/openapi.json is the OpenAPI document, with its members in order of their names. A change of the API
// changes this file, in the same commit: go test ./server/httpapi -run TestOpenAPI -update.
func TestOpenAPIIsWhatTheRepositoryHas(t *testing.T) {
	const file = "testdata/openapi.json"
	o, err := authn.New("https://hub.example", nil, nil, nil, nil, authn.Options{})
	if err != nil {
		t.Fatal(err)
	}
	a := New(Dependencies{Auth: o, Options: Options{Version: "test", PublicURL: "https://hub.example"}})
	raw, err := json.Marshal(a.huma.OpenAPI())
	if err != nil {
		t.Fatal(err)
	}
	var doc any
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(doc, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	old, now := bytes.Split(want, []byte("\n")), bytes.Split(got, []byte("\n"))
	for i := range max(len(old), len(now)) {
		if i >= len(old) || i >= len(now) || !bytes.Equal(old[i], now[i]) {
			t.Fatalf("the OpenAPI document differs from %s from line %d on: where that is meant, write it with -update", file, i+1)
		}
	}
}
