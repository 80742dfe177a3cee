package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRun(t *testing.T) {
	const header = "\n| kernel | cgroups | tests passed | ways of binding | leaf kinds | not run, because |\n|---|---|---|---|---|---|\n"
	const host = `{"Action":"run","Package":"m/cgroup","Test":"TestKernelClasses"}
{"Action":"output","Package":"m/cgroup","Test":"TestKernelClasses","Output":"=== RUN   TestKernelClasses\n"}
{"Action":"pass","Package":"m/cgroup","Test":"TestKernelClasses/bpf"}
{"Action":"pass","Package":"m/cgroup","Test":"TestKernelClasses"}
{"Action":"output","Package":"m/cgroup","Test":"TestTwo","Output":"    x_test.go:7: needs qdisc cake\n"}
{"Action":"skip","Package":"m/cgroup","Test":"TestTwo"}
{"Action":"output","Package":"m/cgroup","Output":"PASS\n"}
{"Action":"output","Package":"m/cgroup","Output":"ok  \tm/cgroup\t1.0s\n"}
{"Action":"pass","Package":"m/cgroup"}
`
	for _, tt := range []struct {
		name, in, guests string
		want             string
		failed           string
		fails            bool
	}{
		{
			name: "host and guest",
			in:   host,
			guests: `{"Action":"pass","Package":"m/tc","Test":"TestKernelKindTraffic/fq_codel","Kernel":"uml 6.1","Cgroup":"v2"}
{"Action":"pass","Package":"m/tc","Test":"TestKernelKindTraffic/fq","Kernel":"uml 6.1","Cgroup":"v2"}
{"Action":"pass","Package":"m/tc","Test":"TestKernelKindTraffic","Kernel":"uml 6.1","Cgroup":"v2","Elapsed":12.4}
{"Action":"pass","Package":"m/tc","Test":"TestKernelKindTraffic/sfq","Kernel":"uml 6.1","Cgroup":"v2","Elapsed":12.3}
{"Action":"pass","Package":"m/tc","Test":"TestKernelLonger","Kernel":"uml 6.1","Cgroup":"v2","Elapsed":60}
{"Action":"pass","Package":"m/tc","Test":"TestKernelShort","Kernel":"uml 6.1","Cgroup":"v2","Elapsed":9}
{"Action":"left out","Test":"^TestKernelDemo$","Output":"too slow","Kernel":"uml 6.1","Cgroup":"v2"}
`,
			want: "ok  \tm/cgroup\t1.0s\n" + header +
				"| this machine's | its own | cgroup 2 | bpf 1 |  | needs qdisc cake: TestTwo |\n" +
				"| uml 6.1 | v2 | tc 6 |  | fq fq_codel sfq | too slow: TestKernelDemo |\n" +
				"\nthe longest:\n   60s  tc TestKernelLonger  uml 6.1 v2\n   12s  tc TestKernelKindTraffic  uml 6.1 v2\n",
		},
		{
			name: "a failure is shown with its subtests",
			in: `{"Action":"output","Package":"m/tc","Test":"TestA/b","Output":"    a_test.go:1: bad\n"}
{"Action":"fail","Package":"m/tc","Test":"TestA/b"}
{"Action":"output","Package":"m/tc","Test":"TestA","Output":"--- FAIL: TestA (0.00s)\n"}
{"Action":"fail","Package":"m/tc","Test":"TestA"}
{"Action":"output","Package":"m/tc","Output":"FAIL\tm/tc\t1.0s\n"}
{"Action":"fail","Package":"m/tc"}
`,
			want: "    a_test.go:1: bad\n--- FAIL: TestA (0.00s)\nFAIL\tm/tc\t1.0s\n" + header +
				"| this machine's | its own | **failed: tc 2** |  |  |  |\n" +
				"\nfailed in tc on this machine's, cgroups its own: TestA/b, TestA\n  TestA/b:\n    a_test.go:1: bad\n",
			failed: "m/tc ^TestA$/^b$\n",
			fails:  true,
		},
		{
			name: "where it failed is repeated, however much it prints after",
			in: `{"Action":"output","Package":"m/tc","Test":"TestA","Output":"    a guest's first row\n"}
{"Action":"output","Package":"m/tc","Test":"TestA","Output":"        a_linux_test.go:1: bad\n"}
` + strings.Repeat(`{"Action":"output","Package":"m/tc","Test":"TestA","Output":"    row\n"}`+"\n", 2*lastWords) +
				`{"Action":"fail","Package":"m/tc","Test":"TestA"}
{"Action":"fail","Package":"m/tc"}
`,
			want: "    a guest's first row\n        a_linux_test.go:1: bad\n" + strings.Repeat("    row\n", 2*lastWords) + header +
				"| this machine's | its own | **failed: tc 1** |  |  |  |\n" +
				"\nfailed in tc on this machine's, cgroups its own: TestA\n  TestA:\n        a_linux_test.go:1: bad\n" + strings.Repeat("    row\n", lastWords),
			failed: "m/tc ^TestA$\n",
			fails:  true,
		},
		{
			name: "a package that dies says of what",
			in: `{"Action":"run","Package":"m/tc","Test":"TestA"}
{"Action":"output","Package":"m/tc","Test":"TestA","Output":"panic: oh\n"}
{"Action":"output","Package":"m/tc/link","Test":"TestA","Output":"another\n"}
{"Action":"output","Package":"m/tc","Output":"FAIL\tm/tc\t1.0s\n"}
{"Action":"fail","Package":"m/tc"}
{"Action":"pass","Package":"m/tc/link","Test":"TestA"}
`,
			want:  "FAIL\tm/tc\t1.0s\npanic: oh\n" + header + "| this machine's | its own | link 1 |  |  |  |\n",
			fails: true,
		},
		{
			name:  "what does not build",
			in:    "go: something\n" + `{"ImportPath":"m/tc","Action":"build-output","Output":"x.go:1: undefined\n"}` + "\n" + `{"ImportPath":"m/tc","Action":"build-fail"}` + "\n" + host,
			want:  "go: something\nx.go:1: undefined\nok  \tm/cgroup\t1.0s\n" + header + "| this machine's | its own | cgroup 2 | bpf 1 |  | needs qdisc cake: TestTwo |\n",
			fails: true,
		},
		{name: "nothing ran", want: header, fails: true},
		{
			name: "where a package dies, too, nothing is run once more",
			in: `{"Action":"fail","Package":"m/tc","Test":"TestVM/^A$_v2/sub/sub"}
{"Action":"fail","Package":"m/tc","Test":"TestVM/^A$_v2/sub"}
{"Action":"fail","Package":"m/tc","Test":"TestVM/^A$_v2"}
{"Action":"fail","Package":"m/tc","Test":"TestVM"}
{"Action":"fail","Package":"m/tc"}
{"Action":"fail","Package":"m/cgroup"}
`,
			want: header + "| this machine's | its own | **failed: tc 4** |  |  |  |\n" +
				"\nfailed in tc on this machine's, cgroups its own: TestVM/^A$_v2/sub/sub, TestVM/^A$_v2/sub, TestVM/^A$_v2, TestVM\n",
			fails: true,
		},
		{
			name: "of subtests of a subtest that is run once more",
			in: `{"Action":"fail","Package":"m/tc","Test":"TestVM/^A$_v2/sub/sub"}
{"Action":"fail","Package":"m/tc","Test":"TestVM/^A$_v2/sub"}
{"Action":"fail","Package":"m/tc","Test":"TestVM/^A$_v2"}
{"Action":"fail","Package":"m/tc","Test":"TestVM"}
{"Action":"fail","Package":"m/tc"}
`,
			want: header + "| this machine's | its own | **failed: tc 4** |  |  |  |\n" +
				"\nfailed in tc on this machine's, cgroups its own: TestVM/^A$_v2/sub/sub, TestVM/^A$_v2/sub, TestVM/^A$_v2, TestVM\n",
			failed: `m/tc ^TestVM$/^\^A\$_v2$` + "\n",
			fails:  true,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "events")
			if tt.guests != "" {
				if err := os.WriteFile(file, []byte(tt.guests), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var out strings.Builder
			ok, failed, err := run(strings.NewReader(tt.in), &out, file)
			if err != nil || ok == tt.fails {
				t.Errorf("%v, %v", ok, err)
			}
			if d := cmp.Diff(tt.want, out.String()); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			if failed != tt.failed {
				t.Errorf("to be run once more: %q, want %q", failed, tt.failed)
			}
		})
	}
}
