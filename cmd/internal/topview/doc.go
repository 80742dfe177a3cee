// Package topview is the screen of top without its terminal: what was looked at and which keys
// were pressed make lines of text of a width and a height. It looks at nothing itself, and
// tells whoever has the terminal what a key asks for.
package topview
