package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	xacme "golang.org/x/crypto/acme"
)

// orderTimeout is the longest time of an order, with its validations.
const orderTimeout = 5 * time.Minute

// order gets a certificate for the configured names with a new key.
func (m *Manager) order(ctx context.Context) (*certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, orderTimeout)
	defer cancel()
	defer m.http.CloseIdleConnections() // the next order is weeks away
	c, err := m.orderOnce(ctx)
	if !isProblem(err, "accountDoesNotExist") || m.account.KID == "" {
		return c, err
	}
	m.account.KID = "" // the authority has lost the account, or its URL has changed: the key is registered anew
	return m.orderOnce(ctx)
}

func (m *Manager) orderOnce(ctx context.Context) (*certificate, error) {
	client, err := m.client(ctx)
	if err != nil {
		return nil, err
	}
	o, err := client.AuthorizeOrder(ctx, xacme.DomainIDs(m.c.Names...))
	if err != nil {
		return nil, fmt.Errorf("the order: %w", err)
	}
	if len(o.AuthzURLs) > len(m.c.Names) {
		return nil, fmt.Errorf("the order for %d names has %d authorizations", len(m.c.Names), len(o.AuthzURLs))
	}
	for _, u := range o.AuthzURLs {
		if err := m.authorize(ctx, client, u); err != nil {
			return nil, err
		}
	}
	if o, err = client.WaitOrder(ctx, o.URI); err != nil {
		return nil, fmt.Errorf("the order: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: m.c.Names}, key)
	if err != nil {
		return nil, err
	}
	chain, _, err := client.CreateCertFromOrder(ctx, o, csr, true)
	if err != nil {
		return nil, fmt.Errorf("the certificate: %w", err)
	}
	return check(chain, key, m.c.Names, m.o.Roots, m.o.Now())
}

// client returns a client with a registered account, whose key is stored before it is used.
func (m *Manager) client(ctx context.Context) (*xacme.Client, error) {
	a := &m.account
	if a.key == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		*a = account{Directory: m.c.Directory, Key: der, key: key}
		m.store(AccountFile, a)
	}
	c := &xacme.Client{Key: a.key, HTTPClient: m.http, DirectoryURL: m.c.Directory, RetryBackoff: backoff, UserAgent: "watchword", KID: xacme.KeyID(a.KID)}
	if _, err := c.Discover(ctx); err != nil {
		return nil, fmt.Errorf("the directory: %w", err)
	}
	if a.KID != "" {
		return c, nil
	}
	want := &xacme.Account{}
	if m.c.Email != "" {
		want.Contact = []string{"mailto:" + m.c.Email}
	}
	if e := m.c.External; e != nil {
		want.ExternalAccountBinding = &xacme.ExternalAccountBinding{KID: e.KID, Key: e.Key}
	}
	terms := ""
	_, err := c.Register(ctx, want, func(url string) bool {
		terms = url
		return true // the configuration says so: see Config.AcmeAcceptTerms of package server
	})
	if err != nil && !errors.Is(err, xacme.ErrAccountAlreadyExists) {
		return nil, fmt.Errorf("the account: %w", err)
	}
	a.KID, a.Terms, a.Agreed = string(c.KID), terms, m.o.Now().UTC()
	m.store(AccountFile, a)
	m.o.Log.Info("an account is registered at the authority, and its terms of service are accepted", slog.String("directory", m.c.Directory), slog.String("account", a.KID), slog.String("terms", terms))
	return c, nil
}

// authorize proves to the authority that this server has a name (RFC 8555 §7.5).
func (m *Manager) authorize(ctx context.Context, client *xacme.Client, url string) error {
	z, err := client.GetAuthorization(ctx, url)
	if err != nil {
		return fmt.Errorf("an authorization: %w", err)
	}
	name := z.Identifier.Value
	switch {
	case z.Identifier.Type != "dns" || z.Wildcard || !slices.Contains(m.c.Names, name):
		return fmt.Errorf("the authority asks for %s %q, which was not ordered", z.Identifier.Type, name)
	case z.Status == xacme.StatusValid:
		return nil
	case z.Status != xacme.StatusPending:
		return fmt.Errorf("the authorization for %s is %s", name, z.Status)
	}
	way := tlsALPN
	if m.c.HTTP {
		way = http01
	}
	var offered []string
	for _, ch := range z.Challenges {
		if ch.Type != way {
			offered = append(offered, ch.Type)
			continue
		}
		if err := m.answer(client, way, name, ch.Token); err != nil {
			return err
		}
		defer m.challenge.Store(nil)
		if _, err := client.Accept(ctx, ch); err != nil {
			return fmt.Errorf("the validation of %s: %w", name, err)
		}
		if _, err := client.WaitAuthorization(ctx, z.URI); err != nil {
			return fmt.Errorf("the validation of %s: %w", name, validationError(err))
		}
		return nil
	}
	return fmt.Errorf("the authority does not validate %s by %s, but by %s", name, way, strings.Join(offered, ", "))
}

// validationError returns what the authority says of a validation, without the text that the library puts before it.
func validationError(err error) error {
	if e, ok := errors.AsType[*xacme.AuthorizationError](err); ok && len(e.Errors) > 0 {
		return errors.Join(e.Errors...)
	}
	return err
}

// isProblem reports whether an error is a problem document of a type of RFC 8555 §6.7.
func isProblem(err error, kind string) bool {
	e, ok := errors.AsType[*xacme.Error](err)
	return ok && e.ProblemType == "urn:ietf:params:acme:error:"+kind
}
