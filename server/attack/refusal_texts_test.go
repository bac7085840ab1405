package attack_test

import (
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/token"
)

// explained is the endpoints whose credentials `watchword token inspect` checks with the endpoint's own parsers, and the
// refusals that it cannot predict: those that depend on the server's state, and those that the server does not disclose.
var explained = map[string][]watchword.Code{
	"HTTP, Bearer":                {watchword.AudienceMismatch, watchword.TokenKind},
	"/oauth/token, the assertion": {watchword.ClientInvalid, watchword.TokenKind},
	"HTTP, DPoP, the proof":       nil,
}

// wantSameTexts holds code and detail of each refusal in the answer against those in the
// server's log, and against what token inspect says of the same bytes.
func (ep *endpointFixture) wantSameTexts(t *testing.T, d endpoint, shown []matrixCell) {
	t.Helper()
	var inspected []matrixCell
	exempt, known := explained[d.name]
	for _, c := range shown {
		if c.seen.code == accepted || c.seen.code == inactive || c.seen.code == nothing {
			continue
		}
		if known && !contains(exempt, c.seen.code) && !strings.ContainsRune(c.raw, 0) && strings.TrimSpace(c.raw) == c.raw {
			inspected = append(inspected, c)
		}
	}
	ep.logs(t, shown)
	if known && len(inspected) < 50 {
		t.Errorf("%d refusals to explain: the test tests nothing", len(inspected))
	}
	bin, err := buildBinary()
	must(t, err)
	var wg sync.WaitGroup
	next := make(chan matrixCell)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for c := range next {
				said, kind := ep.inspect(t, bin, c.raw)
				if d.typ == token.TypDPoP && kind != "DPoP proof" {
					continue // the header does not say what it is
				}
				if !said[refusalText{c.seen.code, oauthText(c.seen.detail())}] {
					t.Errorf("%s: the server says %q, %q; token inspect %v", c.name, c.seen.code, c.seen.detail(), said)
				}
			}
		})
	}
	for _, c := range inspected {
		next <- c
	}
	close(next)
	testwait.All(t, "what token inspect says", &wg)
}

// logs waits until each refusal that has a trace is in the server's log with its code and
// detail: a line may be written behind the answer.
func (ep *endpointFixture) logs(t *testing.T, shown []matrixCell) {
	t.Helper()
	text, end := ep.log.String(), time.Now().Add(10*time.Second)
	for _, c := range shown {
		for c.seen.trace != "" && !hasLogLine(text, c.seen.trace, c.seen.code, c.seen.detail()) {
			if time.Now().After(end) {
				t.Errorf("%s: the log has no line with %s, %s and %q", c.name, c.seen.trace, c.seen.code, c.seen.detail())
				break
			}
			text = ep.log.String()
		}
	}
}

func contains(list []watchword.Code, c watchword.Code) bool {
	for _, x := range list {
		if x == c {
			return true
		}
	}
	return false
}

// refusalText is one refusal as an answer says it.
type refusalText struct {
	code   watchword.Code
	detail string
}

// inspect returns the refusals that token inspect foretells, and the kind that it sees.
func (ep *endpointFixture) inspect(t *testing.T, bin, raw string) (said map[refusalText]bool, kind string) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, bin, "--json", "--data", ep.dir, "token", "inspect", "-")
	c.Stdin = strings.NewReader(raw)
	out, err := c.Output()
	if _, refused := errors.AsType[*exec.ExitError](err); err != nil && !refused {
		t.Errorf("token inspect: %v", err)
	}
	var p struct {
		Kind   string
		Checks []struct {
			Check, Result, Detail string
			Code                  watchword.Code
		}
	}
	if err := json.Unmarshal(out, &p); err != nil {
		t.Errorf("token inspect: %v: %s", err, out)
	}
	said = map[refusalText]bool{}
	for _, v := range p.Checks {
		if v.Check == "refusal" {
			said[refusalText{v.Code, oauthText(withoutPage(v.Detail))}] = true
		}
	}
	return said, p.Kind
}
