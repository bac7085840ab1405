//go:build unix

package server

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// folderOwner is the owner, group and permissions of a folder.
type folderOwner struct {
	uid, gid int
	mode     fs.FileMode
}

func ownerOf(info fs.FileInfo) folderOwner {
	o := folderOwner{-1, -1, info.Mode().Perm()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		o.uid, o.gid = int(st.Uid), int(st.Gid)
	}
	return o
}

// check returns an error if this user cannot give files to the owner. dir is an empty folder of this user, and is as before afterwards.
func (o folderOwner) check(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	now := ownerOf(info)
	if err := os.Chown(dir, o.uid, o.gid); err != nil {
		return err
	}
	return os.Chown(dir, now.uid, now.gid)
}

// take gives dir and all in it to the owner, and dir its permissions.
func (o folderOwner) take(dir string) error {
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, o.uid, o.gid)
	})
	if err != nil {
		return err
	}
	return os.Chmod(dir, o.mode)
}
