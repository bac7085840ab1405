package sse_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword/internal/sse"
)

func TestEvents(t *testing.T) {
	r := sse.NewReader(strings.NewReader(": a comment\n\nevent: session\ndata: {}\n\nid: 7\ndata: a\ndata: b\n\nevent:x\ndata:no space\n\ndata: cut off"))
	for _, want := range []sse.Event{{Name: "session", Data: "{}"}, {Name: "message", ID: "7", Data: "a\nb"}, {Name: "x", Data: "no space"}} {
		if got, err := r.Next(); err != nil || got != want {
			t.Errorf("got %+v %v, want %+v", got, err, want)
		}
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	if _, err := sse.NewReader(strings.NewReader("data: " + strings.Repeat("x", 1<<20) + "\n\n")).Next(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a line without end: %v", err)
	}
}
