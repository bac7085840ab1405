package verify

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/permit"
)

// Require returns a middleware that lets a request through whose token allows action on
// resource, and gives its handler the token by [FromContext]. {name} in a resource stands
// for what [http.Request.PathValue] has for that name, which must be one level: not empty,
// no slash, no wildcard, no control character, no . or ..; else it is nobody's.
//
//	mux.Handle("POST /readings", v.Require("api:/readings", "post")(handler))
//	mux.Handle("PUT /lamps/{id}", v.Require("fn:{id}/lamp.set", "call")(handler))
//
// It panics where resource and action are none that a token can allow.
func (v *Verifier) Require(resource, action string) func(http.Handler) http.Handler {
	if !canMatch(resource, action) {
		panic("verify: Require(" + strconv.Quote(resource) + ", " + strconv.Quote(action) + "): no token can allow that")
	}
	return v.middleware(func(r *http.Request, t *Token) error {
		res, ok := fillPattern(resource, r.PathValue)
		if !ok {
			return Decision{}.Err()
		}
		return t.Allows(res, action).Err()
	})
}

// canMatch reports whether a token that allows just this, with names filled in, would
// let it pass.
func canMatch(resource, action string) bool {
	filled, ok := fillPattern(resource, func(string) string { return "x" })
	g, err := permit.FromPermissions[struct{}]([]watchword.Permission{{Resource: filled, Actions: []string{action}}}, nil)
	return ok && err == nil && (&Token{grant: g}).Allows(filled, action).Allowed
}

// RequirePath returns a middleware that lets a request through whose token allows its
// method on its own path: api:/readings/7 get for GET /readings/7, HEAD as GET. Other
// methods, and paths with an escaped slash, are nobody's. Other escapes are decoded once,
// as [http.Request.URL] has them, and what they stand for is judged: %00 is a NUL, which
// is nobody's, and %2500 is the four characters %00. The path is the one that the
// middleware sees: inside [http.StripPrefix] what is left of it.
func (v *Verifier) RequirePath() func(http.Handler) http.Handler {
	return v.middleware(func(r *http.Request, t *Token) error {
		if strings.Contains(strings.ToLower(r.URL.RawPath), "%2f") {
			return Decision{}.Err()
		}
		return t.Allows(watchword.APIPrefix+r.URL.Path, r.Method).Err()
	})
}

// RequireToken returns a middleware that lets a request through whose token is good,
// whatever it allows: the handler asks it.
func (v *Verifier) RequireToken() func(http.Handler) http.Handler {
	return v.middleware(func(*http.Request, *Token) error { return nil })
}

func (v *Verifier) middleware(may func(*http.Request, *Token) error) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			now := v.now()
			t, nonce, err := v.checkRequest(r, now)
			if err == nil {
				err = may(r, t)
			}
			if err != nil {
				v.Refuse(w, r, err)
				return
			}
			if v.nonces != nil && t.Bound != "" {
				if current := v.nonces.current(now); nonce != current { // RFC 9449 §8.2
					w.Header().Set("DPoP-Nonce", current)
					w.Header().Set("Cache-Control", "no-store")
				}
			}
			next.ServeHTTP(w, r.WithContext(NewContext(r.Context(), t)))
		})
	}
}

// fillPattern puts values in the place of {name}. It reports false for one that is no single
// level of a topic, path or call.
func fillPattern(resource string, value func(name string) string) (string, bool) {
	if !strings.Contains(resource, "{") {
		return resource, true
	}
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(resource, "{")
		out.WriteString(before)
		if !found {
			return out.String(), true
		}
		name, after, closed := strings.Cut(rest, "}")
		s := value(name)
		if !closed || s == "." || s == ".." || strings.Contains(s, "/") || !permit.Printable(s) || permit.CheckTopic(s) != nil {
			return "", false
		}
		out.WriteString(s)
		resource = after
	}
}
