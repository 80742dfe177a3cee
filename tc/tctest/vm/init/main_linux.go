// Command init is the first process of the machines of package vm, and their
// modprobe. It is of no use outside of one.
package main

import (
	"os"

	"github.com/vifshape/vifshape/tc/tctest/vm/guest"
)

func main() { os.Exit(guest.Main()) }
