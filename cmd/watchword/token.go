package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

func (a *app) tokenCommand() *cobra.Command {
	return commandGroup("token", "Inspect and revoke tokens", a.tokenInspect(), a.tokenRevoke())
}

func (a *app) tokenInspect() *cobra.Command {
	return &cobra.Command{
		Use: "inspect JWT|-", Short: "Explain a token: its members, what can be checked, and what is wrong",
		Long: "Explains any token, valid or not, line by line, without sending it. Tokens of the server are verified\n" +
			"with its keys if it is the server that commands talk to. Exit status 8: an endpoint would refuse the token.",
		Args: positional(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			raw := args[0]
			if raw == "-" {
				b, err := readInput("-", 1<<20)
				if err != nil {
					return err
				}
				raw = string(b)
			}
			p := inspect(strings.TrimSpace(raw), time.Now())
			a.verify(c.Context(), p)
			p.summarize()
			if !p.Checked {
				a.err.Printf("not verified: this is what the token says of itself\n")
			}
			if err := a.print(p, func(w *terminal.Writer) { p.write(w, "") }); err != nil {
				return err
			}
			if !p.Good {
				if a.format == "table" {
					a.err.Printf("this token would be refused\n")
				}
				return &exitError{exitStatusByCode[watchword.SignatureInvalid]}
			}
			return nil
		},
	}
}

// verify verifies the signature of a token that the server signed, with the keys of the server that commands talk to, if there
// is one. The token is not sent: the keys are fetched.
func (a *app) verify(ctx context.Context, p *inspection) {
	for _, q := range p.Parts {
		a.verify(ctx, q)
	}
	switch {
	case p.kind == nil || p.Checked || p.typ == token.TypDPoP:
		return
	}
	good := p.summarize().Good
	t, err := a.trust(ctx)
	if err == nil {
		if err := p.verifyWithBundle(t, time.Now()); err != nil {
			p.addRefusal(err)
			if good {
				p.bad("signature", watchword.CodeOf(err), "", "by %s, %s: %s", a.serverName(), t.Issuer, errorText(err))
				return
			}
		}
	}
	switch {
	case !good:
		p.unknown("signature", "not checked: it would be refused before that")
		return
	case p.kind.signedBy == "":
		p.unknown("signature", "not checked: it is that of %s, which is not here", p.kind.signer)
		return
	case err != nil:
		p.unknown("signature", "not checked: no server here")
		return
	}
	p.Checked = true
	p.good("signature", "holds under the %s key of %s, %s", p.kind.signedBy, a.serverName(), t.Issuer)
	if p.kind.typ == token.TypAccess {
		p.unknown("record", "that it was issued, and is not revoked, only the server's endpoints can say")
	}
}

// verifyWithBundle calls the real verifiers.
func (p *inspection) verifyWithBundle(t token.Trust, now time.Time) (err error) {
	issuer := token.ClaimedIssuer(p.raw, t.IssuerNames())
	aud := watchword.SubjectID(p.claim("aud"))
	switch p.kind.typ {
	case token.TypAccess:
		_, err = token.VerifyAccess(p.raw, token.NewKeySet(t.Issuers...), issuer, string(aud), now, 0)
	case token.TypCommand:
		_, err = token.VerifyCommand(p.raw, token.NewKeySet(t.Command...), issuer, aud, now, "")
	case token.TypConfig:
		_, err = token.VerifyConfig(p.raw, token.NewKeySet(t.Command...), issuer, aud, now)
	case token.TypTrust:
		known := t
		known.Issuer, known.Version, known.Epoch = issuer, 0, 0 // the signature of an older one is valid too
		_, err = token.VerifyNextTrust(p.raw, known, now)
	case token.TypAssertion:
		var a *token.UnverifiedAssertion
		if a, err = token.ParseAssertion(p.raw, true); err == nil {
			err = a.CheckClaims(issuer, now)
		}
	case token.TypTime: // only the role matters
		var u *jose.Unverified
		if u, err = jose.ParseJWS(p.raw, p.MaxSize); err != nil {
			return err
		}
		for _, k := range t.Time {
			if string(k.ID()) == u.Kid {
				_, err = u.Verify(k)
				return err
			}
		}
		err = watchword.Refuse(watchword.KeyUnknown, "kid must name a key of the set")
	}
	return err
}

// trust fetches the trust bundle of the server that commands talk to, and its currently valid issuer keys: a bundle that was
// signed in advance may name one that was revoked since. TLS authenticates both.
func (a *app) trust(ctx context.Context) (token.Trust, error) {
	cl, err := a.client()
	if err != nil {
		return token.Trust{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	bare := cl.Rest().WithoutTokens()
	res, err := bare.Do(ctx, rest.Request{Method: http.MethodGet, Path: "/v1/trust", Max: watchword.MaxBundle})
	if err != nil {
		return token.Trust{}, err
	}
	pin, err := token.TrustPinOfBundle(string(res.Body))
	if err != nil {
		return token.Trust{}, err
	}
	t, err := token.VerifyTrust(string(res.Body), pin, time.Now())
	if err != nil {
		return t, err
	}
	if res, err = bare.Do(ctx, rest.Request{Method: http.MethodGet, Path: "/.well-known/jwks.json", Max: watchword.MaxBundle}); err != nil {
		return t, err
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(res.Body, &set); err != nil {
		return t, err
	}
	t.Issuers = nil
	for _, raw := range set.Keys {
		k, err := jose.ParseJWK(raw, jose.ForSigning)
		if err != nil {
			return t, err
		}
		t.Issuers = append(t.Issuers, k)
	}
	return t, nil
}

// write prints a credential. The token's texts are escaped, so that they contain no terminal control characters.
func (p *inspection) write(w *terminal.Writer, indent string) {
	line := func(cells ...string) {
		cells[0] = indent + cells[0]
		w.Line(cells...)
	}
	if p.Signer != "" {
		line(p.Kind + ", signed by " + p.Signer + ", for " + p.Reader)
	} else {
		line(strings.TrimSuffix(p.Kind+", for "+p.Reader, ", for "))
	}
	part := func(name string, ss []inspectedMember) {
		for _, s := range ss {
			if len(s.Lines) == 0 {
				line(name, s.Name, short(string(s.Value)), s.Meaning)
			}
			for _, l := range s.Lines {
				line(name, s.Name, l)
			}
		}
	}
	part("header", p.Header)
	part("claim", p.Claims)
	for _, v := range p.Checks {
		state := map[string]string{"good": "good", "bad": "BAD", "unknown": "?"}[v.Result]
		detail := v.Detail
		if v.Where != "" {
			detail = v.Where + ": " + detail
		}
		if v.Code != "" {
			detail += " (" + string(v.Code) + ")"
		}
		line(state, v.Check, detail)
	}
	for i, q := range p.Parts {
		w.Printf("%s\n%spaper %d inside\n", indent, indent, i+1)
		q.write(w, indent+"  ")
	}
}

// short shortens a text to a line.
func short(s string) string {
	const most = 72
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "… (" + fmt.Sprint(len(s)) + " bytes)"
	}
	return s
}
