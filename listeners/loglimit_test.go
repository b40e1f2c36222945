package listeners

import (
	"regexp"
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
)

var bucketName = regexp.MustCompile(`"resourceName": ?"([^"]+)"`)

// An Envoy waits for ever for a bucket that a listener names.
func TestEveryBucketThatAListenerNamesIsThereAndNoOther(t *testing.T) {
	all := 0
	eachCompiled(t, func(t *testing.T, c compiled) {
		var named []string
		for l := range c.resources.Listeners.Values() {
			text, err := protojson.Marshal(l)
			if err != nil {
				t.Fatal(err)
			}
			for _, match := range bucketName.FindAllStringSubmatch(string(text), -1) {
				named = append(named, match[1])
			}
		}
		slices.Sort(named)
		named = slices.Compact(named)
		if there := slices.Collect(c.resources.TokenBuckets.Keys()); !slices.Equal(named, there) {
			t.Errorf("listeners name the buckets %q, and there are %q", named, there)
		}
		all += len(named)
	})
	if all == 0 {
		t.Error("no case has a bucket")
	}
}
