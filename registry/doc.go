// Package registry holds devices, operators, services and policies. In come orders
// of subjects that may give them; out go changes in the store, with their audit
// entries, and news to every live session that a change touches before the answer.
// Its [Directory] answers for a subject as it stands now. It refuses what would not
// fit a token, versions that have moved on, and policies with mistakes.
package registry
