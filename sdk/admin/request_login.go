package admin

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// LoginOptions are the options of [RequestLogin].
type LoginOptions struct {
	// Show is called once, with what the person's screen shows and when the request expires. It is required, and must not block.
	Show func(r token.LoginRequest, expires time.Time)
	// Wait waits between two polls; nil means a timer.
	Wait func(ctx context.Context, d time.Duration) error
	Now  func() time.Time // nil means time.Now
}

// Polling for the decision on a login.
const (
	loginSlower      = 5 * time.Second // added by pairing_slow
	loginPollMin     = time.Second
	loginPollMax     = time.Minute
	loginLifetimeMax = time.Hour // longest time for which a client waits, whatever the server states
)

// RequestLogin asks the server at url to take key as that of an operator, without a link, and waits until an approver has decided.
// It sends neither a name nor a role: the approver chooses both. The client trusts the server's root from now on, without knowing
// it: Show gets its pin, which the approver compares with that of the server. The result has everything that [New] needs. Calling
// it again with the same key continues: a decision that was made meanwhile counts.
//
// Codes: bad_request for another URL than https://HOST[:PORT]; bundle_invalid, peer_untrusted if no server with one root is there;
// conflict if the key was used before; pairing_rejected, pairing_expired; rate_limited, busy, unavailable before the request is
// made: after that it keeps polling.
func RequestLogin(ctx context.Context, server string, key *jose.PrivateKey, o LoginOptions) (Options, error) {
	base, err := loginURL(server)
	if err != nil {
		return Options{}, err
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Wait == nil {
		o.Wait = pause
	}
	s, err := VerifyServer(ctx, base, "", o.Now())
	if err != nil {
		return Options{}, err
	}
	signer, err := key.Signer()
	if err != nil {
		return Options{}, err
	}
	c, err := s.Client(o.Now)
	if err != nil {
		return Options{}, err
	}
	defer c.CloseIdleConnections()
	l := login{server: s, client: c, key: key, signer: signer, o: o}
	if err := l.request(ctx); err != nil {
		return Options{}, err
	}
	answer, err := l.wait(ctx)
	if err != nil {
		return Options{}, err
	}
	return s.Options(answer, key, o.Now())
}

// loginURL checks the URL of a server, and returns it without a slash at its end. Code: bad_request.
func loginURL(server string) (string, error) {
	u, err := url.Parse(strings.TrimSpace(server))
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return "", watchword.RefuseField("url", "must be https://HOST[:PORT]")
	}
	return "https://" + u.Host + strings.TrimRight(u.EscapedPath(), "/"), nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// login is a request for a login at one server, over connections that its bundle vouches for.
type login struct {
	server *Server
	client *rest.Client
	key    *jose.PrivateKey
	signer *jose.Signer
	o      LoginOptions

	code     string
	interval time.Duration
	expires  time.Time
}

func (l *login) post(ctx context.Context, path string, in, out any) error {
	_, err := l.client.JSON(ctx, rest.Request{Method: http.MethodPost, Path: path}, in, out)
	return err
}

func (l *login) proof(codeHash string) (string, error) {
	return token.SignLogin(l.signer, l.server.Issuer, codeHash, l.server.Pin, l.o.Now())
}

// request makes the request and shows it.
func (l *login) request(ctx context.Context) error {
	proof, err := l.proof(token.LoginHashClaim())
	if err != nil {
		return err
	}
	var out api.RequestLoginResponse
	if err := l.post(ctx, loginsPath, api.RequestLoginRequest{Key: l.key.Public().JWK(), Proof: proof}, &out); err != nil {
		return err
	}
	r := token.LoginRequest{Server: l.server.URL, UserCode: out.UserCode, Key: l.key.Public().ID(), Pin: l.server.Pin}
	if _, err := token.ParseLoginLink(r.Link()); err != nil || !token.WellFormedCode(out.LoginCode) {
		return watchword.Wrap(err, watchword.Internal, "the server's answer must have a user code and a login code")
	}
	l.code, l.interval = out.LoginCode, time.Duration(min(max(out.Interval, 0), 3600))*time.Second
	l.expires = l.o.Now().Add(min(time.Duration(min(max(out.ExpiresIn, 0), 86400))*time.Second, loginLifetimeMax))
	l.o.Show(r, l.expires)
	return nil
}

// wait polls until an approver has decided. The server decides when the request expires; a server that never does is asked for
// an hour.
func (l *login) wait(ctx context.Context) (api.EnrollResponse, error) {
	end := l.o.Now().Add(loginLifetimeMax)
	for failures := 0; ; {
		out, err := l.poll(ctx)
		gap := max(l.interval, loginPollMin)
		switch watchword.CodeOf(err) {
		case watchword.PairingPending:
			failures = 0
		case watchword.PairingSlow: // for this and all further polls
			l.interval += loginSlower
			gap, failures = l.interval, 0
		case watchword.Unavailable, watchword.ClockUntrusted, watchword.RateLimited, watchword.Busy, watchword.TimedOut:
			gap = min(gap<<min(failures, 8), loginPollMax)
			failures++
		default:
			return out, err
		}
		if !l.o.Now().Add(gap).Before(end) {
			return out, watchword.Refuse(watchword.PairingExpired, "no decision was made within %s: request another", loginLifetimeMax)
		}
		if err := l.o.Wait(ctx, gap); err != nil {
			return out, err
		}
	}
}

func (l *login) poll(ctx context.Context) (out api.EnrollResponse, err error) {
	proof, err := l.proof(token.CodeHashClaim(l.code))
	if err != nil {
		return out, err
	}
	return out, l.post(ctx, loginsPath+"/poll", api.PollLoginRequest{LoginCode: l.code, Proof: proof}, &out)
}
