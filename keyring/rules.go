package keyring

import (
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/token"
)

// Rules says when keys turn. What they answer depends on their arguments alone.
type Rules struct {
	Every   time.Duration // how long an issuer, command or time key signs; 0: until somebody turns it
	Overlap time.Duration // how long before it signs a key is published: one refresh of whoever verifies
}

// caTurn is how long an authority signs before the next one takes its place.
const caTurn = caLife - 365*24*time.Hour

// accessLife is the longest life that an access token can be given (server.Config).
const accessLife = 24 * time.Hour

// codeLife is the longest life of an enrollment link, whose pin is a root's.
const codeLife = 30 * 24 * time.Hour

// every is how long a key of a role signs; 0: until somebody turns it.
func (r Rules) every(role Role) time.Duration {
	switch role {
	case Issuer, Command, Time:
		return r.Every
	case CA:
		return caTurn
	default:
		return 0
	}
}

// tail is how long anything that a key of a role signed can be valid after it
// signed the last; 0: for ever.
func tail(role Role) time.Duration {
	switch role {
	case Issuer:
		return accessLife + token.Skew
	case Command:
		return max(token.CommandLife, token.ConfigLife) + token.Skew
	case Time:
		return token.TimeLife + token.Skew
	case CA:
		return leafLife
	case Root:
		return token.TrustLife + codeLife
	default:
		return 0
	}
}

// ended is when a key that stops signing now is gone; zero: it stays.
func ended(role Role, now time.Time) time.Time {
	if t := tail(role); t > 0 {
		return now.Add(t)
	}
	return time.Time{}
}

func of(ks []Sealed, role Role, state State) (out []Sealed) {
	for _, k := range ks {
		if k.Role == role && k.State == state {
			out = append(out, k)
		}
	}
	slices.SortStableFunc(out, func(a, b Sealed) int { return a.Starts.Compare(b.Starts) })
	return out
}

// due is what time asks of a ring: which role wants a next key, to start when,
// and which keys move. listed says whether a key stands in the bundle that is
// published: one that nobody could know does not begin to sign. offline says that
// nobody here can sign a bundle, so that no key is made either.
func (r Rules) due(ks []Sealed, now time.Time, offline bool, listed func(watchword.KeyID) bool) (next map[Role]time.Time, moves []Move) {
	next = map[Role]time.Time{}
	for _, role := range Roles {
		turn := r.begin(ks, role, now, listed)
		moves = append(moves, turn...)
		if every := r.every(role); every > 0 && !offline && len(turn) == 0 && len(of(ks, role, Next)) == 0 {
			at := of(ks, role, Active)[0].Starts.Add(every)
			if !now.Before(at.Add(-r.Overlap)) {
				next[role] = latest(at, now.Add(r.Overlap))
			}
		}
		for _, k := range of(ks, role, Retiring) {
			if !k.Ends.IsZero() && !now.Before(k.Ends) {
				moves = append(moves, Move{Role: role, ID: k.ID, From: Retiring, To: Gone, Starts: k.Starts, Ends: k.Ends})
			}
		}
	}
	return next, moves
}

// begin lets the last of the next keys whose time has come sign, in the place of
// the active one. Those that it passes over never signed.
func (r Rules) begin(ks []Sealed, role Role, now time.Time, listed func(watchword.KeyID) bool) (moves []Move) {
	var ready []Sealed
	for _, k := range of(ks, role, Next) {
		if !now.Before(k.Starts) && listed(k.ID) {
			ready = append(ready, k)
		}
	}
	if len(ready) == 0 {
		return nil
	}
	for _, k := range ready[:len(ready)-1] {
		moves = append(moves, Move{Role: role, ID: k.ID, From: Next, To: Gone, Starts: k.Starts, Ends: now})
	}
	return append(moves, succeed(ks, ready[len(ready)-1], now)...)
}

// succeed puts k in the place of its role's active key.
func succeed(ks []Sealed, k Sealed, now time.Time) []Move {
	moves := retire(ks, k.Role, now)
	return append(moves, Move{Role: k.Role, ID: k.ID, From: k.State, To: Active, Starts: now})
}

// retire lets a role's active key sign no more.
func retire(ks []Sealed, role Role, now time.Time) (moves []Move) {
	for _, old := range of(ks, role, Active) {
		moves = append(moves, Move{Role: role, ID: old.ID, From: Active, To: Retiring, Starts: old.Starts, Ends: ended(role, now)})
	}
	return moves
}

// Apply returns the keys as the turn leaves them, in the order of ks and then of t.Add. Code: conflict where a key has moved
// since the turn was decided on, or a bundle has no greater version than all the others.
func (t Turn) Apply(ks []Sealed, bundles []SignedBundle) ([]Sealed, error) {
	standing := append(slices.Clone(ks), t.Add...)
	for i, m := range t.Move {
		if !slices.ContainsFunc(Turn{Move: t.Move[:i]}.after(standing), func(k Sealed) bool { return k.ID == m.ID && k.Role == m.Role && k.State == m.From }) {
			return nil, watchword.Refuse(watchword.Conflict, "the %s key %s is not %s any more", m.Role, m.ID, m.From)
		}
	}
	version := int64(0)
	for _, b := range bundles {
		if !slices.Contains(t.Drop, b.Version) {
			version = max(version, b.Version)
		}
	}
	for _, b := range t.Bundles {
		if b.Version <= version {
			return nil, watchword.Refuse(watchword.Conflict, "a trust bundle of this version or a later one exists")
		}
		version = b.Version
	}
	return t.after(ks), nil
}

// after is the ring as a turn leaves it.
func (t Turn) after(ks []Sealed) []Sealed {
	out := append(slices.Clone(ks), t.Add...)
	for _, m := range t.Move {
		for i := range out {
			k := &out[i]
			if k.ID != m.ID || k.Role != m.Role {
				continue
			}
			k.State, k.Starts, k.Ends = m.To, m.Starts, m.Ends
			if m.Private != nil {
				k.Private = m.Private
			}
			if !m.To.Counts() {
				k.Private = nil
			}
		}
	}
	return out
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
