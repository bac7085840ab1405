package rest

import (
	"net/http"
	"sync"
)

// maxNonce is the bytes of the longest nonce that is sent back.
const maxNonce = 512

// Prover makes DPoP proofs (RFC 9449) for one server, and remembers the nonce that
// it gave last. It is safe for concurrent use.
type Prover struct {
	// Sign makes a proof for one request; access is the token beside it, or empty.
	Sign func(method, uri, nonce, access string) (string, error)

	mu    sync.Mutex
	nonce string
}

// addProof puts a proof into a request.
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

// noteNonce takes the nonce for the next request out of an answer, if there is one.
func (p *Prover) noteNonce(res *http.Response) {
	if n := res.Header.Get("DPoP-Nonce"); n != "" && len(n) <= maxNonce {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.nonce = n
	}
}
