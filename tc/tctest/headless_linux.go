package tctest

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Headless is for processes of [Command]: it calls f in a process whose first thread, by
// whose number it is known, has ended, and ends the process with it.
func Headless(f func() error) error {
	end := make(chan error)
	var next func()
	// Each goroutine keeps a thread, until one has got the first.
	next = func() {
		runtime.LockOSThread()
		if unix.Gettid() != os.Getpid() {
			go next()
			select {}
		}
		go func() {
			err := waitDead()
			if err == nil {
				err = f()
			}
			end <- err
		}()
		_, _, err := unix.Syscall(unix.SYS_EXIT, 0, 0, 0) // of the thread
		end <- fmt.Errorf("end the first thread: %w", err)
	}
	go next()
	return <-end
}

// waitDead waits until the first thread has ended.
func waitDead() error {
	for {
		b, err := os.ReadFile("/proc/self/stat")
		if err != nil {
			return err
		}
		if i := strings.LastIndex(string(b), ") Z "); i >= 0 {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
}
