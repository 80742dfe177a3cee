// Package examples has policies and scripts to be copied. Those that start the agent with the
// machine the program installs itself, by "vifshape enable".
package examples

import _ "embed"

// Unit is vifshape.service, for systemd.
//
//go:embed vifshape.service
var Unit string

// Init is a script for /etc/init.d, for machines without systemd.
//
//go:embed vifshape.init
var Init string

// ComingFrom is coming-from.md. Tests hold its lines against each other.
//
//go:embed coming-from.md
var ComingFrom string

// DaemonSet is kubernetes/daemonset.yaml. Tests hold that what it takes away is not needed.
//
//go:embed kubernetes/daemonset.yaml
var DaemonSet string
