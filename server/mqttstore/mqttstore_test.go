package mqttstore_test

import (
	"bytes"
	"reflect"
	"slices"
	"testing"

	"github.com/watchword-iot/watchword/server/mqttstore"
)

func FuzzProgress(f *testing.F) {
	p := mqttstore.Progress{
		Next: 70_000, Sent: 69_000, Inflight: []mqttstore.Inflight{{68_000, true}, {69_000, false}}, Skipped: []mqttstore.SeqRange{{69_500, 69_500}, {69_600, 69_990}},
		Lost: []mqttstore.LostFilter{{Filter: "a/#", Seq: 69_900, Reported: true}, {Filter: "", Seq: 1}}, Received: []uint16{1, 65535}, Dropped: 3, Narrowed: true,
	}
	f.Add(p.Append(nil))
	if got, err := mqttstore.ParseProgress(p.Append(nil)); err != nil || !got.Narrowed {
		f.Errorf("%+v, %v", got, err)
	}
	p.Skipped = []mqttstore.SeqRange{{5, 5}} // one number twice, as two that are gone were written before
	before := p.Append(nil)
	before[0] = 2
	gone := bytes.Index(before, []byte{1, 5, 5})
	before[gone] = 2
	if got, err := mqttstore.ParseProgress(before); err != nil || !got.Narrowed || !slices.Equal(got.Skipped, []mqttstore.SeqRange{{5, 5}, {5, 5}}) {
		f.Errorf("form 2: %+v, %v", got, err)
	}
	before[0], before = 1, before[:len(before)-1] // as it was written without flags
	if got, err := mqttstore.ParseProgress(before); err != nil || got.Narrowed || got.Dropped != 3 || len(got.Skipped) != 2 {
		f.Errorf("form 1: %+v, %v", got, err)
	}
	f.Add([]byte{})
	f.Add([]byte{1, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 127})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := mqttstore.ParseProgress(b)
		if err != nil {
			return
		}
		again, err := mqttstore.ParseProgress(p.Append(nil))
		if err != nil || !reflect.DeepEqual(p, again) {
			t.Errorf("%+v became %+v (%v)", p, again, err)
		}
	})
}

func FuzzReceivers(f *testing.F) {
	f.Add(mqttstore.AppendReceiver(mqttstore.AppendReceiver(nil, mqttstore.Receiver{Session: 300, Seq: 1 << 40, QoS: 2, Retain: true, Identifiers: []uint32{1, 268_435_455}}), mqttstore.Receiver{Session: 1, Seq: 1, QoS: 1, Group: "$share/g/a"}))
	f.Add([]byte{1, 1, 17, 200})
	f.Fuzz(func(t *testing.T, b []byte) {
		var rs, again []mqttstore.Receiver
		if mqttstore.Receivers(b, func(r mqttstore.Receiver) { rs = append(rs, r) }) != nil {
			return
		}
		var out []byte
		for _, r := range rs {
			out = mqttstore.AppendReceiver(out, r)
		}
		if err := mqttstore.Receivers(out, func(r mqttstore.Receiver) { again = append(again, r) }); err != nil || !reflect.DeepEqual(rs, again) {
			t.Errorf("%+v became %+v (%v)", rs, again, err)
		}
	})
}
