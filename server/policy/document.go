package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/internal/schema"
)

// MaxDocument is the longest document, in bytes.
const MaxDocument = 64 << 10

// Document is one policy document: allow and deny rules, and the subjects that they are for. It is
// immutable.
type Document struct {
	Name string
	// ProofRequired says that the subjects must prove their key for every request (proof =
	// "required").
	ProofRequired bool

	labels        watchword.Labels                 // the member for
	subjects      map[watchword.SubjectID]struct{} // the member subjects; nil where labels select
	kinds         []watchword.Kind                 // nil: any kind
	role          string                           // the member role; "" where labels or subjects select
	rules         []rule
	mayGive       []rule   // the member may_give; nil: what the document allows. Not nil and empty: nothing
	skippedBounds []string // arguments whose bound may take too long to evaluate: see [ParseStored]
}

// rule is one [[allow]] or [[deny]] with its templates.
type rule struct {
	deny      bool
	line      int
	publish   []string
	subscribe []string
	call      []string
	on        watchword.Labels // values may be templates
	devices   []string
	args      []bound
	paths     map[string][]string // action to path filters
}

// bound is the JSON Schema of one argument of a call.
type bound struct {
	name   string
	text   string // of the schema: equal texts bound alike
	schema *schema.Schema
	deny   bool // the rule denies: an argument that cannot be evaluated counts as fitting
}

// Subject is a subject as policies see it.
type Subject struct {
	ID     watchword.SubjectID
	Kind   watchword.Kind
	Role   string // of an operator
	Labels watchword.Labels
}

// SubjectSelector returns the subjects of the document: some ids, or, where ids is nil, all subjects with these
// labels (and the custom role that the document is for, if there is one).
func (d *Document) SubjectSelector() (ids []watchword.SubjectID, labels watchword.Labels) {
	if d.subjects != nil {
		return slices.AppendSeq([]watchword.SubjectID{}, maps.Keys(d.subjects)), nil
	}
	return nil, d.labels
}

// Selector chooses subjects, so that a store can find those that a document may be for; [Document.AppliesTo] decides.
type Selector struct {
	IDs    []watchword.SubjectID // in any order; nil: not by ids
	Labels watchword.Labels      // which the subjects have; empty with IDs
	Kinds  []watchword.Kind      // of one of which they are; nil: any
}

// Selector returns a choice of subjects that has all for which the document is.
func (d *Document) Selector() Selector {
	s := Selector{Kinds: d.kinds}
	s.IDs, s.Labels = d.SubjectSelector()
	if d.role != "" { // only operators have roles
		s.Kinds = []watchword.Kind{watchword.Operator}
	}
	return s
}

// AppliesTo reports whether the document is for w.
func (d *Document) AppliesTo(w Subject) bool {
	if !d.hasKind(w.Kind) {
		return false
	}
	if d.role != "" {
		return d.role == w.Role
	}
	if d.subjects != nil {
		_, ok := d.subjects[w.ID]
		return ok
	}
	return w.Labels.Has(d.labels)
}

// hasKind reports whether the document is for subjects of that kind. Only operators have roles.
func (d *Document) hasKind(k watchword.Kind) bool {
	if d.role != "" {
		return k == watchword.Operator
	}
	return d.kinds == nil || slices.Contains(d.kinds, k)
}

// Mistake is one error in a document. Line and column count from 1; 0 is unknown.
type Mistake struct {
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Message string `json:"message"`
}

// mistakes is the error of a document with mistakes.
type mistakes []Mistake

// maxMistakes limits how many mistakes are reported at once.
const maxMistakes = 20

func (m mistakes) Error() string { return fmt.Sprintf("%d mistakes", len(m)) }

// Mistakes returns the mistakes that [Parse] found, nil for any other error.
func Mistakes(err error) []Mistake {
	m, _ := errors.AsType[mistakes](err)
	return m
}

func (m mistakes) refuse(name string) error {
	lines := make([]string, len(m))
	for i, x := range m {
		lines[i] = fmt.Sprintf("%s.toml:%d:%d: %s", name, x.Line, x.Column, x.Message)
	}
	return &watchword.Error{Code: watchword.PolicyInvalid, Detail: strings.Join(lines, "\n"), Err: m}
}
