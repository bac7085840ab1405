// Package command sends commands to devices and processes their receipts. It takes calls that policy allows and receipts that
// devices sign. A command gets its number when it is stored; it is signed and encrypted when it is handed over; a receipt or its
// expiry ends it. The package refuses calls that policy or the function's schema does not allow, and receipts that match no
// command that was handed over. docs/protocol.md describes commands and receipts.
package command
