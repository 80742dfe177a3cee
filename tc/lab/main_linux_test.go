package lab_test

import (
	"os"
	"testing"

	"github.com/vifshape/vifshape/tc/tctest"
)

func TestMain(m *testing.M) {
	tctest.Main(m, tctest.Verbs{
		"sayNetNS": func(tctest.Told) (string, error) { return os.Readlink("/proc/self/ns/net") },
	})
}
