// Package policy decides what a subject may do: its input is subject, action and resource, its output allow or deny with
// the name of the rule. Documents compile into one grant per subject; tokens carry a part of it, and sessions use it for
// every message. The package has no clock and no store. It refuses documents with mistakes, naming line and column.
package policy
