package token

import (
	"encoding/json"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// Config is the claims of a device's wanted configuration. Document is one JSON object.
type Config struct {
	Issuer   string
	Device   watchword.SubjectID
	Version  int64
	Document json.RawMessage
	Issued   time.Time
}

type configClaims struct {
	iss    string
	aud    audience
	jti    string
	ver    int64
	config jsontext.Value
	window
}

func (c *configClaims) member(name string, v jsontext.Value) error {
	switch name {
	case "iss":
		return text(&c.iss, v)
	case "aud":
		return c.aud.UnmarshalJSON(v)
	case "jti":
		return text(&c.jti, v)
	case "ver":
		return number(&c.ver, v)
	case "config":
		c.config = v
	}
	return c.window.member(name, v)
}

// SignConfig signs c with the command key, good for [ConfigLife].
func SignConfig(s *jose.Signer, c Config) (string, error) {
	b, err := json.Marshal(map[string]any{
		"iss": c.Issuer, "aud": c.Device, "jti": watchword.NewNonce(), "iat": c.Issued.Unix(), "exp": c.Issued.Add(ConfigLife).Unix(),
		"ver": c.Version, "config": c.Document,
	})
	if err != nil {
		return "", err
	}
	return s.Sign(TypConfig, b)
}

// VerifyConfig checks a configuration for device under the command keys. now is
// zero for a device without a clock. Codes: as [VerifyCommand], but token_expired.
func VerifyConfig(raw string, keys KeySet, issuer string, dev watchword.SubjectID, now time.Time) (Config, error) {
	payload, _, err := open(raw, 2*watchword.MaxDocument, TypConfig, keys)
	if err != nil {
		return Config{}, err
	}
	var c configClaims
	if err := jose.Walk(payload, c.member); err != nil {
		return Config{}, err
	}
	if err := checkIssuer(c.iss, issuer); err != nil {
		return Config{}, err
	}
	if err := checkAudience(c.aud, string(dev)); err != nil {
		return Config{}, err
	}
	if err := checkJTI(c.jti); err != nil {
		return Config{}, err
	}
	if c.ver < 1 || c.config.Kind() != '{' {
		return Config{}, watchword.Refuse(watchword.TokenMalformed, "ver and config are mandatory")
	}
	if now.IsZero() {
		now = c.iat.time()
	}
	if err := c.check(now, ConfigLife, Skew, Skew); err != nil {
		return Config{}, err
	}
	return Config{Issuer: issuer, Device: dev, Version: c.ver, Document: json.RawMessage(c.config), Issued: c.iat.time()}, nil
}
