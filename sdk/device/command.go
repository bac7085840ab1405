package device

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/truncate"
)

// Command is a verified command, as it is passed to the handler of its function.
type Command struct {
	ID       watchword.CommandID
	Function string
	By       watchword.SubjectID // subject that ordered it: stated by the server, or verified by its own key if order keys are pinned
	Epoch    int64
	Seq      int64
	Expires  time.Time // end of the time in which it may be begun
	// Raw is the arguments, one JSON object, byte for byte as ordered.
	Raw []byte

	accept func(context.Context) error
}

// Accept sends a signed receipt with status accepted: the command has begun and will take some time. It is not final, and
// may be lost without consequence. Codes: as [Device.SendReceipt].
func (c *Command) Accept(ctx context.Context) error { return c.accept(ctx) }

// Args decodes the arguments into a struct. Members that the struct does not have, and duplicate members, are errors, so
// that no argument is ignored.
func (c *Command) Args(into any) error {
	return jsonv2.Unmarshal(c.Raw, into, jsonv2.RejectUnknownMembers(true))
}

// Handler executes a command. Its return value becomes the receipt's result, as JSON; nil means no result. An error of
// [Refuse] becomes a signed refusal, any other error a signed failure. One handler runs at a time, in the order of the
// sequence numbers. While it runs, the device continues to receive and to publish, and begins no other command. When the
// device stops, the handler's context ends, and context.Cause is [ErrStopping] if [Device.Run] ends. If the handler returns
// an error after that, the receipt is "interrupted", unless the error is of [Refuse].
type Handler func(ctx context.Context, c *Command) (any, error)

// Refusal is the error of a handler that refuses a command.
type Refusal struct {
	Code string // application-defined, as "bad_args"
	Err  error
}

// Error returns code and reason.
func (r *Refusal) Error() string {
	if r.Err == nil {
		return r.Code
	}
	return r.Code + ": " + r.Err.Error()
}

// Unwrap returns the reason.
func (r *Refusal) Unwrap() error { return r.Err }

// Refuse returns an error with which a handler refuses a command; the receipt contains code and reason. code is a name; err
// may be nil.
func Refuse(code string, err error) error { return &Refusal{code, err} }

// Function describes a function of the device. Schema is the JSON Schema of its arguments, or nil.
type Function struct {
	Name   string
	Schema []byte
}

type handlers struct {
	mu        sync.RWMutex
	byName    map[string]Handler
	fallback  Handler
	list      []Function
	config    func(context.Context, Config) error
	announcer *task // of the last Run; nil before
}

// Handle registers the handler of a function. Run announces it to the server when it starts. Handle panics if the name is
// invalid.
func (d *Device) Handle(function string, h Handler) { d.HandleFunction(Function{Name: function}, h) }

// HandleFunction is [Device.Handle] with a JSON Schema, which the server applies to the arguments of each command.
func (d *Device) HandleFunction(f Function, h Handler) {
	checkFunctionName(f.Name)
	d.handlers.mu.Lock()
	defer d.handlers.mu.Unlock()
	d.handlers.add(f, h)
}

// add registers a handler in place of an earlier one of that name. It is called with mu held.
func (hs *handlers) add(f Function, h Handler) {
	if hs.byName == nil {
		hs.byName = map[string]Handler{}
	}
	if i := slices.IndexFunc(hs.list, func(of Function) bool { return of.Name == f.Name }); i >= 0 {
		hs.list[i] = f
	} else {
		hs.list = append(hs.list, f)
	}
	hs.byName[f.Name] = h
}

// ReplaceFunctions replaces all functions and their handlers but that of [Device.HandleAny]; handler returns the handler of each. A
// handler that runs goes on. During [Device.Run] the new functions are announced to the server. It panics if a name is invalid.
func (d *Device) ReplaceFunctions(fs []Function, handler func(Function) Handler) {
	for _, f := range fs {
		checkFunctionName(f.Name)
	}
	d.handlers.mu.Lock()
	defer d.handlers.mu.Unlock()
	d.handlers.byName, d.handlers.list = nil, nil
	for _, f := range fs {
		d.handlers.add(f, handler(f))
	}
	if d.handlers.announcer != nil {
		d.handlers.announcer.trigger()
	}
}

func checkFunctionName(name string) {
	if !watchword.ValidName(name) {
		panic(fmt.Sprintf("device: %q cannot be the name of a function", name))
	}
}

// HandleAny registers the handler of all functions without a handler of their own. With it the device announces no
// functions, and the server accepts every function name.
func (d *Device) HandleAny(h Handler) {
	d.handlers.mu.Lock()
	defer d.handlers.mu.Unlock()
	d.handlers.fallback = h
}

// runHandler runs the handler and returns the receipt's status and result.
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
			f.Detail = truncate.Text(refusal.Err.Error(), maxFailureText)
		}
		return watchword.StatusRefused, f
	}
	if err != nil && ctx.Err() != nil {
		return watchword.StatusInterrupted, failureResult{"interrupted", truncate.Text("the device stopped while it carried this out: "+err.Error(), maxFailureText)}
	}
	if failure, ok := errors.AsType[*Failure](err); ok {
		f := failureResult{Code: failure.Code}
		if failure.Err != nil {
			f.Detail = truncate.Text(failure.Err.Error(), maxFailureText)
		}
		return watchword.StatusFailed, f
	}
	if err != nil {
		return watchword.StatusFailed, failureResult{"failed", truncate.Text(err.Error(), maxFailureText)}
	}
	return watchword.StatusDone, result
}

// maxFailureText is the maximum size of a handler's error text in a receipt, in bytes.
const maxFailureText = 1000

// failureResult is the result in a receipt of a refusal or failure.
type failureResult struct {
	Code   string `json:"code"`
	Detail string `json:"detail,omitempty"`
}

// recoverHandler converts a handler's panic into an error, so that a faulty function does not end the device.
func recoverHandler(ctx context.Context, h Handler, c *Command) (result any, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the function panicked: %v", p)
		}
	}()
	return h(ctx, c)
}

// Failure is the error of a handler that tried to execute a command and failed.
type Failure struct {
	Code string
	Err  error
}

// Error returns code and reason.
func (f *Failure) Error() string { return (&Refusal{f.Code, f.Err}).Error() }

// Unwrap returns the reason.
func (f *Failure) Unwrap() error { return f.Err }

// Fail returns a handler's error with an application-defined code. Without it the receipt has a general code. err may be
// nil.
func Fail(code string, err error) error { return &Failure{code, err} }
