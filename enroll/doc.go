// Package enroll is the gate: a stranger shows a one-time code and its public
// keys, proves that it holds them, and becomes a subject or is turned away. In
// come operators who add devices and strangers with codes; out go links, trust
// bundles and subjects with keys. It refuses codes that are unknown, used or
// over, keys without proof of possession, and those who guess (DESIGN §1).
package enroll
