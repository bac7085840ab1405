package audit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
)

// Fetch fetches the file at a path below a log's URL, as "checkpoint". Code: not_found.
type Fetch func(ctx context.Context, path string) ([]byte, error)

// VerifyMirror recomputes a log that is served, or stored, as C2SP tlog-tiles: every entry against its tile, every tile
// against those above, the whole against the checkpoint, and against checkpoints that were stored elsewhere. Codes:
// log_invalid, and those of get.
func VerifyMirror(ctx context.Context, get Fetch, keys []ledger.Key, against ...[]byte) (VerifyResult, error) {
	note, err := get(ctx, "checkpoint")
	if err != nil {
		return VerifyResult{}, err
	}
	c, err := NewLogVerifier(keys, [][]byte{note}, against)
	if err != nil {
		return VerifyResult{}, err
	}
	last, err := ledger.ReadCheckpoint(note)
	if err != nil {
		return VerifyResult{}, err
	}
	for at := int64(0); at < last.Size; at += ledger.TileWidth {
		width := int(min(ledger.TileWidth, last.Size-at))
		if err := c.bundle(ctx, get, at, width); err != nil {
			return c.result, err
		}
	}
	v, err := c.Finish()
	if err != nil {
		return v, err
	}
	return v, c.checkPartialTiles(ctx, get)
}

// fetchTile fetches a tile or bundle; if a partial one no longer exists, the beginning of the full one replaces it.
func fetchTile(ctx context.Context, get Fetch, level int, n int64, width, each int) ([]byte, error) {
	b, err := get(ctx, ledger.Path(level, n, width))
	if width < ledger.TileWidth && watchword.CodeOf(err) == watchword.NotFound {
		if b, err = get(ctx, ledger.Path(level, n, ledger.TileWidth)); err == nil && len(b) >= width*each {
			b = b[:width*each]
		}
	}
	return b, err
}

// bundle verifies a bundle of entries, and the tiles that become full with it.
func (v *LogVerifier) bundle(ctx context.Context, get Fetch, at int64, width int) error {
	n := at / ledger.TileWidth
	b, err := fetchTile(ctx, get, ledger.EntriesLevel, n, width, ledger.EntrySize)
	if err != nil {
		return missingFile(err, ledger.Path(ledger.EntriesLevel, n, width), at)
	}
	commitments, err := ledger.ParseBundle(b, width)
	if err != nil {
		return watchword.Wrap(err, watchword.LogInvalid, "entry %d or one up to %d: the bundle is damaged", at+1, at+int64(width))
	}
	tile, err := fetchTile(ctx, get, 0, n, width, len(ledger.Hash{}))
	if err != nil {
		return missingFile(err, ledger.Path(0, n, width), at)
	}
	for i, h := range commitments {
		leaf := ledger.LeafHash(h)
		if !bytes.HasPrefix(tile[min(len(tile), i*len(leaf)):], leaf[:]) {
			return watchword.Refuse(watchword.LogInvalid, "entry %d does not match the hash in its tile", at+int64(i)+1)
		}
		v.result.Entries++
		full, err := v.addLeaf(leaf)
		if err != nil {
			return err
		}
		for _, t := range full[min(len(full), 1):] { // the first was already compared
			if err := v.tile(ctx, get, t.Level, t.N, t.Hashes); err != nil {
				return err
			}
		}
	}
	if len(tile) != width*len(ledger.Hash{}) {
		return watchword.Refuse(watchword.LogInvalid, "entry %d: its tile has more hashes than the log has entries", at+int64(width))
	}
	return nil
}

// tile compares a tile with the expected one.
func (v *LogVerifier) tile(ctx context.Context, get Fetch, level int, n int64, want []ledger.Hash) error {
	b, err := fetchTile(ctx, get, level, n, len(want), len(ledger.Hash{}))
	first := n << (ledger.TileHeight * (level + 1))
	if err != nil {
		return missingFile(err, ledger.Path(level, n, len(want)), first)
	}
	return CompareTile(b, level, n, want)
}

// CompareTile compares a tile with the hashes computed from its entries. Code: log_invalid.
func CompareTile(b []byte, level int, n int64, want []ledger.Hash) error {
	each := int64(1) << (ledger.TileHeight * level)
	first := n*each*ledger.TileWidth + 1
	for i, h := range want {
		if !bytes.HasPrefix(b[min(len(b), i*len(h)):], h[:]) {
			return watchword.Refuse(watchword.LogInvalid, "entry %s: %s does not match the hashes of the entries",
				span(first+int64(i)*each, first+int64(i+1)*each-1), ledger.Path(level, n, len(want)))
		}
	}
	if len(b) != len(want)*len(ledger.Hash{}) {
		return watchword.Refuse(watchword.LogInvalid, "%s is longer than the log allows", ledger.Path(level, n, len(want)))
	}
	return nil
}

// checkPartialTiles compares the partial tiles above the leaves.
func (v *LogVerifier) checkPartialTiles(ctx context.Context, get Fetch) error {
	for level, w := range ledger.PartialWidths(v.tree.Size()) {
		if level == 0 || w == 0 {
			continue
		}
		n, hashes := v.tree.Edge(level)
		if err := v.tile(ctx, get, level, n, hashes); err != nil {
			return err
		}
	}
	return nil
}

func missingFile(err error, path string, at int64) error {
	if watchword.CodeOf(err) != watchword.NotFound {
		return err
	}
	return watchword.Wrap(err, watchword.LogInvalid, "entry %d: %s is missing", at+1, path)
}

// VerifyExport recomputes an exported log, whose entries may be hashes only. Code: log_invalid.
func VerifyExport(r io.Reader, keys []ledger.Key, against ...[]byte) (VerifyResult, error) {
	const most = 1 << 20 // maximum line length: a policy's text, escaped twice
	lines := bufio.NewReaderSize(r, most)
	var c *LogVerifier
	var rs []Record // until the checkpoint is known, which is the last line
	for {
		raw, err := lines.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return VerifyResult{}, watchword.Refuse(watchword.LogInvalid, "the export has no checkpoint at its end: entries after %d may be missing", len(rs))
		}
		if err != nil {
			return VerifyResult{}, watchword.Wrap(err, watchword.LogInvalid, "entry %d of the export is damaged, or too long", len(rs)+1)
		}
		var l ExportLine
		if err := jsonv2.Unmarshal(raw, &l, jsonv2.RejectUnknownMembers(true)); err != nil { // duplicate members are refused, so that all readers get the same value
			return VerifyResult{}, watchword.Wrap(err, watchword.LogInvalid, "entry %d of the export is damaged", len(rs)+1)
		}
		if l.Checkpoint != "" {
			if c, err = NewLogVerifier(keys, [][]byte{[]byte(l.Checkpoint)}, against); err != nil {
				return VerifyResult{}, err
			}
			break
		}
		rec, err := l.Record()
		if err != nil {
			return VerifyResult{}, err
		}
		rec.Body, rec.Salt = bodyMarker(rec.Body), ledger.Salt{} // it was hashed, and is no longer needed
		rs = append(rs, rec)
	}
	if _, err := lines.ReadByte(); err == nil {
		return VerifyResult{}, watchword.Refuse(watchword.LogInvalid, "the export has lines after its checkpoint")
	}
	for _, rec := range rs {
		if rec.Seq != c.result.Entries+1 {
			return c.result, watchword.Refuse(watchword.LogInvalid, "entry %d is missing or out of order: entry %d follows entry %d", c.result.Entries+1, rec.Seq, c.result.Entries)
		}
		c.result.Entries++
		if rec.Body != nil {
			c.result.Bodies++
		}
		if _, err := c.addLeaf(ledger.LeafHash(rec.Hash)); err != nil {
			return c.result, err
		}
	}
	v, err := c.Finish()
	if err == nil && v.Uncovered > 0 {
		err = watchword.Refuse(watchword.LogInvalid, "entry %d: the export has %d entries, and its checkpoint was signed for %d", v.Checkpoint.Size+1, v.Entries, v.Checkpoint.Size)
	}
	return v, err
}

// bodyMarker returns a value that records only whether there was a body.
func bodyMarker(body []byte) []byte {
	if body == nil {
		return nil
	}
	return []byte{}
}
