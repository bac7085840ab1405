// Package authn authenticates subjects and issues access tokens. It takes client assertions (RFC 7523), access tokens and DPoP
// proofs (RFC 9449), and returns issued tokens, which are recorded in the store, and verified credentials for package session.
// It refuses assertions that do not verify or were used before, and access tokens that this server has no record of issuing,
// even where their signature is valid.
package authn
