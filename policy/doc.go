// Package policy is what papers open: subject, action and resource in, allow or
// deny with the rule's name out. Documents compile into one grant per subject,
// which a token carries in part and a session asks on every message; it has no
// clock and no store. It refuses documents with mistakes, saying line and column.
package policy
