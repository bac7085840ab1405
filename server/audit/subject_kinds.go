package audit

import (
	"strings"

	"github.com/watchword-iot/watchword"
)

const devicePrefix = "device."

// KindFor returns the kind of an act on a subject of that kind, where device is the kind of the same act on a device:
// [DeviceSuspend] of an operator is "operator.suspend".
func KindFor(subject watchword.Kind, device string) string {
	act, ok := strings.CutPrefix(device, devicePrefix)
	if !ok || subject == watchword.Device || device == DeviceForget { // ids of operators and services are not forgotten
		return device
	}
	return string(subject) + "." + act
}

// KindOfDevice returns the kind of the same act on a device; any other kind is returned as it is.
func KindOfDevice(kind string) string {
	for _, subject := range []watchword.Kind{watchword.Operator, watchword.Service} {
		if act, ok := strings.CutPrefix(kind, string(subject)+"."); ok && kind != OperatorRole && kind != OperatorRecover {
			return devicePrefix + act
		}
	}
	return kind
}

// withSubjects adds the kinds of acts on operators and services to those of acts on devices.
func withSubjects(kinds []string) []string {
	all := kinds
	for _, subject := range []watchword.Kind{watchword.Operator, watchword.Service} {
		for _, k := range kinds {
			if other := KindFor(subject, k); other != k {
				all = append(all, other)
			}
		}
	}
	return all
}

// SubjectAct returns the subject's kind and the kind of the same act on a device for the kind of an act on a subject; ok is
// false for any other kind. "operator.role" is an act on an operator.
func SubjectAct(kind string) (subject watchword.Kind, act string, ok bool) {
	if kind == OperatorRole {
		return watchword.Operator, OperatorRole, true
	}
	prefix, _, _ := strings.Cut(kind, ".")
	switch subject = watchword.Kind(prefix); subject {
	case watchword.Device, watchword.Operator, watchword.Service:
		return subject, KindOfDevice(kind), true
	}
	return "", "", false
}
