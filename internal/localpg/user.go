package localpg

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is the operating system's user under which the server runs.
type account struct {
	name     string
	uid, gid uint32
	other    bool // not our own: we are root and have to change to it
}

// serverAccount decides who runs the server. PostgreSQL refuses to be root, so
// root becomes whoever owns the data already, else the first of names there is.
func serverAccount(data string, names []string) (account, error) {
	if os.Geteuid() != 0 {
		return account{name: strconv.Itoa(os.Geteuid()), uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}, nil
	}
	if uid, ok := owner(data); ok && uid != 0 {
		u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
		if err == nil {
			return accountOf(u)
		}
		return account{name: strconv.FormatUint(uint64(uid), 10), uid: uid, gid: uid, other: true}, nil
	}
	for _, name := range names {
		if u, err := user.Lookup(name); err == nil {
			return accountOf(u)
		}
	}
	return account{}, fmt.Errorf("PostgreSQL does not run as root, and no user of %q exists", names)
}

func accountOf(u *user.User) (account, error) {
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return account{}, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return account{}, err
	}
	return account{name: u.Username, uid: uint32(uid), gid: uint32(gid), other: true}, nil
}

// credential is nil when there is nothing to change.
func (a account) credential() *syscall.Credential {
	if !a.other {
		return nil
	}
	return &syscall.Credential{Uid: a.uid, Gid: a.gid}
}

// give makes path the account's own.
func (a account) give(path string) error {
	if !a.other {
		return nil
	}
	return os.Lchown(path, int(a.uid), int(a.gid))
}

// mkdir makes sure that path is a directory which only the account can enter.
// Whoever may write to the parent could have put something else there before
// us, so what exists is looked at and not trusted.
func (a account) mkdir(path string) error {
	err := os.Mkdir(path, 0o700)
	if err == nil {
		return a.give(path)
	}
	if !os.IsExist(err) {
		return err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if uid, _ := ownerOf(info); !info.IsDir() || uid != a.uid || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s must be a directory of user %s with mode 0700", path, a.name)
	}
	return nil
}

// reach reports, as an error that names it, a directory on the way to path
// which the account cannot pass. The owner of a process is not the only thing
// that counts (there are ACLs), but what this finds would fail for certain.
func (a account) reach(path string) error {
	if !a.other {
		return nil
	}
	for dir := path; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		uid, gid := ownerOf(info)
		bit := os.FileMode(0o001)
		switch {
		case uid == a.uid:
			bit = 0o100
		case gid == a.gid:
			bit = 0o010
		}
		if info.Mode().Perm()&bit == 0 {
			return fmt.Errorf("user %s, who has to run the server, cannot pass %s", a.name, dir)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

func owner(path string) (uid uint32, ok bool) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, false
	}
	uid, _ = ownerOf(info)
	return uid, true
}

func ownerOf(info os.FileInfo) (uid, gid uint32) {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Uid, st.Gid
	}
	return 0, 0
}
