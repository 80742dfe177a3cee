package vm

import "testing"

func TestUnwell(t *testing.T) {
	events, err := decode("=== RUN   TestGood\n    a_test.go:1: fine\n--- PASS: TestGood (0.00s)\n" +
		"=== RUN   TestBad\n=== RUN   TestBad/one\n    a_test.go:2: wrong\n    --- FAIL: TestBad/one (0.00s)\n--- FAIL: TestBad (0.00s)\n" +
		"=== RUN   TestNot\n    a_test.go:3: needs x\n--- SKIP: TestNot (0.00s)\n" +
		"=== RUN   TestDies\npanic: so much\n")
	if err != nil {
		t.Fatal(err)
	}
	const want = "=== RUN   TestBad\n=== RUN   TestBad/one\n    a_test.go:2: wrong\n    --- FAIL: TestBad/one (0.00s)\n--- FAIL: TestBad (0.00s)\n" +
		"=== RUN   TestDies\npanic: so much\n"
	if got := unwell(events); got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
}
