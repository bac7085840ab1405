// Package acme gets certificates for the server's public names from a certificate authority that speaks ACME (RFC 8555), and renews
// them. The names, the account and the folder for its files come in; a certificate for a handshake, answers to the validations of the
// authority and the state of the orders go out. It orders in the background only, for the configured names only, and never while the
// server's clock is not trusted: no handshake of a client can cause a request to the authority.
package acme
