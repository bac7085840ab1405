// Package terminal prints text for people. Programs give constant formats and untrusted fields; no
// field can change more than its own text: control characters, characters that reorder or hide
// text, and line breaks inside a field are escaped.
package terminal
