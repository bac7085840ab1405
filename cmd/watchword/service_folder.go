package main

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/cmd/internal/contexts"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/token"
)

// A service's folder has what a client of any language needs to be the service: its key, what the server is called and where it
// is, and the authority that certifies it. Only the user may read it.
const (
	serviceKeyFile   = "key.jwk"
	serviceFileName  = "service.json"
	serviceTrustFile = "trust.jws"
	serviceCAFile    = "ca.pem"
	serviceLockFile  = "LOCK"
)

// serviceFile is service.json.
type serviceFile struct {
	ID            watchword.SubjectID `json:"id"`
	Issuer        string              `json:"issuer"`
	TokenEndpoint string              `json:"token_endpoint"`
	HTTPS         string              `json:"https"`
	MQTTS         string              `json:"mqtts,omitempty"` // host:port
	Key           watchword.KeyID     `json:"key"`             // thumbprint
	Alg           string              `json:"alg"`
	Pin           string              `json:"pin"`
	Link          string              `json:"link"` // digest of the one-time code that the key was enrolled with
}

// serviceFolder is the folder of one service.
type serviceFolder string

func (d serviceFolder) path(name string) string { return filepath.Join(string(d), name) }

// lock makes the folder if it does not exist, and locks it for its writer, without waiting. Code: folder_in_use.
func (d serviceFolder) lock() (*os.File, error) {
	if err := durable.EnsureFolder(string(d), false); err != nil {
		return nil, err
	}
	return durable.Lock(d.path(serviceLockFile))
}

// ensureKey returns the key of the folder, which is locked, and makes it on P-256 if there is none. Codes: key_exposed, file_untrusted; bad_request
// for a file that is no key.
func (d serviceFolder) ensureKey() (*jose.PrivateKey, error) {
	k, err := contexts.ReadKey(d.path(serviceKeyFile))
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if k, err = jose.GenerateKey(jose.P256); err != nil {
		return nil, err
	}
	return k, durable.Create(d.path(serviceKeyFile), append(k.JWK(), '\n'), 0o600)
}

// read returns service.json; [fs.ErrNotExist] before the enrollment.
func (d serviceFolder) read() (f serviceFile, err error) {
	const most = 64 << 10 // bytes
	b, err := durable.ReadTrusted(d.path(serviceFileName), most)
	if err != nil {
		return f, err
	}
	if err := json.Unmarshal(b, &f); err != nil || f.ID == "" || f.HTTPS == "" {
		return f, watchword.Wrap(err, watchword.ConfigInvalid, "%s is damaged: enroll the service again, with a new link and an empty folder", d.path(serviceFileName))
	}
	return f, nil
}

// save stores what the server answered to the enrollment of key. service.json is the last file: with it the folder is whole.
func (d serviceFolder) save(s *admin.Server, r api.EnrollResponse, key *jose.PrivateKey, link string) (serviceFile, error) {
	f := serviceFile{
		ID: r.ID, Issuer: r.Issuer, TokenEndpoint: r.TokenEndpoint, HTTPS: r.HTTPS, MQTTS: r.MQTTS,
		Key: key.Public().ID(), Alg: key.Public().Alg(), Pin: s.Pin, Link: link,
	}
	return d.write(f, s.Bundle)
}

// write stores the trust bundle, the authorities that it names, and service.json, in a folder that is locked. A bundle of after a move of the
// address states where MQTT is.
func (d serviceFolder) write(f serviceFile, bundle string) (serviceFile, error) {
	t, err := token.VerifyTrust(bundle, f.Pin, time.Time{})
	if err != nil {
		return f, err
	}
	if len(t.History) > 0 {
		f.MQTTS = t.MQTTS
	}
	var ca bytes.Buffer
	for _, der := range t.CAs {
		if t.WebPKI { // a client that trusts the own authorities alone would refuse the public certificate
			break
		}
		ca.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	if err := durable.WriteFile(d.path(serviceTrustFile), []byte(bundle), 0o600); err != nil {
		return f, err
	}
	if ca.Len() > 0 {
		err = durable.WriteFile(d.path(serviceCAFile), ca.Bytes(), 0o600)
	} else if err = os.Remove(d.path(serviceCAFile)); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return f, err
	}
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return f, err
	}
	return f, durable.WriteFile(d.path(serviceFileName), append(b, '\n'), 0o600)
}

// client returns a client of the service's server, which follows the trust bundle and stores later ones. warn is called with an
// error of that, which only costs a repetition.
func (d serviceFolder) client(warn func(error)) (*admin.Client, error) {
	f, err := d.read()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, watchword.Wrap(err, watchword.NotFound, "%s has no enrolled service: run watchword service enroll LINK --dir %s first", d, d)
	}
	if err != nil {
		return nil, err
	}
	key, err := contexts.ReadKey(d.path(serviceKeyFile))
	if err != nil {
		return nil, err
	}
	bundle, err := durable.ReadTrusted(d.path(serviceTrustFile), 2*watchword.MaxBundle)
	if err != nil {
		return nil, err
	}
	o := admin.Options{URL: f.HTTPS, Issuer: f.Issuer, Subject: f.ID, Key: key, Bundle: string(bundle), Pin: f.Pin, SaveServer: func(s admin.Server) {
		next := f
		next.Pin = s.Pin
		if s.Issuer != f.Issuer {
			next.Issuer, next.HTTPS, next.TokenEndpoint = s.Issuer, s.URL, s.URL+"/oauth/token"
		}
		if err := d.follow(next, s.Bundle); err != nil && watchword.CodeOf(err) != watchword.FolderInUse { // another process stores it
			warn(err)
		}
	}}
	if info, err := os.Stat(d.path(serviceTrustFile)); err == nil {
		o.BundleAt = info.ModTime()
	}
	return admin.New(o)
}

// follow is write by a process that has not locked the folder.
func (d serviceFolder) follow(f serviceFile, bundle string) error {
	lock, err := d.lock()
	if err != nil {
		return err
	}
	_, err = d.write(f, bundle)
	return errors.Join(err, lock.Close())
}
