package command

import (
	"crypto/sha256"
	"errors"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/cache"
	"github.com/watchword-iot/watchword/server/internal/schema"
	"github.com/watchword-iot/watchword/server/twin"
)

// schemas holds compiled JSON Schemas by the hash of their text.
type schemas struct {
	mu             *sync.Mutex
	compiledByHash *cache.Sized[[32]byte, *schema.Schema]
}

// schemasBytes is how much memory compiled schemas may take, all together.
const schemasBytes = 32 << 20

func newSchemas() schemas {
	return schemas{new(sync.Mutex), cache.NewSized[[32]byte, *schema.Schema](schemasBytes)}
}

// CompileSchema compiles a JSON Schema (draft 2020-12) of a function's arguments; it may refer to itself alone, and is
// refused where it could take too long, with where: see [schema.Compile]. Codes: bad_request, too_large.
func CompileSchema(text []byte) (*schema.Schema, error) {
	if len(text) > twin.MaxSchema {
		return nil, &watchword.Error{Code: watchword.TooLarge, Field: "schema", Detail: "must have at most 16384 bytes"}
	}
	return schema.Compile(text)
}

// check holds args against the schema of function, if the device announced
// functions. Codes: function_unknown, args_invalid.
func (s schemas) check(fs []twin.Function, function string, args []byte) error {
	if len(fs) == 0 {
		return nil
	}
	for _, f := range fs {
		if f.Name != function {
			continue
		}
		if f.Schema == nil {
			return nil
		}
		compiled, err := s.compiled(f.Schema)
		if err != nil { // announced to an older version
			return watchword.Wrap(err, watchword.ArgsInvalid, "the schema of the function is not accepted any more: the device must announce another")
		}
		doc, err := schema.Parse(args)
		if err != nil {
			return watchword.RefuseField("args", "must be a JSON object")
		}
		switch err := compiled.Validate(doc); {
		case errors.Is(err, schema.ErrValue):
			return &watchword.Error{Code: watchword.ArgsInvalid, Field: "args", Detail: err.Error()}
		case err != nil:
			// The validator's own words repeat the value, which belongs in no log.
			where, keyword := locateFault(err)
			return &watchword.Error{Code: watchword.ArgsInvalid, Field: where, Detail: "does not fit the function's schema" + keyword}
		}
		return nil
	}
	return watchword.Refuse(watchword.FunctionUnknown, "the device has announced no such function")
}

func (s schemas) compiled(text []byte) (*schema.Schema, error) {
	h := sha256.Sum256(text)
	s.mu.Lock()
	c, ok := s.compiledByHash.Get(h)
	s.mu.Unlock()
	if ok {
		return c, nil
	}
	c, err := CompileSchema(text)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.compiledByHash.Put(h, c, c.Size())
	return c, nil
}

// locateFault returns the path of the first argument at fault, as "args.level", and
// the keyword that it broke, as " (maximum)".
func locateFault(err error) (path, keyword string) {
	const most = 200
	path = "args"
	ve, ok := err.(*jsonschema.ValidationError)
	if !ok {
		return path, ""
	}
	for len(ve.Causes) > 0 {
		ve = ve.Causes[0]
	}
	for _, step := range ve.InstanceLocation {
		path += "." + step
	}
	if k := ve.ErrorKind.KeywordPath(); len(k) > 0 {
		keyword = " (" + k[len(k)-1] + ")"
	}
	return path[:min(len(path), most)], keyword
}
