package lab_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/vifshape/vifshape/tc/tctest"
)

func TestMain(m *testing.M) {
	tctest.Main(m, tctest.Programs{
		"netns": func([]string) error {
			ns, err := os.Readlink("/proc/self/ns/net")
			fmt.Println(ns)
			return err
		},
	})
}
