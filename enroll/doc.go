// Package enroll is the gate: a stranger shows a one-time code and its public
// keys, proves that it holds them, and becomes a subject or is turned away; with
// no code, it waits until an operator has approved its key. In come operators who
// add devices and strangers with keys; out go links, trust bundles and subjects.
// It refuses codes that are unknown, used or over, keys without proof of
// possession, and those who guess (DESIGN §1).
package enroll
