//go:build kubernetes

package kubernetes

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// injectorBinding gives the control plane under chart 1.1.18 the rights that its chart would give it
// chart.
const injectorBinding = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: newer-connect-injector
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: newer-connect-injector
subjects:
  - kind: ServiceAccount
    name: ` + prefix + `-connect-injector
    namespace: ` + namespace + `
`

// addNewerKinds brings what the control plane of 1.9.11 needs and chart 1.1.18
// lacks, as the control plane of 1.1.18 cannot be had: the kinds that were added
// since, and the right to read them.
func (r *consulRelease) addNewerKinds(t *testing.T) {
	t.Helper()
	newer := chartDirectory(t, chartNow)
	args := []string{
		"template", "newer", newer, "--namespace", namespace, "--kube-version", "1.34.0", "--set", "global.name=newer",
		"--show-only", "templates/connect-inject-clusterrole.yaml",
	}
	kinds, err := filepath.Glob(filepath.Join(newer, "templates", "crd-*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range kinds {
		if r.chartHas(t, filepath.Base(file)) {
			continue
		}
		args = append(args, "--show-only", "templates/"+filepath.Base(file))
	}
	r.Apply(t, namespace, r.Helm(t, "", args...))
	r.Apply(t, namespace, injectorBinding)
}

// chartHas reports whether the chart has the template of another chart, where its
// name may say the version of what it defines.
func (r *consulRelease) chartHas(t *testing.T, template string) bool {
	t.Helper()
	_, err := os.Stat(filepath.Join(r.chart, "templates", strings.Replace(template, "-v1.yaml", ".yaml", 1)))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}
