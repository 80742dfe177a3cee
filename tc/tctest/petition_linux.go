package tctest

import (
	"errors"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Petition is a verb that passes standard input on to a socket, and prints what comes
// back: petition SOCKET.
func Petition(x Told) (string, error) {
	c, err := net.Dial("unix", x.Args[0])
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := io.Copy(c, os.Stdin); err != nil && !errors.Is(err, unix.EPIPE) { // it may have answered already
		return "", err
	}
	_, err = io.Copy(os.Stdout, c)
	return "", err
}
