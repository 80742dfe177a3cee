//go:build linux

package rtnl

import (
	"context"
	"errors"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A wait ends with its context, whether that ends before or meanwhile.
func TestMonitorContext(t *testing.T) {
	quiet := func([]netlink.Message) ([]int, error) { return nil, nil }
	for _, tt := range []struct {
		name string
		end  func(cancel func())
	}{
		{"before", func(cancel func()) { cancel() }},
		{"meanwhile", func(cancel func()) { go cancel() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := Listen(Config{}, "watch nothing", quiet, unix.RTNLGRP_LINK)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			ctx, cancel := context.WithCancel(t.Context())
			tt.end(cancel)
			if _, err := m.Receive(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("%v, want %v", err, context.Canceled)
			}
		})
	}
}
