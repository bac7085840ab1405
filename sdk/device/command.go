package device

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/clip"
)

// Command is a command that has passed every check, in the hand of the function
// that carries it out.
type Command struct {
	ID       watchword.CommandID
	Function string
	By       watchword.SubjectID // who ordered it, by the server's statement, or by their own where their key is pinned
	Epoch    int64
	Seq      int64
	Expires  time.Time // until when it may be begun
	// Raw is the arguments, one JSON object, byte for byte as ordered.
	Raw []byte

	accept func(context.Context) error
}

// Accept tells the server, signed, that the command has begun and will take a
// while: its state becomes accepted, and whoever waits sees it. It is no end, and
// nothing is lost if it does not arrive. Codes: as [Device.SendReceipt].
func (c *Command) Accept(ctx context.Context) error { return c.accept(ctx) }

// Args reads the arguments into a struct. Members that the struct does not have,
// and members that stand twice, are refused: an argument that is not understood
// is not one to pass over.
func (c *Command) Args(into any) error {
	return jsonv2.Unmarshal(c.Raw, into, jsonv2.RejectUnknownMembers(true))
}

// Handler carries out a command. What it returns becomes the receipt's result,
// as JSON; nil for none. An error of [Refuse] becomes a signed refusal, any other
// a signed failure. One runs at a time, in the order of the numbers; while it runs, the device goes on
// receiving and reporting, and no other command is begun, however long it takes. Its context ends where
// the device stops, and context.Cause then says why: [ErrStopping] where [Device.Run] ends. A handler
// that returns an error after that was cut off: the receipt is "interrupted", unless the error is of [Refuse].
type Handler func(ctx context.Context, c *Command) (any, error)

// Refusal is an error that says: the device will not.
type Refusal struct {
	Code string // the application's own, as "bad_args"
	Err  error
}

// Error joins code and reason.
func (r *Refusal) Error() string {
	if r.Err == nil {
		return r.Code
	}
	return r.Code + ": " + r.Err.Error()
}

// Unwrap returns the reason.
func (r *Refusal) Unwrap() error { return r.Err }

// Refuse is the error of a handler that will not, for a reason that the receipt
// carries. code is a name, err may be nil.
func Refuse(code string, err error) error { return &Refusal{code, err} }

// Function describes what a device can be asked to do. Schema is the JSON Schema
// of its arguments, or nil.
type Function struct {
	Name   string
	Schema []byte
}

type handlers struct {
	mu       sync.RWMutex
	byName   map[string]Handler
	fallback Handler
	list     []Function
	config   func(context.Context, Config) error
}

// Handle registers the handler of a function, which Run announces to the server when it starts. It panics for an invalid name.
func (d *Device) Handle(function string, h Handler) { d.HandleFunction(Function{Name: function}, h) }

// HandleFunction is [Device.Handle] with a JSON Schema, by which the server checks the arguments of each command.
func (d *Device) HandleFunction(f Function, h Handler) {
	if !watchword.ValidName(f.Name) {
		panic(fmt.Sprintf("device: %q cannot be the name of a function", f.Name))
	}
	d.handlers.mu.Lock()
	defer d.handlers.mu.Unlock()
	if d.handlers.byName == nil {
		d.handlers.byName = map[string]Handler{}
	}
	if _, known := d.handlers.byName[f.Name]; !known {
		d.handlers.list = append(d.handlers.list, f)
	}
	d.handlers.byName[f.Name] = h
}

// HandleAny registers the handler of all functions without a handler of their own. With it, no functions are announced, and the
// server accepts every function name.
func (d *Device) HandleAny(h Handler) {
	d.handlers.mu.Lock()
	defer d.handlers.mu.Unlock()
	d.handlers.fallback = h
}

// runHandler runs the handler and says how it ended.
func (d *Device) runHandler(ctx context.Context, c *Command) (st watchword.ReceiptStatus, result any) {
	d.handlers.mu.RLock()
	h := d.handlers.byName[c.Function]
	if h == nil {
		h = d.handlers.fallback
	}
	d.handlers.mu.RUnlock()
	if h == nil {
		return watchword.StatusRefused, failureResult{string(watchword.FunctionUnknown), "this device has no such function"}
	}
	result, err := recoverHandler(ctx, h, c)
	if refusal, ok := errors.AsType[*Refusal](err); ok {
		f := failureResult{Code: refusal.Code}
		if refusal.Err != nil {
			f.Detail = clip.Text(refusal.Err.Error(), maxFailureText)
		}
		return watchword.StatusRefused, f
	}
	if err != nil && ctx.Err() != nil {
		return watchword.StatusInterrupted, failureResult{"interrupted", clip.Text("the device stopped while it carried this out: "+err.Error(), maxFailureText)}
	}
	if failure, ok := errors.AsType[*Failure](err); ok {
		f := failureResult{Code: failure.Code}
		if failure.Err != nil {
			f.Detail = clip.Text(failure.Err.Error(), maxFailureText)
		}
		return watchword.StatusFailed, f
	}
	if err != nil {
		return watchword.StatusFailed, failureResult{"failed", clip.Text(err.Error(), maxFailureText)}
	}
	return watchword.StatusDone, result
}

// maxFailureText is the most bytes of a function's error in a receipt.
const maxFailureText = 1000

// failureResult is the result of a receipt that is no success.
type failureResult struct {
	Code   string `json:"code"`
	Detail string `json:"detail,omitempty"`
}

// recoverHandler turns a handler's panic into an error: one bad function must not cost
// the device its ears.
func recoverHandler(ctx context.Context, h Handler, c *Command) (result any, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the function panicked: %v", p)
		}
	}()
	return h(ctx, c)
}

// Failure is an error that says: it was tried, and failed.
type Failure struct {
	Code string
	Err  error
}

// Error joins code and reason.
func (f *Failure) Error() string { return (&Refusal{f.Code, f.Err}).Error() }

// Unwrap returns the reason.
func (f *Failure) Unwrap() error { return f.Err }

// Fail is the error of a handler that tried: as any other error, but with a code
// of the application's own. err may be nil.
func Fail(code string, err error) error { return &Failure{code, err} }
