package backup

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"slices"
	"strings"

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
)

// JournalsRead is what [ReadJournals] found.
type JournalsRead struct {
	Origin  string // of the log to which the last journal belongs
	To      int64  // the last entry of that log that the journals cover
	Records int    // that were passed on
	Entries int    // in these: audit entries of changes of authority
	Missing int64  // entries after the backup, before To, that are in no journal which can be read
	// Damage says why entries after To may be lost: the last journal is damaged there. Empty: nothing says so.
	Damage string
	// Omitted are objects that changed and whose rows no later record has: they were too large for one.
	Omitted []Ref
	// PassedOver are journals whose last records do not count, and are not known to be in those that do: of a server from which, or
	// beside which, another one was restored.
	PassedOver []string
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
// A server that was restored from that backup, or from a later one of the same log, goes on in another log. Its journals count too, in the
// place of those of the log before from where they part. Of several such servers, the one of the highest epoch counts: the devices
// obey it.
//
// All journals that count must be of one log: an older copy of the database may have been put back, and then the same numbers are those of
// other acts. root returns the root hash, in base64, of the backup's log at a size of at most since.Size.
//
// Codes: backup_invalid where no journal has a valid beginning, where no identity opens a record, or where a journal follows another
// log than that of the backup, or two journals different ones; not_found where none is of the backup's log; those of root and f.
func ReadJournals(paths []string, key []byte, identities []age.Identity, since Log, root func(size int64) (string, error), f func(Record) error) (out JournalsRead, err error) {
	var all []JournalFile
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil && info.Size() == 0 {
			out.Empty = append(out.Empty, path)
			continue
		}
		j, err := ReadJournalFile(path, key)
		if err != nil {
			out.Unreadable = append(out.Unreadable, path+": "+detail(err))
			continue
		}
		all = append(all, j)
	}
	found := out.line(all, since)
	switch {
	case len(found) > 0:
	case len(all) == 0 && len(out.Unreadable) > 0:
		return out, watchword.Refuse(watchword.BackupInvalid, "no journal can be read: %s", strings.Join(out.Unreadable, "; "))
	case len(all) == 0 && len(out.Empty) > 0:
		return out, watchword.Refuse(watchword.BackupInvalid, "no journal has a record: %s", strings.Join(out.Empty, ", "))
	default:
		return out, watchword.Refuse(watchword.NotFound, "no journal of the log %s was found", since.Origin)
	}
	if err := checkOneLog(found, since, root); err != nil {
		return out, err
	}
	out.Origin, out.To = found[len(found)-1].Start.Origin, since.Size
	for _, j := range found {
		start := j.Start
		if start.Size > out.To {
			out.Missing += start.Size - out.To
			out.To = start.Size
		}
		if err := out.read(j, key, identities, f); err != nil {
			return out, err
		}
	}
	return out, nil
}

// journalPart is a journal, and the last entry for which it counts.
type journalPart struct {
	JournalFile
	last int64
}

// checkOneLog refuses journals that are of different logs, or of another one than the backup. Those without an entry after the backup do not
// count. Code: backup_invalid.
func checkOneLog(found []journalPart, since Log, root func(size int64) (string, error)) error {
	const how = "an older copy of the database was put back after they were written, or two servers ran on copies of it; leave only those of the log that you mean in the folder"
	forks := map[string][]Fork{}
	for _, j := range found {
		if origin := j.Start.Origin; len(j.Forks) > len(forks[origin]) {
			forks[origin] = j.Forks
		}
	}
	type size struct {
		origin string
		n      int64
	}
	type at struct{ root, path string }
	seen := map[size]at{}
	shared := map[string]int64{} // by origin: up to which entry the newest journals are certainly of the backup's log
	for _, j := range found {
		if j.To <= since.Size && j.Start.Size != since.Size {
			continue
		}
		var known Mark // the last one that the backup has too
		for _, m := range j.Marks {
			if m.Size <= since.Size {
				known = m
				continue
			}
			key := size{j.Start.Origin, m.Size}
			if other, again := seen[key]; again && other.root != m.Root {
				return watchword.Refuse(watchword.BackupInvalid, "the journals %s and %s are of different logs, which differ before entry %d: %s", other.path, j.Path, m.Size+1, how)
			}
			seen[key] = at{m.Root, j.Path}
		}
		if known.Root != "" {
			want := since.Hash
			if known.Size < since.Size {
				var err error
				if want, err = root(known.Size); err != nil {
					return err
				}
			}
			if known.Root != want {
				return watchword.Refuse(watchword.BackupInvalid, "the journal %s follows another log than that of the backup: they differ before entry %d: %s", j.Path, known.Size+1, how)
			}
		}
		newest := forks[j.Start.Origin]
		if common := CommonAfter(newest, len(j.Forks)); j.To > common {
			return watchword.Refuse(watchword.BackupInvalid, "the journal %s has entries after %d, and a later journal of %s has others in their place: %s", j.Path, common, j.Start.Origin, how)
		}
		if len(j.Forks) == len(newest) {
			shared[j.Start.Origin] = max(shared[j.Start.Origin], known.Size)
		}
	}
	for origin, upTo := range shared {
		for _, f := range forks[origin] {
			if f.Common < since.Size && upTo < min(f.Parted, since.Size) {
				return watchword.Refuse(watchword.BackupInvalid, "nothing shows that the backup and the journals of %s are of one log after entry %d: an older copy of the database was put back, and the backup may be of before that; leave in the folder only the journals that followed the backup", origin, f.Common)
			}
		}
	}
	return nil
}

// line returns the journals that follow a backup, in order: those of its log, and from where a restored server's log parts from it,
// those of that one, and so on.
func (out *JournalsRead) line(all []JournalFile, since Log) (found []journalPart) {
	for origin := since.Origin; origin != ""; {
		next, end := successor(all, origin, since), int64(math.MaxInt64)
		var applied map[string]int64
		if next.Restored != nil {
			end, applied = next.Restored.Size, next.applied(all)
		}
		var of, others []JournalFile
		for _, j := range all {
			if j.Start.Origin == origin {
				of = append(of, j)
				if j.To > max(end, applied[origin]) {
					out.PassedOver = append(out.PassedOver, j.Path)
				}
				continue
			}
			if j.continues(origin, since) && j.Start.Origin != next.Start.Origin && j.To > applied[j.Start.Origin] {
				out.PassedOver = append(out.PassedOver, j.Path)
			}
			others = append(others, j)
		}
		slices.SortFunc(of, func(a, b JournalFile) int {
			return cmp.Or(cmp.Compare(a.Start.Size, b.Start.Size), a.Made.Compare(b.Made))
		})
		for _, j := range of {
			if j.Start.Size < end {
				found = append(found, journalPart{j, end})
			}
		}
		all, origin = others, next.Start.Origin // fewer each time, so it ends
	}
	return found
}

// successor returns the head of a journal of the server whose log continues that of an origin, which had the entries of since; the zero
// one if there is none.
func successor(all []JournalFile, origin string, since Log) (next JournalHead) {
	for _, j := range all {
		if j.continues(origin, since) && (next.Restored == nil || j.Epoch > next.Epoch) {
			next = j.JournalHead
		}
	}
	return next
}

// continues reports whether the journal is of a server whose log continues that of an origin, after the entries of since.
func (h JournalHead) continues(origin string, since Log) bool {
	r := h.Restored
	return r != nil && r.Origin == origin && h.Start.Origin != origin && (r.Size > since.Size || r.Size == since.Size && r.Hash == since.Hash)
}

// applied returns, by origin, up to which entry restores applied the changes of logs, so that they are in the journals of h.
func (h JournalHead) applied(all []JournalFile) map[string]int64 {
	out := map[string]int64{}
	for h.Applied != nil {
		of := *h.Applied
		if _, again := out[of.Origin]; again {
			break
		}
		out[of.Origin] = of.Size
		h = JournalHead{}
		for _, j := range all {
			if j.Start.Origin == of.Origin && j.Applied != nil {
				h = j.JournalHead
			}
		}
	}
	return out
}

func detail(err error) string {
	if ours, is := errors.AsType[*watchword.Error](err); is {
		return ours.Detail
	}
	return err.Error()
}

// read reads one journal. Frames that have no entry after the backup, or after the journals before, are verified and not decrypted.
func (out *JournalsRead) read(part journalPart, key []byte, identities []age.Identity, f func(Record) error) (err error) {
	path := part.Path
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
		if j.last.From >= part.last {
			return nil
		}
		r, err := openRecord(body, identities)
		if err != nil {
			return err
		}
		if r.From != j.last.From || r.To != j.last.To || r.Root != j.last.Root {
			return watchword.Refuse(watchword.BackupInvalid, "record %d of the journal %s is not the one that its head names", j.last.Number, path)
		}
		r.To = min(r.To, part.last)
		// Records of two files may overlap.
		r.Entries = slices.DeleteFunc(r.Entries, func(e Entry) bool { return e.Seq <= out.To || e.Seq > r.To })
		if err := f(r); err != nil {
			return err
		}
		for _, o := range r.Objects {
			out.Omitted = slices.DeleteFunc(out.Omitted, func(ref Ref) bool { return ref == o.Ref })
		}
		for _, ref := range r.Omitted {
			if !slices.Contains(out.Omitted, ref) {
				out.Omitted = append(out.Omitted, ref)
			}
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
		err = json.NewDecoder(io.LimitReader(plain, MaxRecord)).Decode(&r)
	}
	if err != nil {
		return r, invalid(err, "a record of the journal is not readable")
	}
	return r, nil
}
