// Package verify checks access tokens of a Watchword server in a service of your own (a resource server, RFC 6750). It takes an
// issuer and HTTP requests, and returns the token's subject and permissions. It refuses tokens of another issuer or audience,
// tokens that have expired, tokens that are bound to a key and come without a proof of it (RFC 9449), and requests that the
// token does not allow.
//
//	v, err := verify.New(ctx, "https://watchword.example", verify.Audience("https://api.example"))
//	mux.Handle("POST /readings", v.Require("api:/readings", "post")(handler)) // Authorization: Bearer or DPoP
//
// A token is accepted until its exp plus a minute of skew, even if it was revoked
// meanwhile: this package does not follow revocations, so tokens should be short-lived,
// as they are by default (10 minutes).
//
// Only the keys of the issuer are fetched, in the background; a request waits for a
// fetch only where its kid is new. While the issuer cannot be reached, the last keys are
// used for up to [MaxAge]. Used DPoP proofs are remembered in this process: with several
// instances, each may accept a proof once.
package verify
