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

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
)

// JournalsRead is what [ReadJournals] found.
type JournalsRead struct {
	To      int64 // the last entry of the log that the journals cover
	Records int   // that were passed on
	Entries int   // in these: audit entries of changes of authority
	CutOff  bool  // the last journal ends within a record
}

// ReadJournals reads the journals that follow a backup, whose log was since, and calls f with each record that has entries of after
// it, in order. paths are all files that may be such journals; those of other logs are passed over. key is the one with
// which the server wrote them, derived from the data key in the backup.
//
// Codes: backup_invalid for a journal that was changed, that no identity opens, or that does not follow the backup without a gap;
// not_found where none follows it; those of f.
func ReadJournals(paths []string, key []byte, identities []age.Identity, since Log, f func(Record) error) (out JournalsRead, err error) {
	type journal struct {
		path string
		head JournalHead
	}
	var found []journal
	for _, path := range paths {
		j, err := OpenJournal(path, key, nil)
		if err != nil {
			return out, watchword.Wrap(err, watchword.BackupInvalid, "the journal %s cannot be read: %s", path, detail(err))
		}
		if err := j.Close(); err != nil {
			return out, err
		}
		if j.Start.Origin == since.Origin {
			found = append(found, journal{path, j.JournalHead})
		}
	}
	slices.SortFunc(found, func(a, b journal) int {
		return cmp.Or(cmp.Compare(a.head.Start.Size, b.head.Start.Size), a.head.Made.Compare(b.head.Made))
	})
	if len(found) == 0 {
		return out, watchword.Refuse(watchword.NotFound, "no journal of the log %s was found", since.Origin)
	}
	out.To = since.Size
	for _, j := range found {
		start := j.head.Start
		if start.Size > out.To {
			return out, watchword.Refuse(watchword.BackupInvalid, "the journal %s begins after entry %d, and the entries after %d are in no journal before it", j.path, start.Size, out.To)
		}
		if start.Size == since.Size && start.Hash != "" && start.Hash != since.Hash {
			return out, watchword.Refuse(watchword.BackupInvalid, "the journal %s follows another log than that of the backup: they differ before entry %d", j.path, since.Size)
		}
		if err := out.read(j.path, key, identities, since, f); err != nil {
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

// read reads one journal. Frames of before the backup are verified, and not decrypted.
func (out *JournalsRead) read(path string, key []byte, identities []age.Identity, since Log, f func(Record) error) (err error) {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	frames, j := frameReader{r: bufio.NewReader(file), key: key}, Journal{}
	out.CutOff = false
	for {
		head, body, err := frames.next()
		if err == io.EOF {
			return nil
		}
		if errors.Is(err, errCutOff) {
			out.CutOff = true
			return nil
		}
		if err == nil {
			err = j.take(frames.n, head)
		}
		if err != nil {
			return err
		}
		if frames.n == 1 || j.last.To <= since.Size {
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
		out.To = max(out.To, r.To)
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
