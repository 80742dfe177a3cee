// Package way says what a way of binding is: a [Classifier], which gives packets their
// class, and a [Store] of what is bound, by which it goes. Those that there are have
// packages of their own; which goes with which is chosen by package cgroup.
//
// They are for one interface and not for concurrent use. Linux only.
package way
