// Package command is orders out and receipts back. In come calls that policy
// allows and receipts that devices sign; out go commands that are numbered when
// they are stored, signed and sealed when they are handed over, and settled by
// a receipt or by their end (DESIGN §6). It refuses what policy or the
// function's schema does not allow, and receipts that fit nothing handed over.
package command
