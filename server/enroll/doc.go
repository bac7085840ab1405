// Package enroll makes keys those of a subject. A device presents a one-time code and its public keys and proves that it holds
// them; without a code, an operator approves the keys (pairing, RFC 8628). The package takes requests by operators and by
// devices that are not enrolled yet, and returns links, trust bundles and subjects. It refuses codes that are unknown, used or
// expired and keys without proof of possession, and limits the rate of wrong codes.
package enroll
