package audit

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strconv"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
)

// Pruning describes how far a log is pruned. Of the entries up to Through, which is the end of a tile, Retained still have
// their bodies: those of permanent kinds ([Permanent]). Chain is a hash over their numbers. The log itself records it in an
// entry log.prune before any body is deleted.
type Pruning struct {
	Through  int64
	Retained int64
	Chain    ledger.Hash // SHA-256 over the chain before it and the number of each, 8 bytes
}

// AddRetained adds the number of an entry whose body is retained.
func (p *Pruning) AddRetained(seq int64) {
	p.Retained++
	p.Chain = sha256.Sum256(binary.BigEndian.AppendUint64(p.Chain[:], uint64(seq)))
}

// Tile adds the next tile, whose entries are rs. It returns the numbers of the entries whose bodies are deleted, and the
// search filter of the others. Code: log_invalid, and not_found if the tile was pruned before.
func (p *Pruning) Tile(rs []Record) (goes []int64, stays TileFilter, err error) {
	for _, r := range rs {
		e, err := r.Entry()
		if err != nil {
			return nil, stays, err
		}
		if !Permanent(e.Kind) {
			goes = append(goes, r.Seq)
			continue
		}
		p.AddRetained(r.Seq)
		stays.Add(e)
	}
	p.Through += ledger.TileWidth
	return goes, stays, nil
}

// Reached returns an error if p is not the pruning that was announced. Code: conflict.
func (p Pruning) Reached(announced Pruning) error {
	if p != announced {
		return watchword.Refuse(watchword.Conflict, "the log is already pruned up to entry %d, or its entries changed meanwhile", p.Through)
	}
	return nil
}

// AddTo returns e with the data of p.
func (p Pruning) AddTo(e Entry) Entry {
	return e.With("through", strconv.FormatInt(p.Through, 10), "kept", strconv.FormatInt(p.Retained, 10), "chain", base64.StdEncoding.EncodeToString(p.Chain[:]))
}

// readPruning parses the output of AddTo. Code: log_invalid.
func readPruning(e Entry) (p Pruning, err error) {
	p.Through, err = strconv.ParseInt(e.Data["through"], 10, 64)
	if err == nil {
		p.Retained, err = strconv.ParseInt(e.Data["kept"], 10, 64)
	}
	chain, cerr := base64.StdEncoding.DecodeString(e.Data["chain"])
	if err != nil || cerr != nil || len(chain) != len(p.Chain) || p.Through < 0 || p.Through%ledger.TileWidth != 0 || p.Through >= e.Seq {
		return p, watchword.Refuse(watchword.LogInvalid, "entry %d is not a valid record of pruned entries", e.Seq)
	}
	p.Chain = ledger.Hash(chain)
	return p, nil
}

// tileBodies counts the bodies of one tile during verification.
type tileBodies struct {
	missing  int64 // the first entry without its body; 0: none
	retained Pruning
}

// CheckPruning verifies that exactly the bodies are missing that a signed log.prune entry covers. It detects a body that
// was deleted without such an entry, and a forged entry. The log must have been verified completely.
func (v *LogVerifier) CheckPruning() error {
	var p Pruning
	stated := int64(0)
	for _, e := range v.prunes {
		if e.Seq > v.result.Checkpoint.Size { // not covered by a checkpoint yet
			continue
		}
		q, err := readPruning(e)
		if err != nil {
			return err
		}
		if q.Through >= p.Through {
			p, stated = q, e.Seq
		}
	}
	for i, t := range v.tiles {
		if int64(i)*ledger.TileWidth >= p.Through && t.missing != 0 {
			return watchword.Refuse(watchword.LogInvalid, "entry %d has no body, and no entry records that it was pruned", t.missing)
		}
	}
	if p.Through == 0 {
		return nil
	}
	have := v.tiles[p.Through/ledger.TileWidth-1].retained
	if have.Retained != p.Retained || have.Chain != p.Chain {
		return watchword.Refuse(watchword.LogInvalid, "of the entries up to %d, %d of retained kinds have their bodies; entry %d records %d, or other entries", p.Through, have.Retained, stated, p.Retained)
	}
	return nil
}

// Permanent reports whether bodies of a kind are never pruned: which subject had which key when, the server's own keys, the
// policies, and the prunings. Evidence of commands depends on them.
func Permanent(kind string) bool {
	if kind == KindFor(watchword.Operator, DeviceCreate) { // of the first operator, with its key
		return true
	}
	switch KindOfDevice(kind) {
	case DeviceEnroll, DeviceRekey, DeviceKeyRevoke, DeviceKeyEnd, DeviceKeyRetire, DeviceRevoke, DeviceDelete, DeviceForget, OperatorRole, OperatorRecover, KeyCreate, KeyActivate, KeyRetire, KeyErase, KeyRevoke, KeyMove, BundleSign,
		PolicyApply, PolicyDelete, LogPrune, ServerStart, ClockRefuse, ClockTrust, ClockAccept, BackupCreate, AddressMove:
		return true
	}
	return false
}
