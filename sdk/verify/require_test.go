package verify_test

import (
	"net/http"
	"testing"

	"github.com/watchword-iot/watchword/jose"
)

func TestRequireDecidesByTheRequest(t *testing.T) {
	key := newSigner(t, jose.P256)
	v, _ := static(t, jwks(key))
	mux := http.NewServeMux()
	mux.Handle("POST /readings", v.Require("api:/readings", "post")(open))
	mux.Handle("POST /topics/{name}/{leaf}", v.Require("topic:plant/{name}/{leaf}", "pub")(open))
	mux.Handle("POST /call/{id}/{fn}", v.Require("fn:{id}/{fn}", "call")(open))
	mux.Handle("GET /read/{id}", v.Require("api:/lamps/{id}", "get")(open))
	mux.Handle("/lamps/", v.RequirePath()(open))
	mux.Handle("/whoever", v.RequireToken()(open))
	auth := "Authorization: Bearer " + signToken(t, key, noon, map[string]any{"deny": [][]any{{"topic:plant/secret/#", []string{"pub", "sub"}}, {"api:/lamps/9/#", []string{"put"}}}})
	for _, tc := range []struct {
		method, path string
		status       int
	}{
		{"POST", "/readings", 200},
		{"POST", "/topics/hall/lux", 200},
		{"POST", "/topics/secret/lux", 403},
		{"POST", "/topics/%2B/lux", 403},    // +
		{"POST", "/topics/%23/lux", 403},    // #
		{"POST", "/topics/a%2Fb/lux", 403},  // one level, not two
		{"POST", "/topics/%2E%2E/lux", 403}, // ..
		{"POST", "/topics/%00/lux", 403},    // no topic has it
		{"POST", "/topics/%0A/lux", 403},    // LF
		{"POST", "/topics/%7F/lux", 403},
		{"POST", "/topics/%C2%85/lux", 403},    // U+0085
		{"POST", "/topics/%EF%BF%BE/lux", 403}, // U+FFFE
		{"POST", "/topics/%FF/lux", 403},       // no UTF-8
		{"POST", "/topics/%C3%A4/lux", 200},    // ä
		{"POST", "/call/lamp-2/lamp.set", 200},
		{"POST", "/call/lamp-2/door.open", 403},
		{"POST", "/call/kind=lamp/lamp.set", 403},
		{"POST", "/call/lamp-2/lamp.*", 403},
		{"GET", "/read/1", 200},
		{"HEAD", "/read/1", 200},
		{"GET", "/read/%2E%2E", 403},
		{"GET", "/read/a%2F..%2Fb", 403},
		{"GET", "/lamps/1", 200},
		{"HEAD", "/lamps/1", 200},
		{"PUT", "/lamps/1", 200},
		{"PUT", "/lamps/9/level", 403},
		{"POST", "/lamps/1", 403},
		{"OPTIONS", "/lamps/1", 403},
		{"PROPFIND", "/lamps/1", 403},
		{"GET", "/lamps/a%2Fb", 403},
		{"GET", "/lamps/a%2fb", 403},
		{"GET", "/lamps/%00", 403},
		{"GET", "/lamps/a%0d%0aX-Evil:1", 403},
		{"GET", "/lamps/%1b%5b2J", 403},
		{"GET", "/lamps/%7F", 403},
		{"GET", "/lamps/%C2%9B", 403},       // U+009B
		{"GET", "/lamps/%EF%B7%90", 403},    // U+FDD0
		{"GET", "/lamps/%F0%9F%BF%BF", 403}, // U+1FFFF
		{"GET", "/lamps/%FF", 403},
		{"GET", "/lamps/%C0%AF", 403},    // an overlong slash
		{"GET", "/lamps/%ED%A0%80", 403}, // a surrogate
		{"GET", "/lamps/%2500", 200},     // four characters: it is decoded once
		{"GET", "/lamps/%C3%A4%20b", 200},
		{"GET", "/read/%00", 403},
		{"GET", "/read/%C2%80", 403},
		{"GET", "/read/%FF", 403},
		{"GET", "/lamps/%2e%2e", 403},
		{"DELETE", "/whoever", 200},
	} {
		if w := ask(mux, tc.method, tc.path, auth); w.Code != tc.status {
			t.Errorf("%s %s: %d %s", tc.method, tc.path, w.Code, w.Body)
		}
		if w := ask(mux, tc.method, tc.path); w.Code != 401 {
			t.Errorf("%s %s without a token: %d", tc.method, tc.path, w.Code)
		}
	}
}

func TestRequireRefusesWhatNoTokenCanAllow(t *testing.T) {
	v, _ := static(t, jwks())
	for _, p := range [][2]string{
		{"api:readings", "post"},
		{"api:/readings", "POST"},
		{"api:/readings", "call"},
		{"/readings", "post"},
		{"", ""},
		{"api:/a/{id", "get"},
		{"api:/a//b", "get"},
		{"topic:a/+", "pub"},
		{"topic:a/#/b", "sub"},
		{"fn:kind=lamp/set", "call"},
		{"fn:*/set", "call"},
		{"fn:lamp", "call"},
		{"topic:", "pub"},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q %q was taken", p[0], p[1])
				}
			}()
			v.Require(p[0], p[1])
		}()
	}
	for _, p := range [][2]string{{"topic:a/+", "sub"}, {"topic:$site/{x}", "pub"}, {"fn:{d}/{f}", "call"}, {"api:/{a}/{b}", "delete"}, {"api:/", "get"}} {
		v.Require(p[0], p[1])
	}
}
