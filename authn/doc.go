// Package authn is where proof becomes paper. In come client assertions and
// access tokens; out go access tokens that are on record, and papers that the
// guard of the sessions takes. It refuses assertions that prove nobody or were
// used before, and tokens that nobody here issued, however well they are signed.
package authn
