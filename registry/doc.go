// Package registry is the roll: devices, operators, services and policies. In
// come orders of people who may give them; out go changes in the store, with
// their audit entries, and word to every live session that a change touches
// before the answer. It refuses what would not fit a token, versions that have
// moved on, and policies with mistakes.
package registry
