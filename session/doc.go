// Package session is the guard: what each live connection may do at this
// moment, and who tells it when that changes. In come checked papers and news
// of what changed; out goes an authority that every transport asks, and a cause
// when it ends. It refuses papers of a subject that is not active, of a key
// that no longer counts, of an earlier life, or past their end (DESIGN §5).
package session
