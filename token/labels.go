package token

import (
	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// Labels parses the labels of the dev claim from raw, the token of which a is the result: for callers without a registry.
// The result is nil if there are none. Code: token_malformed.
func (a *Access) Labels(raw string) (watchword.Labels, error) {
	u, err := jose.ParseJWS(raw, watchword.MaxToken)
	if err != nil {
		return nil, err
	}
	var labels watchword.Labels
	err = jose.Walk(u.UnverifiedPayload(), walkMember("dev", walkMember("labels", func(name string, v jsontext.Value) error {
		value, err := jose.String(v)
		if err != nil {
			return err
		}
		if labels == nil {
			labels = watchword.Labels{}
		}
		labels[name] = value
		return nil
	})))
	if err == nil && watchword.CheckLabels(labels) != nil {
		err = refuse(watchword.TokenMalformed, "dev.labels must be an object of strings")
	}
	return labels, err
}

// walkMember returns a function for [jose.Walk] that walks the one member called name.
func walkMember(name string, f func(string, jsontext.Value) error) func(string, jsontext.Value) error {
	return func(got string, v jsontext.Value) error {
		if got != name {
			return nil
		}
		return jose.Walk(v, f)
	}
}
