package audit

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strconv"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
)

// Pruning is how far a log is pruned: of the entries up to Through, which ends a tile,
// Kept have their bodies still, those of kinds that last ([Lasting]); Chain names each
// of them. The log says so itself, in an entry log.prune, before anything is taken.
type Pruning struct {
	Through int64
	Kept    int64
	Chain   ledger.Hash // SHA-256 over the chain before it and the number of each, 8 bytes
}

// Keep adds the number of an entry that is kept.
func (p *Pruning) Keep(seq int64) {
	p.Kept++
	p.Chain = sha256.Sum256(binary.BigEndian.AppendUint64(p.Chain[:], uint64(seq)))
}

// Say returns e with what it says of p.
func (p Pruning) Say(e Entry) Entry {
	return e.With("through", strconv.FormatInt(p.Through, 10), "kept", strconv.FormatInt(p.Kept, 10), "chain", base64.StdEncoding.EncodeToString(p.Chain[:]))
}

// readPruning reads what Say wrote. Code: log_invalid.
func readPruning(e Entry) (p Pruning, err error) {
	p.Through, err = strconv.ParseInt(e.Data["through"], 10, 64)
	if err == nil {
		p.Kept, err = strconv.ParseInt(e.Data["kept"], 10, 64)
	}
	chain, cerr := base64.StdEncoding.DecodeString(e.Data["chain"])
	if err != nil || cerr != nil || len(chain) != len(p.Chain) || p.Through < 0 || p.Through%ledger.TileWidth != 0 || p.Through >= e.Seq {
		return p, watchword.Refuse(watchword.LogInvalid, "entry %d says nothing that can be of what was pruned", e.Seq)
	}
	p.Chain = ledger.Hash(chain)
	return p, nil
}

// bodies is what a check remembers of one tile's.
type bodies struct {
	missing int64 // the first entry that has lost its own; 0: none
	kept    Pruning
}

// Gaps checks that what is pruned is what the log says was pruned, under its own
// signature: who takes a body away, or says so themselves, is found out. For a log
// that is seen whole.
func (c *Check) Gaps() error {
	var p Pruning
	said := int64(0)
	for _, e := range c.prunes {
		if e.Seq > c.v.Checkpoint.Size { // nobody's word yet
			continue
		}
		q, err := readPruning(e)
		if err != nil {
			return err
		}
		if q.Through >= p.Through {
			p, said = q, e.Seq
		}
	}
	for i, t := range c.tiles {
		if int64(i)*ledger.TileWidth >= p.Through && t.missing != 0 {
			return watchword.Refuse(watchword.LogInvalid, "entry %d has lost its body, and no entry says that it was pruned", t.missing)
		}
	}
	if p.Through == 0 {
		return nil
	}
	have := c.tiles[p.Through/ledger.TileWidth-1].kept
	if have.Kept != p.Kept || have.Chain != p.Chain {
		return watchword.Refuse(watchword.LogInvalid, "of the entries up to %d, %d of kinds that last have their bodies, and entry %d says that there are %d, or others", p.Through, have.Kept, said, p.Kept)
	}
	return nil
}

// Lasting reports whether entries of a kind are kept for ever: who had which key
// when, what the server's own keys were, which policies there were, and what was
// pruned. Evidence stands on them.
func Lasting(kind string) bool {
	switch kind {
	case DeviceEnroll, DeviceRekey, DeviceRevoke, DeviceDelete, OperatorCreate, KeyCreate, KeyActivate, KeyRetire, KeyErase, KeyRevoke, KeyMove, BundleSign,
		PolicyApply, PolicyDelete, LogPrune, ServerStart:
		return true
	}
	return false
}
