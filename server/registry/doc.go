// Package registry manages devices, operators, services and policies. It takes changes by authorized subjects and writes them to
// the store with their audit entries; every live session that a change affects has been updated before the caller gets its
// answer. Its [Directory] returns a subject as it is now. It refuses changes after which a token would exceed its size limit,
// changes of an old version, and policies with mistakes.
package registry
