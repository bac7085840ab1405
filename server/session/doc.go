// Package session holds what each live connection and request may do now, and notifies its
// transport when that changes. Verified credentials and changes of authority come in; an authority
// for every decision, and the cause of a session's end, go out. It refuses credentials of a subject
// that is not active, of a key that is retired or revoked, of an earlier incarnation, and expired
// ones.
package session
