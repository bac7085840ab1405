package session

import (
	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
)

// RequireProof refuses a request without proof of the key, where the subject or one of its policies
// has proof = "required". Code: proof_required, with the policy in Rule.
func RequireProof(s *watchword.Subject, today *policy.Grant) error {
	rule, required := today.ProofRequired()
	if s.Proof != watchword.RequireProof && !required {
		return nil
	}
	return &watchword.Error{
		Code: watchword.ProofRequired, Rule: rule,
		Detail: "the subject must prove its key: DPoP over HTTP, Authentication Method ace over MQTT",
	}
}
