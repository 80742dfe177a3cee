package shaper

import (
	"context"
	"errors"
	"testing"
)

// TestReadingInterrupted: reading a policy from a terminal can be interrupted.
func TestReadingInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (&Reading{done: make(chan struct{})}).Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
