// Package permit is what one line of authority covers: topics, calls and paths,
// and deny before allow. In come rules and questions, out comes a decision with
// the rule that made it. Policy compiles its documents into it, and a resource
// server a token's claims, so that both judge alike; it has no clock, no store,
// and refuses filters that are none.
package permit
