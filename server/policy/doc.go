// Package policy decides what a subject may do: subject, action and resource come in, allow or deny
// with the name of the rule goes out. Documents compile into one grant per subject; tokens carry a
// part of it, and sessions ask it for every message. The package has no clock and no store. It
// refuses documents with mistakes, naming line and column.
package policy
