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
	Iss    string         `json:"iss"`
	Aud    audience       `json:"aud"`
	JTI    string         `json:"jti"`
	IAT    unix           `json:"iat"`
	EXP    unix           `json:"exp"`
	Ver    unix           `json:"ver"`
	Config jsontext.Value `json:"config"`
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
	if err := jose.Decode(payload, &c); err != nil {
		return Config{}, err
	}
	if err := checkIssuer(c.Iss, issuer); err != nil {
		return Config{}, err
	}
	if err := checkAudience(c.Aud, string(dev)); err != nil {
		return Config{}, err
	}
	if c.Ver < 1 || c.Config.Kind() != '{' {
		return Config{}, watchword.Refuse(watchword.TokenMalformed, "ver and config are mandatory")
	}
	if now.IsZero() {
		now = c.IAT.time()
	}
	if err := (window{iat: c.IAT, exp: c.EXP}).check(now, ConfigLife, Skew, Skew); err != nil {
		return Config{}, err
	}
	return Config{Issuer: c.Iss, Device: dev, Version: int64(c.Ver), Document: json.RawMessage(c.Config), Issued: c.IAT.time()}, nil
}
