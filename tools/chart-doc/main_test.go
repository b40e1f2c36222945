package main

import (
	"testing"
)

func TestTables(t *testing.T) {
	const values = `# The head of the file.

# == Pods ==
#
# What runs.
#
# How many.
replicas: 2

# == Network ==
service:
  # Its type, in <brackets>.
  type: ClusterIP
  # Whom to tell.
  annotations: {a: "b"}
# Two keys that
# belong together.
probe:
  period: 10
  timeout: 5
`
	const want = `
### Pods

What runs.

| key | default | meaning |
|---|---|---|
| ` + "`replicas` | `2`" + ` | How many. |

### Network

| key | default | meaning |
|---|---|---|
| ` + "`service.type` | `\"ClusterIP\"`" + ` | Its type, in <brackets>. |
| ` + "`service.annotations` | `{\"a\":\"b\"}`" + ` | Whom to tell. |
| ` + "`probe` | `{\"period\":10,\"timeout\":5}`" + ` | Two keys that belong together. |
`
	got, err := tables([]byte(values))
	if err != nil || string(got) != want {
		t.Errorf("got %s (%v), want %s", got, err, want)
	}
}

func TestEachKeyNeedsAComment(t *testing.T) {
	for values, want := range map[string]string{
		"a:\n  # Said.\n  b: 1\n  c: 2\n": "line 4: a.c has no comment; add one that says what it does",
		"a: 1\n":                          "line 1: a has no comment; add one that says what it does",
		"[]":                              "the file is not a mapping",
	} {
		if _, err := tables([]byte(values)); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", values, err, want)
		}
	}
}
