package bus

import "time"

// Messages of a group without a connected member are stored, each for one offline member. They belong to the group: a
// connected member with room gets them, oldest first, a page at a time. A message stays with the offline member until the
// copy for the other member is on disk. The transport has the messages; the group says when they move.

// pullRetryDelay is the pause after a page of which a message found no member, or could not be read.
const pullRetryDelay = time.Second

// MarkStored notes that a message of the group is stored for the offline member with that number.
func (g *Group) MarkStored(number int64) {
	g.holder.Store(number)
	g.stored.Store(true)
}

// Pull starts moving the stored messages of the group to connected members, if there are any and no other call does so already. It
// does not wait.
func (g *Group) Pull() {
	if g.stored.Load() && g.pulling.CompareAndSwap(false, true) {
		go g.pullAll()
	}
}

func (g *Group) pullAll() {
	for {
		taken, refused := g.pullPage()
		if taken > 0 && refused == 0 {
			continue
		}
		g.pulling.Store(false)
		if refused > 0 { // a message cannot be read, or stored for another member, at the moment
			time.AfterFunc(pullRetryDelay, g.Pull)
			return
		}
		// A member that got room meanwhile did not start pulling, since a pull was running.
		if !g.stored.Load() || g.memberWithCapacity() == nil || !g.pulling.CompareAndSwap(false, true) {
			return
		}
	}
}

// memberWithCapacity returns a member that may take stored messages, nil for none.
func (g *Group) memberWithCapacity() Member {
	list := g.members.Load()
	if list == nil {
		return nil
	}
	for _, m := range *list {
		if m.HasCapacity() {
			return m.Member
		}
	}
	return nil
}

// pullPage moves one page, if a member has capacity.
func (g *Group) pullPage() (taken, refused int) {
	to := g.memberWithCapacity()
	list := g.members.Load()
	if to == nil || list == nil {
		return 0, 0
	}
	g.stored.Store(false) // before the search: what is stored later is found by the next one
	members := make([]Member, len(*list))
	for i, m := range *list {
		members[i] = m.Member
	}
	if taken, refused = to.MoveStored(g, members); taken > 0 {
		g.stored.Store(true) // there may be more
	}
	return taken, refused
}
