package hostile

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// Command is a command for the device.
type Command struct {
	N    int64 // the argument n
	Seq  int64
	ID   watchword.CommandID
	Done chan struct{} // closed at the device's first receipt with status done
	done bool
	had  bool // acknowledged by the device
}

// Order adds a command, which is sent as soon as possible.
func (s *Server) Order() *Command {
	s.mu.Lock()
	defer s.mu.Unlock()
	seq := int64(1)
	if len(s.commands) > 0 {
		seq = s.commands[len(s.commands)-1].Seq + 1
	}
	o := &Command{N: seq, Seq: seq, ID: newCommandID(time.Now()), Done: make(chan struct{})}
	s.commands = append(s.commands, o)
	s.changed()
	return o
}

// skipNumbers skips the next n sequence numbers, for a case that used them.
func (s *Server) skipNumbers(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := &Command{Seq: n, had: true, done: true}
	if len(s.commands) > 0 {
		o.Seq += s.commands[len(s.commands)-1].Seq
	}
	s.commands = append(s.commands, o)
}

// next returns the commands that the device has not acknowledged, oldest first.
func (s *Server) next() (out []*Command) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.commands {
		if !o.had && !o.done {
			out = append(out, o)
		}
	}
	return out
}

func (s *Server) last() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.commands) == 0 {
		return 0
	}
	return s.commands[len(s.commands)-1].Seq
}

// acknowledge records that the device has stored the commands up to seq.
func (s *Server) acknowledge(seq int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.commands {
		if o.Seq <= seq {
			o.had = true
		}
	}
}

// sealed signs and encrypts a command. nonce is the device's current nonce, or empty.
func (s *Server) sealed(o *Command, nonce string) (string, error) {
	return s.Seal(s.keys.command, o.N, func(c *token.Command) { c.ID, c.Seq, c.Nonce = o.ID, o.Seq, nonce })
}

// Seal makes a command with the next sequence number and argument n, as changed by edit, signed by
// a signer (nil: the command key) and encrypted to the device.
func (s *Server) Seal(by *jose.Signer, n int64, edit func(*token.Command)) (string, error) {
	now := time.Now()
	c := token.Command{
		Issuer: Issuer, Device: DeviceID, ID: newCommandID(now), Epoch: epoch, Seq: s.last() + 1, Function: Function, Args: fmt.Appendf(nil, `{"n":%d}`, n),
		By: "operator", Issued: now, Expires: now.Add(time.Hour),
	}
	if edit != nil {
		edit(&c)
	}
	if by == nil {
		by = s.keys.command
	}
	jws, err := token.SignCommand(by, c)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	to := s.seal
	s.mu.Unlock()
	if to == nil {
		return "", errors.New("no device has enrolled")
	}
	return jose.Encrypt(to, "JWT", []byte(jws))
}

// receipt verifies a receipt. Code: receipt_invalid.
func (s *Server) receipt(raw string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, _, err := token.VerifyReceipt(raw, token.NewKeySet(s.sign), DeviceID, Issuer)
	if err != nil {
		s.problems = append(s.problems, fmt.Sprintf("a receipt that does not verify: %v", err))
		return err
	}
	i := slices.IndexFunc(s.commands, func(o *Command) bool { return o.Done != nil && o.ID == r.Command })
	if i < 0 {
		return nil // made by the case itself
	}
	if o := s.commands[i]; r.Status == watchword.StatusDone && !o.done {
		o.done, o.had = true, true
		close(o.Done)
		s.changed()
	} else if r.Status != watchword.StatusDone && r.Status != watchword.StatusAccepted {
		s.problems = append(s.problems, fmt.Sprintf("command %d ended as %s: %s", o.N, r.Status, r.Result))
	}
	return nil
}
