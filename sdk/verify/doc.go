// Package verify is what a user's own service carries: it checks the access tokens
// that a Watchword server issues, as an API behind its own address needs. In come
// an issuer and requests, out come who asks and what they may do. It refuses what
// another issuer signed, what is for another audience, what is over, what is bound to
// a key and comes without its proof (RFC 9449), and what the token does not allow.
//
//	v, err := verify.New(ctx, "https://watchword.example", verify.Audience("https://api.example"))
//	mux.Handle("POST /readings", v.Require("api:/readings", "post")(handler)) // Authorization: Bearer or DPoP
//
// A token counts here until its exp and a minute of skew, whatever was revoked
// meanwhile: this package does not follow revocations, so tokens should be short-lived,
// as they are by default (10 minutes).
//
// The issuer is asked for its keys and for nothing else, and not on the way of a
// request, but where a key is new. While it cannot be reached, the last good keys count
// on, up to [MaxAge]. Used DPoP proofs are remembered by this process: behind several
// instances one proof may pass once at each.
package verify
