package packet

// Reason is a reason code (MQTT 5.0 §2.4).
type Reason byte

// The reason codes. Those from 0x80 are failures.
const (
	Success            Reason = 0x00 // also normal disconnection, granted QoS 0
	GrantedQoS1        Reason = 0x01
	GrantedQoS2        Reason = 0x02
	WithWill           Reason = 0x04
	NoSubscribers      Reason = 0x10
	NoSubscription     Reason = 0x11
	ContinueAuth       Reason = 0x18
	Reauthenticate     Reason = 0x19
	Unspecified        Reason = 0x80
	Malformed          Reason = 0x81
	ProtocolError      Reason = 0x82
	Implementation     Reason = 0x83
	BadVersion         Reason = 0x84
	BadClientID        Reason = 0x85
	BadUserPassword    Reason = 0x86
	NotAuthorized      Reason = 0x87
	ServerUnavailable  Reason = 0x88
	ServerBusy         Reason = 0x89
	Banned             Reason = 0x8A
	ShuttingDown       Reason = 0x8B
	BadAuthMethod      Reason = 0x8C
	KeepAliveTimeout   Reason = 0x8D
	TakenOver          Reason = 0x8E
	BadFilter          Reason = 0x8F
	BadTopic           Reason = 0x90
	IDInUse            Reason = 0x91
	IDNotFound         Reason = 0x92
	ReceiveMaximumOver Reason = 0x93
	BadTopicAlias      Reason = 0x94
	TooLarge           Reason = 0x95
	RateTooHigh        Reason = 0x96
	QuotaExceeded      Reason = 0x97
	Administrative     Reason = 0x98
	BadPayloadFormat   Reason = 0x99
	NoRetain           Reason = 0x9A
	NoQoS              Reason = 0x9B
	UseAnother         Reason = 0x9C
	Moved              Reason = 0x9D
	NoShared           Reason = 0x9E
	ConnectionRate     Reason = 0x9F
	MaximumConnectTime Reason = 0xA0
	NoSubscriptionIDs  Reason = 0xA1
	NoWildcards        Reason = 0xA2
)

// Failed reports whether r says no.
func (r Reason) Failed() bool { return r >= 0x80 }

// mayCarry is which packets may carry which reason code (MQTT 5.0 §2.4, table 2-6).
var mayCarry = map[Reason]uint16{
	Success:            set(CONNACK, PUBACK, PUBREC, PUBREL, PUBCOMP, UNSUBACK, AUTH, DISCONNECT, SUBACK),
	GrantedQoS1:        set(SUBACK),
	GrantedQoS2:        set(SUBACK),
	WithWill:           set(DISCONNECT),
	NoSubscribers:      set(PUBACK, PUBREC),
	NoSubscription:     set(UNSUBACK),
	ContinueAuth:       set(AUTH),
	Reauthenticate:     set(AUTH),
	Unspecified:        set(CONNACK, PUBACK, PUBREC, SUBACK, UNSUBACK, DISCONNECT),
	Malformed:          set(CONNACK, DISCONNECT),
	ProtocolError:      set(CONNACK, DISCONNECT),
	Implementation:     set(CONNACK, PUBACK, PUBREC, SUBACK, UNSUBACK, DISCONNECT),
	BadVersion:         set(CONNACK),
	BadClientID:        set(CONNACK),
	BadUserPassword:    set(CONNACK),
	NotAuthorized:      set(CONNACK, PUBACK, PUBREC, SUBACK, UNSUBACK, DISCONNECT),
	ServerUnavailable:  set(CONNACK),
	ServerBusy:         set(CONNACK, DISCONNECT),
	Banned:             set(CONNACK),
	ShuttingDown:       set(DISCONNECT),
	BadAuthMethod:      set(CONNACK, DISCONNECT),
	KeepAliveTimeout:   set(DISCONNECT),
	TakenOver:          set(DISCONNECT),
	BadFilter:          set(SUBACK, UNSUBACK, DISCONNECT),
	BadTopic:           set(CONNACK, PUBACK, PUBREC, DISCONNECT),
	IDInUse:            set(PUBACK, PUBREC, SUBACK, UNSUBACK),
	IDNotFound:         set(PUBREL, PUBCOMP),
	ReceiveMaximumOver: set(DISCONNECT),
	BadTopicAlias:      set(DISCONNECT),
	TooLarge:           set(CONNACK, DISCONNECT),
	RateTooHigh:        set(DISCONNECT),
	QuotaExceeded:      set(CONNACK, PUBACK, PUBREC, SUBACK, DISCONNECT),
	Administrative:     set(DISCONNECT),
	BadPayloadFormat:   set(CONNACK, PUBACK, PUBREC, DISCONNECT),
	NoRetain:           set(CONNACK, DISCONNECT),
	NoQoS:              set(CONNACK, DISCONNECT),
	UseAnother:         set(CONNACK, DISCONNECT),
	Moved:              set(CONNACK, DISCONNECT),
	NoShared:           set(SUBACK, DISCONNECT),
	ConnectionRate:     set(CONNACK, DISCONNECT),
	MaximumConnectTime: set(DISCONNECT),
	NoSubscriptionIDs:  set(SUBACK, DISCONNECT),
	NoWildcards:        set(SUBACK, DISCONNECT),
}

// set is the bits of some types.
func set(ts ...Type) (bits uint16) {
	for _, t := range ts {
		bits |= 1 << t
	}
	return bits
}

// MayCarry reports whether a packet of type t may carry r.
func MayCarry(t Type, r Reason) bool { return mayCarry[r]&(1<<t) != 0 }
