package ledger

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/watchword-iot/watchword"
)

// EntriesLevel is the level number of a bundle of entries.
const EntriesLevel = -1

// Path returns the path of a tile, or of a bundle of entries, below the log's prefix, as C2SP tlog-tiles defines it; the
// module proxy's checksum database uses other paths.
func Path(level int, n int64, width int) string {
	name := strconv.Itoa(level)
	if level == EntriesLevel {
		name = "entries"
	}
	digits := fmt.Sprintf("%03d", n%1000)
	for n >= 1000 {
		n /= 1000
		digits = fmt.Sprintf("x%03d/%s", n%1000, digits)
	}
	if width < TileWidth {
		digits += ".p/" + strconv.Itoa(width)
	}
	return "tile/" + name + "/" + digits
}

// ParsePath parses a path of exactly the form that Path returns. Code: not_found.
func ParsePath(path string) (level int, n int64, width int, err error) {
	rest, ok := strings.CutPrefix(path, "tile/")
	name, rest, ok2 := strings.Cut(rest, "/")
	level, width = EntriesLevel, TileWidth
	if name != "entries" {
		level, err = strconv.Atoi(name)
	}
	digits, part, partial := strings.Cut(rest, ".p/")
	if partial && err == nil {
		width, err = strconv.Atoi(part)
	}
	for p := range strings.SplitSeq(digits, "/") {
		d, perr := strconv.ParseInt(strings.TrimPrefix(p, "x"), 10, 16)
		if n = n*1000 + d; perr != nil || n > 1<<53 {
			err = strconv.ErrRange
			break
		}
	}
	// Comparing with Path ensures that only the canonical form is accepted.
	if !ok || !ok2 || err != nil || n < 0 || width < 1 || level > 63 || Path(level, n, width) != path {
		return 0, 0, 0, watchword.Refuse(watchword.NotFound, "no tile has this path")
	}
	return level, n, width, nil
}
