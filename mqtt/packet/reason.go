package packet

// Reason is a reason code (MQTT 5.0 §2.4).
type Reason byte

// Reason codes; those from 0x80 are failures.
const (
	Success                             Reason = 0x00 // also Normal disconnection and Granted QoS 0
	GrantedQoS1                         Reason = 0x01
	GrantedQoS2                         Reason = 0x02
	DisconnectWithWill                  Reason = 0x04
	NoMatchingSubscribers               Reason = 0x10
	NoSubscriptionExisted               Reason = 0x11
	ContinueAuthentication              Reason = 0x18
	ReAuthenticate                      Reason = 0x19
	UnspecifiedError                    Reason = 0x80
	MalformedPacket                     Reason = 0x81
	ProtocolError                       Reason = 0x82
	ImplementationSpecificError         Reason = 0x83
	UnsupportedProtocolVersion          Reason = 0x84
	ClientIdentifierNotValid            Reason = 0x85
	BadUserNameOrPassword               Reason = 0x86
	NotAuthorized                       Reason = 0x87
	ServerUnavailable                   Reason = 0x88
	ServerBusy                          Reason = 0x89
	Banned                              Reason = 0x8A
	ServerShuttingDown                  Reason = 0x8B
	BadAuthenticationMethod             Reason = 0x8C
	KeepAliveTimeout                    Reason = 0x8D
	SessionTakenOver                    Reason = 0x8E
	TopicFilterInvalid                  Reason = 0x8F
	TopicNameInvalid                    Reason = 0x90
	PacketIdentifierInUse               Reason = 0x91
	PacketIdentifierNotFound            Reason = 0x92
	ReceiveMaximumExceeded              Reason = 0x93
	TopicAliasInvalid                   Reason = 0x94
	PacketTooLarge                      Reason = 0x95
	MessageRateTooHigh                  Reason = 0x96
	QuotaExceeded                       Reason = 0x97
	AdministrativeAction                Reason = 0x98
	PayloadFormatInvalid                Reason = 0x99
	RetainNotSupported                  Reason = 0x9A
	QoSNotSupported                     Reason = 0x9B
	UseAnotherServer                    Reason = 0x9C
	ServerMoved                         Reason = 0x9D
	SharedSubscriptionsNotSupported     Reason = 0x9E
	ConnectionRateExceeded              Reason = 0x9F
	MaximumConnectTime                  Reason = 0xA0
	SubscriptionIdentifiersNotSupported Reason = 0xA1
	WildcardSubscriptionsNotSupported   Reason = 0xA2
)

// Failed reports whether r is a failure.
func (r Reason) Failed() bool { return r >= 0x80 }

// allowedIn gives the packets that may carry a reason code (MQTT 5.0 §2.4, table 2-6).
var allowedIn = map[Reason]uint16{
	Success:                             set(CONNACK, PUBACK, PUBREC, PUBREL, PUBCOMP, UNSUBACK, AUTH, DISCONNECT, SUBACK),
	GrantedQoS1:                         set(SUBACK),
	GrantedQoS2:                         set(SUBACK),
	DisconnectWithWill:                  set(DISCONNECT),
	NoMatchingSubscribers:               set(PUBACK, PUBREC),
	NoSubscriptionExisted:               set(UNSUBACK),
	ContinueAuthentication:              set(AUTH),
	ReAuthenticate:                      set(AUTH),
	UnspecifiedError:                    set(CONNACK, PUBACK, PUBREC, SUBACK, UNSUBACK, DISCONNECT),
	MalformedPacket:                     set(CONNACK, DISCONNECT),
	ProtocolError:                       set(CONNACK, DISCONNECT),
	ImplementationSpecificError:         set(CONNACK, PUBACK, PUBREC, SUBACK, UNSUBACK, DISCONNECT),
	UnsupportedProtocolVersion:          set(CONNACK),
	ClientIdentifierNotValid:            set(CONNACK),
	BadUserNameOrPassword:               set(CONNACK),
	NotAuthorized:                       set(CONNACK, PUBACK, PUBREC, SUBACK, UNSUBACK, DISCONNECT),
	ServerUnavailable:                   set(CONNACK),
	ServerBusy:                          set(CONNACK, DISCONNECT),
	Banned:                              set(CONNACK),
	ServerShuttingDown:                  set(DISCONNECT),
	BadAuthenticationMethod:             set(CONNACK, DISCONNECT),
	KeepAliveTimeout:                    set(DISCONNECT),
	SessionTakenOver:                    set(DISCONNECT),
	TopicFilterInvalid:                  set(SUBACK, UNSUBACK, DISCONNECT),
	TopicNameInvalid:                    set(CONNACK, PUBACK, PUBREC, DISCONNECT),
	PacketIdentifierInUse:               set(PUBACK, PUBREC, SUBACK, UNSUBACK),
	PacketIdentifierNotFound:            set(PUBREL, PUBCOMP),
	ReceiveMaximumExceeded:              set(DISCONNECT),
	TopicAliasInvalid:                   set(DISCONNECT),
	PacketTooLarge:                      set(CONNACK, DISCONNECT),
	MessageRateTooHigh:                  set(DISCONNECT),
	QuotaExceeded:                       set(CONNACK, PUBACK, PUBREC, SUBACK, DISCONNECT),
	AdministrativeAction:                set(DISCONNECT),
	PayloadFormatInvalid:                set(CONNACK, PUBACK, PUBREC, DISCONNECT),
	RetainNotSupported:                  set(CONNACK, DISCONNECT),
	QoSNotSupported:                     set(CONNACK, DISCONNECT),
	UseAnotherServer:                    set(CONNACK, DISCONNECT),
	ServerMoved:                         set(CONNACK, DISCONNECT),
	SharedSubscriptionsNotSupported:     set(SUBACK, DISCONNECT),
	ConnectionRateExceeded:              set(CONNACK, DISCONNECT),
	MaximumConnectTime:                  set(DISCONNECT),
	SubscriptionIdentifiersNotSupported: set(SUBACK, DISCONNECT),
	WildcardSubscriptionsNotSupported:   set(SUBACK, DISCONNECT),
}

// set returns a bit set of packet types.
func set(ts ...Type) (bits uint16) {
	for _, t := range ts {
		bits |= 1 << t
	}
	return bits
}

// MayCarry reports whether a packet of type t may carry r.
func MayCarry(t Type, r Reason) bool { return allowedIn[r]&(1<<t) != 0 }
