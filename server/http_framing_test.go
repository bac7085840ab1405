package server_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword/internal/testwait"
)

// A request that a proxy may have delimited in another way is the last of its connection (RFC 9112 §6.1): bytes after it
// are not answered.
func TestAmbiguousLengthClosesConnection(t *testing.T) {
	c := config(t, filepath.Join(t.TempDir(), "data"))
	info := running(t, c)
	const body = "5\r\nhello\r\n0\r\n\r\n"
	for _, tc := range []struct {
		name, head, body string
		last             bool
	}{
		{"both lengths", "POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n", body, true},
		{"both, the other way round", "POST /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n", body, true},
		{"both, on a request that is answered", "GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 15\r\nTransfer-Encoding: chunked\r\n", body, true},
		{"both, for an address that is none", "DELETE /nothing/of/the/kind HTTP/1.1\r\nHost: localhost\r\nContent-Length: 15\r\nTransfer-Encoding: chunked\r\n", body, true},
		{"both, of the token endpoint", "POST /oauth/token HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n", body, true},
		{"both, for all of the server", "OPTIONS * HTTP/1.1\r\nHost: localhost\r\nContent-Length: 15\r\nTransfer-Encoding: chunked\r\n", body, true},
		{"both, in HTTP/1.0", "GET /healthz HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n", "", true},
		{"chunks alone", "POST /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n", body, true},
		{"one length", "POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n", "hello", false},
		{"none", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n", "", false},
	} {
		for door, dial := range map[string]func() (net.Conn, error){
			"https": func() (net.Conn, error) {
				return tls.Dial("tcp", info.HTTPS, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
			},
			"metrics": func() (net.Conn, error) { return net.Dial("tcp", info.Metrics) },
		} {
			t.Run(tc.name+"/"+door, func(t *testing.T) {
				nc, err := dial()
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				if err := nc.SetDeadline(time.Now().Add(testwait.Limit)); err != nil {
					t.Fatal(err)
				}
				if _, err := io.WriteString(nc, tc.head+"\r\n"+tc.body+"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
				r, answers := bufio.NewReader(nc), 0
				for {
					a, err := http.ReadResponse(r, nil)
					if err != nil {
						if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !strings.Contains(err.Error(), "reset") {
							t.Error(err)
						}
						break
					}
					answers++
					if _, err := io.Copy(io.Discard, a.Body); err != nil {
						t.Error(err)
					}
					if answers == 1 && a.Close != tc.last {
						t.Errorf("status %d, Connection: close is %v", a.StatusCode, a.Close)
					}
				}
				if want := map[bool]int{true: 1, false: 2}[tc.last]; answers != want {
					t.Errorf("%d answers, want %d", answers, want)
				}
			})
		}
	}
}
