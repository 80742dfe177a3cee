package explain

import (
	"testing"

	"github.com/vifshape/vifshape/tc/tctest"
)

func TestMain(m *testing.M) { tctest.Main(m, nil) }
