//go:build unix

package testport

import (
	"net"
	"testing"
)

func TestReservedPortsDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 50 {
		port := Reserve(t)
		if seen[port] {
			t.Fatalf("port %s was reserved twice", port)
		}
		seen[port] = true
	}
}

func TestReservedPortIsFreeAndBelowEphemeralPorts(t *testing.T) {
	port := Reserve(t)
	if port < "20000" || port >= "32000" {
		t.Errorf("port %s is not between 20000 and 31999", port)
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}

func TestPortIsReservedUntilItsTestEnds(t *testing.T) {
	var port string
	t.Run("holder", func(t *testing.T) {
		port = Reserve(t)
		if f, err := lock(port); err == nil {
			t.Errorf("port %s can be reserved twice", port)
			_ = f.Close()
		}
	})
	f, err := lock(port)
	if err != nil {
		t.Fatalf("port %s is still reserved after its test: %v", port, err)
	}
	_ = f.Close()
}

func TestPortWithAListenerIsNotFree(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if free(port) {
		t.Errorf("port %s is free though a server listens on it", port)
	}
}
