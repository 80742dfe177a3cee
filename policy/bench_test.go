package policy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/vifshape/vifshape/policy"
)

// large is a policy of n branches, a hundred below each inner one.
func large(n int) string {
	var b strings.Builder
	b.WriteString("version = 1\n\n[interface.eth0]\nrate = \"100gbit\"\n")
	for i := range n {
		if i%100 == 0 {
			fmt.Fprintf(&b, "\n[interface.eth0.tenant-%d]\nrate = \"500mbit\"\nceil = \"10gbit\"\n", i/100)
			continue
		}
		fmt.Fprintf(&b, "\n[interface.eth0.tenant-%d.vm-%d]\nrate = \"1mbit\"\nceil = \"50%%\"\nprio = %d\nqdisc = \"fq_codel\"\nbind = [\"unit:vm-%d.service\"]\n",
			i/100, i, i%8, i)
	}
	return b.String()
}

// BenchmarkParse10k reads a policy of 10,000 branches. x/decoder is its time over
// that of the TOML decoder alone, taken in turns.
func BenchmarkParse10k(b *testing.B) {
	text := large(10_000)
	kinds := leaves()
	var decoder time.Duration
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := policy.Parse("large.toml", strings.NewReader(text), kinds); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		start := time.Now()
		var v any
		if _, err := toml.Decode(text, &v); err != nil {
			b.Fatal(err)
		}
		decoder += time.Since(start)
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed())/float64(decoder), "x/decoder")
}

// BenchmarkMistakes10k is the worst case of reporting: a mistake in every branch.
func BenchmarkMistakes10k(b *testing.B) {
	text := strings.ReplaceAll(large(10_000), "qdisc = \"fq_codel\"", "qdsc = \"fq_codle\"")
	kinds := leaves()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := policy.Parse("large.toml", strings.NewReader(text), kinds); err == nil {
			b.Fatal("no mistake found")
		}
	}
}
