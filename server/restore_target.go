package server

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/server/backup"
	"github.com/watchword-iot/watchword/server/keyring"
)

// restoreTarget is the paths to which a restore writes. The data folder comes into being by one rename, the last step: until then a
// process that is killed leaves only the others, and after it everything is there.
type restoreTarget struct {
	data   string       // absolute
	tmp    string       // the folder in which all is made
	config string       // for the configuration in the backup
	plan   string       // for the bundle that an offline root must sign
	owner  *folderOwner // of the empty folder that is replaced; nil: there is none
}

// newRestoreTarget checks the paths and makes the temporary folder. plan may be empty: it is beside the data folder then. Code:
// conflict.
func newRestoreTarget(data, plan string) (t restoreTarget, err error) {
	if t.data, err = filepath.Abs(data); err != nil { // also without a slash at the end
		return t, watchword.Wrap(err, watchword.Conflict, "%s must be the path of a folder", data)
	}
	if info, err := os.Lstat(t.data); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		if t.data, err = filepath.EvalSymlinks(t.data); err != nil {
			return t, watchword.Wrap(err, watchword.Conflict, "%s is a symbolic link to nothing", data)
		}
	}
	t.tmp, t.config, t.plan = t.data+".tmp", t.data+".config", plan
	if t.plan == "" {
		t.plan = t.data + ".plan.json"
	}
	switch es, err := os.ReadDir(t.data); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return t, watchword.Wrap(err, watchword.Conflict, "%s cannot be read as a folder", t.data)
	case len(es) > 0:
		return t, watchword.Refuse(watchword.Conflict, "%s is not empty: a backup is restored only to a new folder", t.data)
	default:
		info, err := os.Stat(t.data)
		if err != nil {
			return t, watchword.Wrap(err, watchword.Conflict, "%s cannot be read as a folder", t.data)
		}
		owner := ownerOf(info)
		t.owner = &owner
	}
	if _, err := os.Lstat(t.tmp); err == nil {
		return t, watchword.Refuse(watchword.Conflict, "%s exists: another restore to %s runs, or one was killed. If none runs, remove it, and %s and %s if they are there: the killed one left nothing else", t.tmp, t.data, t.config, t.plan)
	}
	if _, err := os.Lstat(t.config); err == nil {
		return t, watchword.Refuse(watchword.Conflict, "%s exists, and the configuration in the backup goes there: move it away, or name another --data", t.config)
	}
	if _, err := os.Lstat(t.plan); !errors.Is(err, fs.ErrNotExist) {
		return t, watchword.Wrap(err, watchword.Conflict, "%s exists, or cannot be examined, and a trust bundle for an offline root would go there: move it away, or name another --plan", t.plan)
	}
	if t.owner != nil { // it is replaced at the end, which the system refuses for the mount point of a disk
		err := os.Rename(t.data, t.tmp)
		if err == nil {
			err = os.Rename(t.tmp, t.data)
		}
		if err != nil {
			return t, watchword.Wrap(err, watchword.Conflict, "%s cannot be replaced by another folder, as the mount point of a disk cannot: name a folder in it, which does not exist yet", t.data)
		}
	}
	if err := os.Mkdir(t.tmp, 0o700); err != nil {
		return t, watchword.Wrap(err, watchword.Unavailable, "%s cannot be made", t.tmp)
	}
	if t.owner != nil {
		if err := t.owner.check(t.tmp); err != nil {
			return t, errors.Join(watchword.Wrap(err, watchword.Conflict, "%s belongs to another user or group, to whom this user cannot give files: run the restore as root or as that user, or remove the folder", t.data), os.Remove(t.tmp))
		}
	}
	return t, nil
}

// finish moves what was restored to its place. If it fails, nothing is there. Code: conflict.
func (t restoreTarget) finish(p *keyring.PlannedBundle) (config, plan string, err error) {
	defer func() {
		for _, path := range []string{config, plan} {
			if err != nil && path != "" {
				err = errors.Join(err, os.RemoveAll(path))
			}
		}
	}()
	if err := os.Rename(filepath.Join(t.tmp, "config"), t.config); err == nil {
		config = t.config
	} else if !errors.Is(err, fs.ErrNotExist) {
		return config, plan, watchword.Wrap(err, watchword.Conflict, "the configuration in the backup cannot be moved to %s", t.config)
	}
	if p != nil {
		if err := writePlan(t.plan, p); err != nil {
			return config, plan, watchword.Wrap(err, watchword.Conflict, "the plan for the offline root cannot be written to %s", t.plan)
		}
		plan = t.plan
	}
	if t.owner != nil {
		if err := t.owner.take(filepath.Join(t.tmp, backup.DataFolder)); err != nil {
			return config, plan, watchword.Wrap(err, watchword.Conflict, "the restored folder cannot be given to the owner of %s", t.data)
		}
	}
	if err := os.Remove(t.data); err != nil && !errors.Is(err, fs.ErrNotExist) { // it was empty: Rename replaces no folder
		return config, plan, watchword.Wrap(err, watchword.Conflict, "%s is not empty any more", t.data)
	}
	if err := os.Rename(filepath.Join(t.tmp, backup.DataFolder), t.data); err != nil {
		return config, plan, watchword.Wrap(err, watchword.Conflict, "the restored folder cannot be moved to %s", t.data)
	}
	return config, plan, nil
}

// writePlan writes the bundle for an offline root as a plan of watchword key plan.
func writePlan(path string, p *keyring.PlannedBundle) error {
	b, err := json.MarshalIndent(api.PlannedBundles{Bundles: []api.PlannedBundle{{
		Epoch: p.Epoch, Version: p.Version, StartsAt: p.Starts.UTC(), ExpiresAt: p.Expires.UTC(), Roots: p.Roots, Payload: p.Payload,
	}}}, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteStream(path, false, func(w io.Writer) error { // another process may have made it meanwhile
		_, err := w.Write(b)
		return err
	})
}
