// Package backup is the form of a backup: one file, encrypted with age, with everything that a server needs to go on elsewhere. A
// [Writer] gets the files of a data folder one by one, with constant memory; [Extract] writes them to a folder again, and refuses
// an archive that was changed, cut off or made to do harm. It reads no database: package server says what goes into a backup.
package backup
