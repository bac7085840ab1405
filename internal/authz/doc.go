// Package authz decides on topics, calls and paths by compiled rules, deny before allow. Package
// policy compiles policy documents into it, and resource servers compile a token's claims, so that
// both decide alike. It has no clock and no store, and refuses invalid filters.
package authz
