package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// forwardProxy starts an HTTP proxy that requires the user "me" with the password "secret", and knows hub.test as the server of the data
// folder; its port 443 is HTTPS, each other one MQTT. Its URL is in the variable FORWARD_PROXY, and the file connects has a line
// for each connection.
func forwardProxy(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: forward-proxy")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { _ = l.Close() })
	ts.Setenv("FORWARD_PROXY", "http://me:secret@"+l.Addr().String())
	data, log := ts.Getenv("WATCHWORD_DATA"), ts.MkAbs("connects")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if err := serveConnect(c, data, log); err != nil {
					_, _ = fmt.Fprintf(c, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
				}
			}()
		}
	}()
}

func serveConnect(c net.Conn, data, log string) error {
	in := bufio.NewReader(c)
	r, err := http.ReadRequest(in)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, r.Method, r.Host)
	if cerr := f.Close(); err != nil || cerr != nil {
		return cerr
	}
	if r.Header.Get("Proxy-Authorization") != "Basic bWU6c2VjcmV0" {
		_, err := io.WriteString(c, "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
		return err
	}
	b, err := os.ReadFile(filepath.Join(data, "server.json"))
	if err != nil {
		return err
	}
	var at struct{ HTTPS, MQTTS string }
	if err := json.Unmarshal(b, &at); err != nil {
		return err
	}
	host, port, ok := strings.Cut(r.Host, ":")
	if !ok || host != "hub.test" {
		return fmt.Errorf("no host %q", r.Host)
	}
	to := at.MQTTS
	if port == "443" {
		to = at.HTTPS
	}
	out, err := net.Dial("tcp", to)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return err
	}
	go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
	_, _ = io.Copy(c, out)
	return nil
}
