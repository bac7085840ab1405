package command

import (
	"bytes"
	"crypto/sha256"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/recent"
	"github.com/watchword-iot/watchword/twin"
)

// schemas holds compiled JSON Schemas by the hash of their text.
type schemas struct {
	mu   *sync.Mutex
	kept *recent.Map[[32]byte, *jsonschema.Schema]
}

func newSchemas() schemas {
	return schemas{new(sync.Mutex), recent.New[[32]byte, *jsonschema.Schema](4096)}
}

// noLoader keeps a schema from reaching for files or the network.
type noLoader struct{}

func (noLoader) Load(string) (any, error) {
	return nil, watchword.Refuse(watchword.BadRequest, "a schema may not refer to another document")
}

// CompileSchema compiles a JSON Schema (draft 2020-12) of a function's
// arguments; it may refer to itself alone. Code: bad_request.
func CompileSchema(text []byte) (*jsonschema.Schema, error) {
	bad := func(err error) error {
		return &watchword.Error{Code: watchword.BadRequest, Field: "schema", Detail: "is no JSON Schema", Err: err}
	}
	if len(text) > twin.MaxSchema {
		return nil, &watchword.Error{Code: watchword.TooLarge, Field: "schema", Detail: "a schema may have 16 KiB"}
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, bad(err)
	}
	c := jsonschema.NewCompiler()
	c.UseLoader(noLoader{})
	if err := c.AddResource("urn:watchword:schema", doc); err != nil {
		return nil, bad(err)
	}
	s, err := c.Compile("urn:watchword:schema")
	if err != nil {
		return nil, bad(err)
	}
	return s, nil
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
		schema, err := s.compiled(f.Schema)
		if err != nil {
			return err
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(args))
		if err != nil {
			return watchword.RefuseField("args", "must be a JSON object")
		}
		if err := schema.Validate(doc); err != nil {
			// The validator's own words repeat the value, which belongs in no log.
			where, keyword := fault(err)
			return &watchword.Error{Code: watchword.ArgsInvalid, Field: where, Detail: "does not fit the function's schema" + keyword}
		}
		return nil
	}
	return watchword.Refuse(watchword.FunctionUnknown, "the device has announced no such function")
}

func (s schemas) compiled(text []byte) (*jsonschema.Schema, error) {
	h := sha256.Sum256(text)
	s.mu.Lock()
	c, ok := s.kept.Get(h)
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
	s.kept.Put(h, c)
	return c, nil
}

// fault returns the path of the first argument at fault, as "args.level", and
// the keyword that it broke, as " (maximum)".
func fault(err error) (path, keyword string) {
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
