//go:build tools

// Names the program that is built, for `go mod tidy`.
package tools

import _ "github.com/summerwind/h2spec/cmd/h2spec"
