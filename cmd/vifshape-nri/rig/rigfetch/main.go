//go:build linux

// Command rigfetch builds what package rig keeps in its cache, if it is not there, and says where
// it is.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cmd/vifshape-nri/rig"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	dir, err := rig.Fetch(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "rigfetch:", err)
		os.Exit(1)
	}
	fmt.Println(dir)
}
