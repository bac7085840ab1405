// Package terminal prints what people read. In come constant texts with fields that others filled, out go lines in which no
// field can do more than be read: it refuses to pass control characters, marks that turn or hide text, and line breaks inside
// a field.
package terminal
