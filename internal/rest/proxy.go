package rest

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// Limits of the exchange with a proxy.
const (
	proxyTimeout = 30 * time.Second
	proxyHeader  = 16 << 10 // bytes of the answer
)

// DialDirect connects without a proxy.
func DialDirect(ctx context.Context, network, address string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

// DialFromEnvironment connects to HOST:PORT through the HTTP proxy that the environment names for https://HOST:PORT, by CONNECT
// (RFC 9110 §9.3.6), and directly if it names none: HTTPS_PROXY and NO_PROXY, as [http.ProxyFromEnvironment] has them, once for
// the process. Loopback addresses are never reached through a proxy. The proxy's URL is http:// or https:// (TLS to the proxy, verified
// by the system's authorities), with user and password if need be. It is safe for concurrent use.
func DialFromEnvironment(ctx context.Context, network, address string) (net.Conn, error) {
	return dialProxied(ctx, network, address, http.ProxyFromEnvironment, nil)
}

// dialProxied is DialFromEnvironment with another source of proxies, and other authorities for their TLS.
func dialProxied(ctx context.Context, network, address string, proxyFor func(*http.Request) (*url.URL, error), conf *tls.Config) (net.Conn, error) {
	proxy, err := proxyFor(&http.Request{URL: &url.URL{Scheme: "https", Host: address}})
	if err != nil {
		return nil, dialError{errors.New("the environment variable HTTPS_PROXY must be the URL of a proxy")} // without its text, which may have a password
	}
	if proxy == nil {
		return DialDirect(ctx, network, address)
	}
	ctx, cancel := context.WithTimeout(ctx, proxyTimeout)
	defer cancel()
	c, err := connectThrough(ctx, network, address, proxy, conf)
	if err != nil {
		return nil, dialError{fmt.Errorf("through the proxy %s: %w", proxy.Host, err)}
	}
	return c, nil
}

func connectThrough(ctx context.Context, network, address string, proxy *url.URL, conf *tls.Config) (net.Conn, error) {
	port := map[string]string{"http": "80", "https": "443"}[proxy.Scheme]
	if port == "" {
		return nil, fmt.Errorf("HTTPS_PROXY must begin with http:// or https://, and not with %s://", proxy.Scheme)
	}
	if p := proxy.Port(); p != "" {
		port = p
	}
	c, err := DialDirect(ctx, network, net.JoinHostPort(proxy.Hostname(), port))
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() }) // the exchange fails, and reports why
	tunnel, err := tunnelTo(ctx, c, address, proxy, conf)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = c.Close() // nothing is lost
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	return tunnel, nil
}

// tunnelTo has the proxy at the other end of c connect to address.
func tunnelTo(ctx context.Context, c net.Conn, address string, proxy *url.URL, conf *tls.Config) (net.Conn, error) {
	if proxy.Scheme == "https" {
		conf = conf.Clone()
		if conf == nil {
			conf = &tls.Config{}
		}
		conf.ServerName, conf.MinVersion, conf.NextProtos = proxy.Hostname(), tls.VersionTLS12, []string{"http/1.1"}
		t := tls.Client(c, conf)
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		c = t
	}
	request := "CONNECT " + address + " HTTP/1.1\r\nHost: " + address + "\r\n"
	if u := proxy.User; u != nil {
		password, _ := u.Password()
		request += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)) + "\r\n"
	}
	if _, err := io.WriteString(c, request+"\r\n"); err != nil {
		return nil, err
	}
	in := bufio.NewReader(io.LimitReader(c, proxyHeader))
	r, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect})
	switch {
	case err != nil:
		return nil, errors.New("it sent no valid answer to CONNECT") // not what it sent
	case r.StatusCode == http.StatusProxyAuthRequired:
		return nil, errors.New("it requires a user and password, or refuses them (407): HTTPS_PROXY can have them, http://USER:PASSWORD@HOST:PORT")
	case r.StatusCode/100 != 2:
		return nil, fmt.Errorf("it does not connect to %s (status %d)", address, r.StatusCode)
	case in.Buffered() > 0: // TLS servers send nothing first
		return nil, errors.New("it sent more than an answer to CONNECT")
	}
	return c, nil
}
