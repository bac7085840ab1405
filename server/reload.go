package server

import (
	"context"
	"reflect"

	"github.com/watchword-iot/watchword"
)

// reloadableKeys are the keys of the configuration that take effect while the server runs. All others do at the next start.
var reloadableKeys = map[string]bool{"log.level": true, "log.file": true}

// Reloaded returns the configuration with the keys of next that take effect while the server runs, and the names of the keys that
// differ and take effect only at the next start.
func (c Config) Reloaded(next Config) (out Config, atStart []string) {
	out = c
	values := map[string]reflect.Value{}
	_ = eachKey(&next, func(section, key string, v reflect.Value, _ bool) error { // the callback returns no error
		values[section+"."+key] = v
		return nil
	})
	_ = eachKey(&out, func(section, key string, v reflect.Value, _ bool) error {
		name := section + "." + key
		switch to := values[name]; {
		case reflect.DeepEqual(v.Interface(), to.Interface()):
		case reloadableKeys[name]:
			v.Set(to)
		default:
			atStart = append(atStart, name)
		}
		return nil
	})
	return out, atStart
}

// ReloadCertificate reads the files of server.tls_cert and server.tls_key again. On an error the certificate before stays in use.
// The server also looks at both files by itself, when they change. An order by ACME that failed is made again at once. Codes:
// config_invalid, file_untrusted.
func (s *Server) ReloadCertificate() error {
	if s.acme != nil {
		s.acme.Retry()
	}
	if s.certFiles == nil {
		return nil
	}
	err := s.certFiles.reload()
	if err == nil || watchword.CodeOf(err) == watchword.FileUntrusted {
		return err
	}
	return watchword.Wrap(err, watchword.ConfigInvalid, "server.tls_cert and server.tls_key must be a certificate and its key: %s", err)
}

// CheckLiveness returns once the parts through which all work passes have answered: the writer of the store, the MQTT engine and
// the sessions. It does not return while one of them hangs. A full disk is an answer: a restart would not help.
func (s *Server) CheckLiveness(ctx context.Context) {
	_ = s.store.Ping(ctx) // /readyz reports the error
	s.broker.Stats()
	s.guard.Count()
}
