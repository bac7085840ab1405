package rest

import (
	"net/http"
	"sync"
)

// maxNonce is the longest nonce that is sent back, in bytes.
const maxNonce = 512

// Prover makes DPoP proofs (RFC 9449) for one server, and remembers its last nonce. It is safe for
// concurrent use.
type Prover struct {
	// Sign makes a proof for one request; access is the access token of the request, or empty.
	Sign func(method, uri, nonce, access string) (string, error)

	mu    sync.Mutex
	nonce string
}

// addProof adds a proof to a request.
func (p *Prover) addProof(req *http.Request, access string) error {
	p.mu.Lock()
	nonce := p.nonce
	p.mu.Unlock()
	proof, err := p.Sign(req.Method, req.URL.String(), nonce, access)
	if err == nil {
		req.Header.Set("DPoP", proof)
	}
	return err
}

// noteNonce remembers the nonce of an answer, if it has one.
func (p *Prover) noteNonce(res *http.Response) {
	if n := res.Header.Get("DPoP-Nonce"); n != "" && len(n) <= maxNonce {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.nonce = n
	}
}
