package attack_test

import "github.com/watchword-iot/watchword"

// roleRow says which roles may do one operation. Each role sends a request that would succeed.
type roleRow struct {
	op string // METHOD and path of the OpenAPI document; the method MQTT, and one in noDescription, are of no document

	// may has the answers to the owner, admin, operator, viewer, auditor, custom role, and to a subject without a role, in this
	// order: y allowed, n denied, x exceeds_own.
	may string

	path string // of the request: the path of op if empty. Names in braces are those of roleMatrix.makers
	body string
	form string // in the place of body: application/x-www-form-urlencoded

	// kinds are the audit entries of an allowed request: these and no others.
	kinds string
	// code is the refusal of an allowed request that cannot succeed here; why says why not.
	code watchword.Code
	why  string

	do func(m *roleMatrix, k operatorKey, values map[string]string) answer // in the place of the request
}

// The custom role may send every request, and may give topics below plant/ alone. The objects of the rows have the permission to
// publish meter/power, which it neither has nor may give.
const (
	everybody  = "yyyyyyy"
	see        = "yyyynyn"
	seesTopics = "yyyynnn" // the custom role has no topics
	readsLog   = "yynnyyn"
	manages    = "yynnnyn" // owner, admin and the custom role
	compared   = "yynnnxn" // the same, and the custom role is refused because of what the object has or gets
	owns       = "ynnnnyn"
	ownerOnly  = "ynnnnxn" // the same, compared
	readsKeys  = "yynnnyn"
	ownTopics  = "ynnnnnn" // decided by the caller's topics
	calls      = "yyynnnn" // decided by the caller's functions
)

var roleRows = []roleRow{
	// Devices.
	{op: "GET /v1/devices", may: see},
	{op: "GET /v1/totals", may: see},
	{op: "GET /v1/labels", may: see},
	{op: "GET /v1/devices/{id}", may: see, path: "/v1/devices/{device}"},
	{op: "GET /v1/devices/{id}/twin", may: see, path: "/v1/devices/{device}/twin"},
	{op: "POST /v1/devices", may: compared, body: `{"id":"{new}","labels":{labels}}`, kinds: "device.create"},
	{op: "PUT /v1/devices/{id}/labels", may: compared, path: "/v1/devices/{device}/labels", body: `{"labels":{}}`, kinds: "device.label"},
	{op: "PUT /v1/devices/{id}/labels", may: compared, path: "/v1/devices/{plain-device}/labels", body: `{"labels":{labels}}`, kinds: "device.label"},
	{op: "PUT /v1/devices/{id}/name", may: compared, path: "/v1/devices/{device}/name", body: `{"name":"{new}"}`, kinds: "device.name"},
	{op: "PUT /v1/devices/{id}/proof", may: compared, path: "/v1/devices/{device}/proof", body: `{"proof":"required"}`, kinds: "device.proof"},
	{op: "PUT /v1/devices/{id}/config", may: manages, path: "/v1/devices/{device}/config", body: `{"a":1}`, kinds: "config.set"},
	{op: "POST /v1/devices/{id}/link", may: compared, path: "/v1/devices/{device}/link", body: `{}`, kinds: "device.link"},
	{op: "POST /v1/devices/{id}/suspend", may: compared, path: "/v1/devices/{device}/suspend", body: `{}`, kinds: "device.suspend"},
	{op: "POST /v1/devices/{id}/resume", may: compared, path: "/v1/devices/{suspended-device}/resume", body: `{}`, kinds: "device.resume"},
	{op: "POST /v1/devices/{id}/revoke", may: compared, path: "/v1/devices/{device}/revoke", body: `{}`, kinds: "device.revoke"},
	{op: "DELETE /v1/devices/{id}", may: compared, path: "/v1/devices/{device}", kinds: "device.delete"},
	{op: "POST /v1/devices/{id}/forget", may: manages, path: "/v1/devices/{deleted-device}/forget", kinds: "device.forget"},
	{op: "GET /v1/enrollments", may: see},
	{op: "GET /v1/enrollments/{user_code}", may: see, path: "/v1/enrollments/{pairing}"},
	{op: "POST /v1/enrollments/{user_code}/approve", may: compared, path: "/v1/enrollments/{pairing}/approve", body: `{"id":"{new}","sign":"{pairing-key}","labels":{labels}}`, kinds: "device.create device.enroll"},
	{op: "POST /v1/enrollments/{user_code}/reject", may: manages, path: "/v1/enrollments/{pairing}/reject", kinds: "pairing.reject"},

	// Services.
	{op: "GET /v1/services", may: see},
	{op: "GET /v1/services/{id}", may: see, path: "/v1/services/{service}"},
	{op: "GET /v1/services/{id}/keys", may: see, path: "/v1/services/{service}/keys"},
	{op: "POST /v1/services", may: compared, body: `{"id":"{new}","labels":{labels}}`, kinds: "service.create"},
	{op: "PUT /v1/services/{id}/labels", may: compared, path: "/v1/services/{service}/labels", body: `{"labels":{}}`, kinds: "service.label"},
	{op: "POST /v1/services/{id}/link", may: compared, path: "/v1/services/{service}/link", body: `{}`, kinds: "service.link"},
	{op: "DELETE /v1/services/{id}/keys/{kid}", may: compared, path: "/v1/services/{service-key}", kinds: "service.key_revoke"},
	{op: "PUT /v1/services/{id}/keys/{kid}/end", may: compared, path: "/v1/services/{service-key}/end", body: `{"ends_at":"2040-01-01T00:00:00Z"}`, kinds: "service.key_end"},
	{op: "POST /v1/services/{id}/suspend", may: compared, path: "/v1/services/{service}/suspend", body: `{}`, kinds: "service.suspend"},
	{op: "POST /v1/services/{id}/resume", may: compared, path: "/v1/services/{suspended-service}/resume", body: `{}`, kinds: "service.resume"},
	{op: "POST /v1/services/{id}/revoke", may: compared, path: "/v1/services/{service}/revoke", body: `{}`, kinds: "service.revoke"},
	{op: "DELETE /v1/services/{id}", may: compared, path: "/v1/services/{service}", kinds: "service.delete"},

	// Operators. A viewer has topics that the custom role may not give.
	{op: "GET /v1/operators", may: readsKeys},
	{op: "GET /v1/operators/{id}", may: readsKeys, path: "/v1/operators/{operator}"},
	{op: "GET /v1/operators/{id}/keys", may: readsKeys, path: "/v1/operators/{operator}/keys"},
	{op: "POST /v1/operators", may: ownerOnly, body: `{"id":"{new}","role":"viewer"}`, kinds: "operator.create"},
	{op: "PUT /v1/operators/{id}/labels", may: ownerOnly, path: "/v1/operators/{operator}/labels", body: `{"labels":{"a":"b"}}`, kinds: "operator.label"},
	{op: "PUT /v1/operators/{id}/role", may: ownerOnly, path: "/v1/operators/{operator}/role", body: `{"role":"auditor"}`, kinds: "operator.role"},
	{op: "POST /v1/operators/{id}/link", may: ownerOnly, path: "/v1/operators/{operator}/link", body: `{}`, kinds: "operator.link"},
	{op: "DELETE /v1/operators/{id}/keys/{kid}", may: ownerOnly, path: "/v1/operators/{operator-key}", kinds: "operator.key_revoke"},
	{op: "PUT /v1/operators/{id}/keys/{kid}/end", may: ownerOnly, path: "/v1/operators/{operator-key}/end", body: `{"ends_at":"2040-01-01T00:00:00Z"}`, kinds: "operator.key_end"},
	{op: "POST /v1/operators/{id}/suspend", may: ownerOnly, path: "/v1/operators/{operator}/suspend", body: `{}`, kinds: "operator.suspend"},
	{op: "POST /v1/operators/{id}/resume", may: ownerOnly, path: "/v1/operators/{suspended-operator}/resume", body: `{}`, kinds: "operator.resume"},
	{op: "POST /v1/operators/{id}/revoke", may: ownerOnly, path: "/v1/operators/{operator}/revoke", body: `{}`, kinds: "operator.revoke"},
	{op: "DELETE /v1/operators/{id}", may: ownerOnly, path: "/v1/operators/{operator}", kinds: "operator.delete"},
	{op: "GET /v1/logins", may: owns},
	{op: "GET /v1/logins/{user_code}", may: owns, path: "/v1/logins/{login}"},
	{op: "POST /v1/logins/{user_code}/approve", may: ownerOnly, path: "/v1/logins/{login}/approve", body: `{"id":"{new}","role":"viewer","sign":"{login-key}","pin":"{pin}"}`, kinds: "operator.create operator.enroll"},
	{op: "POST /v1/logins/{user_code}/reject", may: owns, path: "/v1/logins/{login}/reject", kinds: "login.reject"},
	{op: "GET /v1/notices", may: owns},
	{op: "DELETE /v1/notices/{kind}", may: owns, path: "/v1/notices/{notice}", kinds: "notice.acknowledge"},

	// Policies.
	{op: "GET /v1/policies", may: see},
	{op: "GET /v1/policies/{name}", may: see, path: "/v1/policies/{policy}"},
	{op: "PUT /v1/policies/{name}", may: compared, path: "/v1/policies/{new}", body: "subjects = [\"nobody\"]\n[[allow]]\npublish = [\"meter/power\"]\n", kinds: "policy.apply"},
	{op: "PUT /v1/policies/{name}", may: manages, path: "/v1/policies/{new}", body: "subjects = [\"nobody\"]\n[[allow]]\npublish = [\"plant/x\"]\n", kinds: "policy.apply"},
	{op: "PUT /v1/policies/{name}", may: "yxnnnxn", path: "/v1/policies/{new}", body: "subjects = [\"nobody\"]\n[[allow]]\nget = [\"/v1/devices/#\"]\n", kinds: "policy.apply"},
	{op: "DELETE /v1/policies/{name}", may: compared, path: "/v1/policies/{policy}", kinds: "policy.delete"},
	{op: "POST /v1/policies/check", may: see, path: "/v1/policies/check?name=p", body: "subjects = [\"nobody\"]\n[[allow]]\npublish = [\"a\"]\n"},
	{op: "POST /v1/policies/diff", may: see, path: "/v1/policies/diff?name=p", body: "subjects = [\"nobody\"]\n[[allow]]\npublish = [\"a\"]\n"},
	{op: "POST /v1/explain", may: see, body: `{"subject":"operator","action":"get","resource":"api:/v1/devices"}`},

	// Commands, sessions, tokens and messages.
	{op: "GET /v1/commands", may: see},
	{op: "GET /v1/commands/{id}", may: see, path: "/v1/commands/{command}"},
	{op: "GET /v1/commands/{id}", may: see, path: "/v1/commands/{command}?wait=1ms"},
	{op: "GET /v1/commands/{id}/evidence", may: see, path: "/v1/commands/{command}/evidence", code: watchword.Conflict, why: "the command is not final", kinds: "log.read"},
	{op: "POST /v1/commands", may: calls, body: `{"device":"{device}","function":"f","args":{}}`, kinds: "command.order"},
	{op: "POST /v1/commands/{id}/cancel", may: "yyynnyn", path: "/v1/commands/{command}/cancel", kinds: "command.cancel"},
	{op: "GET /v1/sessions", may: see},
	{op: "DELETE /v1/sessions/{id}", may: compared, path: "/v1/sessions/{session}"},
	{op: "DELETE /v1/tokens/{jti}", may: compared, path: "/v1/tokens/{jti}", kinds: "token.revoke"},
	{op: "GET /v1/events", may: seesTopics, do: eventStream("/v1/events")},
	{op: "GET /v1/retained", may: see},
	{op: "GET /v1/retained/{topic}", may: see, path: "/v1/retained/{retained}", kinds: "retained.show"},
	{op: "DELETE /v1/retained/{topic}", may: manages, path: "/v1/retained/{retained}", kinds: "retained.delete"},

	// The log.
	{op: "GET /v1/audit", may: readsLog, kinds: "log.read"},
	{op: "GET /v1/audit", may: readsLog, kinds: "log.read", do: eventStream("/v1/audit")},
	{op: "GET /v1/audit/export", may: readsLog, kinds: "log.read"},
	{op: "GET /v1/audit/{seq}", may: readsLog, path: "/v1/audit/1", kinds: "log.read"},
	{op: "GET /v1/audit/{seq}/proof", may: readsLog, path: "/v1/audit/1/proof", kinds: "log.read"},

	// The server's keys and address.
	{op: "GET /v1/keys", may: readsKeys},
	{op: "POST /v1/keys/{role}/rotate", may: owns, path: "/v1/keys/time/rotate", body: `{"now":true}`, kinds: "bundle.sign key.create key.retire"},
	{op: "POST /v1/keys/{id}/revoke", may: owns, path: "/v1/keys/{server-key}/revoke", body: `{}`, kinds: "bundle.sign key.revoke"},
	{op: "POST /v1/keys/bundles/plan", may: owns, body: `{"count":1}`, code: watchword.Conflict, why: "the root is on the server"},
	{op: "POST /v1/keys/bundles", may: owns, body: `{"bundles":["x"]}`, code: watchword.TokenMalformed, why: "the root is on the server"},
	{op: "GET /v1/address", may: owns},
	{op: "POST /v1/address/move", may: owns, body: `{"url":"x"}`, code: watchword.BadRequest, why: "it would change the issuer of the other rows", kinds: "address.move"},

	// What a subject does with itself.
	{op: "GET /v1/self", may: everybody},
	{op: "GET /v1/self/sessions", may: everybody},
	{op: "PUT /v1/self/sessions/{id}", may: everybody, path: "/v1/self/sessions/none", code: watchword.NotFound, why: "the caller has no connection"},
	{op: "GET /v1/self/keys", may: everybody},
	{op: "POST /v1/self/keys", may: "nnnnnnn", body: `{}`, kinds: "device.rekey"}, // of devices alone,
	{op: "POST /v1/self/link", may: everybody, body: `{}`, kinds: "operator.link token.issue|service.link token.issue", do: proved},
	{op: "DELETE /v1/self/keys/{kid}", may: everybody, path: "/v1/self/keys/{own-key}", kinds: "operator.key_revoke token.issue|service.key_revoke token.issue", do: proved},
	{op: "PUT /v1/self/keys/{kid}/end", may: everybody, path: "/v1/self/keys/{own-key}/end", body: `{"ends_at":"2040-01-01T00:00:00Z"}`, kinds: "operator.key_end token.issue|service.key_end token.issue", do: proved},
	{op: "GET /v1/self/functions", may: everybody},
	{op: "PUT /v1/self/functions", may: everybody, body: `{"functions":[]}`, code: watchword.NotFound, why: "the caller is no device"},
	{op: "PUT /v1/self/trust", may: everybody, body: `x`, code: watchword.BundleInvalid, why: "no bundle of another server is at hand", kinds: "server.superseded"},
	{op: "POST /v1/self/receipts", may: ownTopics, body: `{"receipt":"x"}`, code: watchword.ReceiptInvalid, why: "no device answers", kinds: "command.settle command.conflict"},
	{op: "GET /v1/self/commands", may: ownTopics},
	{op: "GET /v1/self/config", may: ownTopics, code: watchword.NotFound, why: "the caller is no device"},
	{op: "POST /v1/self/events/{stream}", may: ownTopics, path: "/v1/self/events/s", body: `1`},
	{op: "GET /v1/self/state", may: everybody, code: watchword.NotFound, why: "the caller is no device"},
	{op: "PUT /v1/self/state", may: ownTopics, body: `{}`, code: watchword.NotFound, why: "the caller is no device"},

	// OAuth, and what needs no token.
	{op: "POST /oauth/token", may: everybody, kinds: "token.issue", do: exchange},
	{op: "POST /oauth/introspect", may: owns, form: "token=x"},
	{op: "POST /oauth/revoke", may: everybody, form: "token={own-token}", kinds: "token.revoke"},
	{op: "POST /oauth/device_authorization", may: everybody, form: "client_id=x", code: watchword.BadRequest, why: "no token is needed"},
	{op: "POST /v1/enroll", may: everybody, path: "{link}", kinds: "service.enroll", do: enrollService},
	{op: "POST /v1/logins", may: everybody, body: `{}`, code: watchword.BadRequest, why: "no token is needed"},
	{op: "POST /v1/logins/poll", may: everybody, body: `{}`, code: watchword.PairingExpired, why: "no token is needed"},
	{op: "POST /v1/time", may: everybody, body: `{}`, code: watchword.BadRequest, why: "no token is needed"},
	{op: "GET /v1/trust", may: everybody},

	// The tiles of the log, and MQTT.
	{op: "GET /log/checkpoint", may: owns, kinds: "log.read"},
	{op: "MQTT connect", may: seesTopics, do: mqttConnect},
	{op: "MQTT subscribe devices/+/events/#", may: seesTopics, do: mqttSubscribe("devices/+/events/#")},
	{op: "MQTT subscribe devices/+/commands", may: ownTopics, do: mqttSubscribe("devices/+/commands")},
	{op: "MQTT subscribe #", may: ownTopics, do: mqttSubscribe("#")},
	{op: "MQTT publish plant/x", may: ownTopics, do: mqttPublish("plant/x")},
	{op: "MQTT publish devices/lamp/state", may: "nnnnnnn", do: mqttPublish("devices/lamp/state")}, // the device's alone
}

// noDescription are the operations of rows, beside those of MQTT, that the OpenAPI document does not have.
var noDescription = map[string]bool{"GET /log/checkpoint": true}

// kindsWithoutOperation are the kinds of entries that no operation of a role writes, with what writes them.
var kindsWithoutOperation = map[string]string{
	"server.start": byServer, "key.activate": byServer, "key.erase": byServer, "key.move": byServer, "log.prune": byServer, "log.restore": machine, "backup.create": machine,
	"clock.refuse": byServer, "clock.trust": byServer, "clock.accept": machine, "operator.recover": machine,
	"device.key_retire": byServer, "operator.key_retire": byServer, "service.key_retire": byServer,
	"command.expire": byServer, "command.undeliverable": byServer, "command.handover": byServer,
	"session.open": byServer, "session.close": byServer, "sessions.overflow": byServer, "request.refuse": byServer, "refusals.overflow": byServer,
	"device.key_revoke": none, "device.key_end": none, "operator.rekey": none, "service.rekey": none, "operator.name": none, "operator.proof": none, "service.name": none, "service.proof": none,
}

const (
	byServer = "the server itself, at no request that is allowed"
	machine  = "a command on the server's machine"
	none     = "there is no such operation"
)
