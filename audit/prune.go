package audit

import (
	"strconv"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
)

// pruning is what an entry log.prune says: of the entries up to through, which end a
// tile, kept have their bodies still, those of kinds that are kept for ever.
type pruning struct{ seq, through, kept int64 }

func readPruning(e Entry) (p pruning, err error) {
	p.seq = e.Seq
	p.through, err = strconv.ParseInt(e.Data["through"], 10, 64)
	if err == nil {
		p.kept, err = strconv.ParseInt(e.Data["kept"], 10, 64)
	}
	if err != nil || p.through < 0 || p.through%ledger.TileWidth != 0 || p.through >= e.Seq {
		err = watchword.Refuse(watchword.LogInvalid, "entry %d says nothing that can be of what was pruned", e.Seq)
	}
	return p, err
}

// covers checks the number of bodies that are there, by tile, against it.
func (p pruning) covers(whole []uint16, entries int64) error {
	kept := int64(0)
	for i, n := range whole {
		first := int64(i)*ledger.TileWidth + 1
		if first <= p.through {
			kept += int64(n)
			continue
		}
		if most := min(ledger.TileWidth, entries-first+1); int64(n) < most {
			return watchword.Refuse(watchword.LogInvalid, "entry %d or one up to %d has lost its body, and no entry says that it was pruned", first, first+most-1)
		}
	}
	if kept != p.kept {
		return watchword.Refuse(watchword.LogInvalid, "of the entries up to %d, %d have their bodies, and entry %d says that %d were kept", p.through, kept, p.seq, p.kept)
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
