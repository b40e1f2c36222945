package gateway

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWhatIsInheritedIsNotAnInstancesOwn(t *testing.T) {
	for name, test := range map[string]struct{ merged, inherited, own string }{
		"nothing":                {`null`, `null`, `null`},
		"nothing inherited":      {`{"a": 1}`, `null`, `{"a": 1}`},
		"all inherited":          {`{"proxy_protocol": {"mode": "off"}}`, `{"proxy_protocol": {"mode": "off"}}`, `null`},
		"another value":          {`{"proxy_protocol": {"mode": "off"}}`, `{"proxy_protocol": {"mode": "strict"}}`, `{"proxy_protocol": {"mode": "off"}}`},
		"one key of two":         {`{"proxy_protocol": {"mode": "off", "upstream": "v1"}}`, `{"proxy_protocol": {"mode": "off", "upstream": "v2"}}`, `{"proxy_protocol": {"upstream": "v1"}}`},
		"a key more":             {`{"proxy_protocol": {"mode": "off", "upstream": "v1"}}`, `{"proxy_protocol": {"mode": "off"}}`, `{"proxy_protocol": {"upstream": "v1"}}`},
		"inherited list of one":  {`{"proxy_protocol": {"mode": "off"}}`, `[{"proxy_protocol": [{"mode": "off"}]}]`, `null`},
		"own list of one":        {`{"proxy_protocol": [{"mode": "off"}]}`, `{"proxy_protocol": {"mode": "strict"}}`, `{"proxy_protocol": {"mode": "off"}}`},
		"equal lists":            {`{"proxy_protocol": {"versions": ["v1", "v2"]}}`, `{"proxy_protocol": {"versions": ["v1", "v2"]}}`, `null`},
		"a list and its element": {`{"proxy_protocol": {"versions": ["v1"]}}`, `{"proxy_protocol": {"versions": "v1"}}`, `null`},
		"another list":           {`{"proxy_protocol": {"versions": ["v1", "v2"]}}`, `{"proxy_protocol": {"versions": ["v1"]}}`, `{"proxy_protocol": {"versions": ["v1", "v2"]}}`},
		"a listener":             {`{"listeners": {"80": {"proxy_protocol": {"mode": "off"}}, "90": {"proxy_protocol": {"mode": "off"}}}}`, `{"listeners": {"80": {"proxy_protocol": {"mode": "off"}}}}`, `{"listeners": {"90": {"proxy_protocol": {"mode": "off"}}}}`},
		"a key of a listener":    {`{"listeners": {"80": {"proxy_protocol": {"mode": "off", "upstream": "v1"}}}}`, `{"listeners": {"80": {"proxy_protocol": {"mode": "off"}}}}`, `{"listeners": {"80": {"proxy_protocol": {"upstream": "v1"}}}}`},
		"a value that is an object": {
			`{"proxy_protocol": {"tlvs": {"type": 234, "name": "own"}}}`, `{"proxy_protocol": {"tlvs": {"type": 234, "name": "x"}}}`,
			`{"proxy_protocol": {"tlvs": {"type": 234, "name": "own"}}}`,
		},
		"inherited, and malformed": {`"strict"`, `"strict"`, `null`},
		"own, and malformed":       {`"strict"`, `{"a": 1}`, `"strict"`},
		"not merged yet":           {`null`, `{"a": 1}`, `null`},
		"another type":             {`{"a": "1"}`, `{"a": 1}`, `{"a": "1"}`},
	} {
		t.Run(name, func(t *testing.T) {
			got := Own(decoded(t, test.merged), decoded(t, test.inherited))
			if diff := cmp.Diff(decoded(t, test.own), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func decoded(t *testing.T, text string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}
