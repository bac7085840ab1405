package verify

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/authz"
)

// Require returns a middleware that passes on a request if its token allows action on resource. The handler gets the token
// by [FromContext]. {name} in a resource is replaced by the request's [http.Request.PathValue] of that name, which must be
// one level: not empty, without slash, wildcard or control character, and not . or ..; otherwise the request is denied.
//
//	mux.Handle("POST /readings", v.Require("api:/readings", "post")(handler))
//	mux.Handle("PUT /lamps/{id}", v.Require("fn:{id}/lamp.set", "call")(handler))
//
// It panics if no token can allow this action on this resource.
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

// canMatch reports whether a token can have a permission for this resource and action, with names filled in.
func canMatch(resource, action string) bool {
	filled, ok := fillPattern(resource, func(string) string { return "x" })
	g, err := authz.FromPermissions[struct{}]([]watchword.Permission{{Resource: filled, Actions: []string{action}}}, nil)
	return ok && err == nil && (&Token{grant: g}).Allows(filled, action).Allowed
}

// RequirePath returns a middleware that passes on a request if its token allows its method on its own path: api:/readings/7
// get for GET /readings/7, HEAD as GET. Other methods, and paths with an escaped slash, are denied. Other escapes are
// decoded once, as [http.Request.URL] has them, and the decoded path is compared: %00 is a NUL, which is denied, and %2500
// is the four characters %00. The path is the one that the middleware sees: inside [http.StripPrefix] the rest of it.
func (v *Verifier) RequirePath() func(http.Handler) http.Handler {
	return v.middleware(func(r *http.Request, t *Token) error {
		if strings.Contains(strings.ToLower(r.URL.RawPath), "%2f") {
			return Decision{}.Err()
		}
		return t.Allows(watchword.APIPrefix+r.URL.Path, r.Method).Err()
	})
}

// RequireToken returns a middleware that passes on a request if its token is valid, whatever it allows. The handler must
// check the token's permissions.
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

// fillPattern replaces each {name} by its value. It returns false if a value is not a single level of a topic, path or
// call.
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
		if !closed || s == "." || s == ".." || strings.Contains(s, "/") || !authz.Printable(s) || authz.CheckTopic(s) != nil {
			return "", false
		}
		out.WriteString(s)
		resource = after
	}
}
