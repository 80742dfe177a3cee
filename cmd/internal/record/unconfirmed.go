package record

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Unconfirmed is an apply from which its interfaces go back to what they were, unless
// somebody confirms it in time. There is one at a time.
type Unconfirmed struct {
	Before map[string]uint32 `json:"before"` // the number of each interface's record before it
	Began  time.Duration     `json:"began"`  // since the machine was started: no two began at once
	Policy string            `json:"policy"`
	By     string            `json:"by"`
	At     time.Time         `json:"at"`   // when it goes back, as people read it
	Boot   time.Duration     `json:"boot"` // the same since the machine was started: clocks are set
}

// After sets the time when it goes back.
func (u *Unconfirmed) After(d time.Duration) {
	u.At, u.Boot = time.Now().Add(d).Truncate(time.Second), SinceBoot()+d
}

// Left is how much of the time is left, nothing or less when it is over.
func (u *Unconfirmed) Left() time.Duration { return u.Boot - SinceBoot() }

// ID tells it apart from all others since the machine was started.
func (u *Unconfirmed) ID() string { return strconv.FormatInt(int64(u.Began), 36) }

// Names are the interfaces, in order.
func (u *Unconfirmed) Names() string {
	return strings.Join(slices.Sorted(maps.Keys(u.Before)), ", ")
}

// SinceBoot also counts the time that the machine was suspended for.
func SinceBoot() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) // it cannot fail
	return time.Duration(t.Nano())
}

func (s *Store) unconfirmedFile() string { return filepath.Join(s.Dir, "unconfirmed") }

// Unconfirmed is the apply that waits to be confirmed; nil: none does.
func (s *Store) Unconfirmed() (*Unconfirmed, error) {
	u := new(Unconfirmed)
	if there, err := s.value(s.unconfirmedFile(), u); !there {
		return nil, err
	}
	return u, nil
}

// SetUnconfirmed saves the apply that waits, or forgets it where none does any more: it is
// nil, or has no interface. The caller holds the lock of writers.
func (s *Store) SetUnconfirmed(u *Unconfirmed) error {
	if u == nil || len(u.Before) == 0 {
		return UnlessGone(os.Remove(s.unconfirmedFile()))
	}
	_, err := s.write(s.unconfirmedFile(), u)
	return s.room(err)
}

// renameUnconfirmed has an interface wait under the name that its record has now.
func (s *Store) renameUnconfirmed(was, iface string) error {
	u, err := s.Unconfirmed()
	if err != nil || u == nil {
		return err
	}
	serial, ok := u.Before[was]
	if !ok {
		return nil
	}
	delete(u.Before, was)
	u.Before[iface] = serial
	return s.SetUnconfirmed(u)
}
