package backup

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"
	"strings"

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
)

// JournalsRead is what [ReadJournals] found.
type JournalsRead struct {
	To      int64 // the last entry of the log that the journals cover
	Records int   // that were passed on
	Entries int   // in these: audit entries of changes of authority
	Missing int64 // entries after the backup, before To, that are in no journal which can be read
	// Damage says why entries after To may be lost: the last journal is damaged there. Empty: nothing says so.
	Damage string
	// Unreadable are the files without a valid beginning, each with the reason; Empty are those with no byte, as a crash leaves one that
	// had no record. An unreadable one may have entries of this log, an empty one has none.
	Unreadable, Empty []string
}

// ReadJournals reads the journals that follow a backup, whose log was since, and calls f with each record that has entries of after
// it, in order. paths are all files that may be such journals; those of other logs are passed over. key is the one with
// which the server wrote them, derived from the data key in the backup. Damage of a file does not end the reading: the valid records
// before it count, and those of the other files, and the result says what is missing. A record has whole rows, so one that follows
// a gap is right for its objects.
//
// Codes: backup_invalid where no journal has a valid beginning, where no identity opens a record, or where a journal follows another
// log than that of the backup; not_found where none is of the backup's log; those of f.
func ReadJournals(paths []string, key []byte, identities []age.Identity, since Log, f func(Record) error) (out JournalsRead, err error) {
	type journal struct {
		path string
		head JournalHead
	}
	var found []journal
	valid := 0
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil && info.Size() == 0 {
			out.Empty = append(out.Empty, path)
			continue
		}
		j, err := OpenJournal(path, key, nil)
		if err != nil {
			out.Unreadable = append(out.Unreadable, path+": "+detail(err))
			continue
		}
		if err := j.Close(); err != nil {
			return out, err
		}
		if valid++; j.Start.Origin == since.Origin {
			found = append(found, journal{path, j.JournalHead})
		}
	}
	slices.SortFunc(found, func(a, b journal) int {
		return cmp.Or(cmp.Compare(a.head.Start.Size, b.head.Start.Size), a.head.Made.Compare(b.head.Made))
	})
	switch {
	case len(found) > 0:
	case valid == 0 && len(out.Unreadable) > 0:
		return out, watchword.Refuse(watchword.BackupInvalid, "no journal can be read: %s", strings.Join(out.Unreadable, "; "))
	case valid == 0 && len(out.Empty) > 0:
		return out, watchword.Refuse(watchword.BackupInvalid, "no journal has a record: %s", strings.Join(out.Empty, ", "))
	default:
		return out, watchword.Refuse(watchword.NotFound, "no journal of the log %s was found", since.Origin)
	}
	out.To = since.Size
	for _, j := range found {
		start := j.head.Start
		if start.Size == since.Size && start.Hash != "" && start.Hash != since.Hash {
			return out, watchword.Refuse(watchword.BackupInvalid, "the journal %s follows another log than that of the backup: they differ before entry %d", j.path, since.Size)
		}
		if start.Size > out.To {
			out.Missing += start.Size - out.To
			out.To = start.Size
		}
		if err := out.read(j.path, key, identities, f); err != nil {
			return out, err
		}
	}
	return out, nil
}

func detail(err error) string {
	if ours, is := errors.AsType[*watchword.Error](err); is {
		return ours.Detail
	}
	return err.Error()
}

// read reads one journal. Frames that have no entry after the backup, or after the journals before, are verified and not decrypted.
func (out *JournalsRead) read(path string, key []byte, identities []age.Identity, f func(Record) error) (err error) {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	frames, j := frameReader{r: bufio.NewReader(file), key: key}, Journal{}
	out.Damage = "" // the server goes on in another file after a damaged record: what is lost then is missing before that file
	for {
		head, body, err := frames.next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = j.take(frames.n, head)
		}
		if err != nil {
			out.Damage = path + ": " + detail(err)
			return nil
		}
		if frames.n == 1 || j.last.To <= out.To {
			continue
		}
		r, err := openRecord(body, identities)
		if err != nil {
			return err
		}
		if r.From != j.last.From || r.To != j.last.To {
			return watchword.Refuse(watchword.BackupInvalid, "record %d of the journal %s is not the one that its head names", j.last.Number, path)
		}
		if err := f(r); err != nil {
			return err
		}
		out.Records++
		out.Entries += len(r.Entries)
		out.To = r.To
	}
}

func openRecord(body []byte, identities []age.Identity) (r Record, err error) {
	plain, err := age.Decrypt(bytes.NewReader(body), identities...)
	if _, other := errors.AsType[*age.NoIdentityMatchError](err); other {
		return r, invalid(err, "no identity that was given opens the journal: it is encrypted to others")
	}
	if err == nil {
		err = json.NewDecoder(io.LimitReader(plain, maxBody)).Decode(&r)
	}
	if err != nil {
		return r, invalid(err, "a record of the journal is not readable")
	}
	return r, nil
}
