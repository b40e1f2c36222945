package loadbalancer

import (
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// owns is what a manager that set one annotation left.
func owns(manager string, minute float64, key string) metav1.ManagedFieldsEntry {
	return managed(manager, minute, fmt.Sprintf(`{"f:metadata": {"f:annotations": {"f:%s": {}}}}`, key))
}

// What a listener follows is as old as the newest of all that it follows from.
func TestTimesOfSeveralAnnotations(t *testing.T) {
	type entries = []metav1.ManagedFieldsEntry
	filter := stackit + "-ports-filter"
	for name, c := range map[string]struct {
		annotations map[string]string
		entries
		want float64
	}{
		"the second cloud's came later": {map[string]string{digital: "true", openstack: "true"}, entries{owns("a", 5, digital), owns("b", 9, openstack)}, 9},
		"the first cloud's came later":  {map[string]string{digital: "true", openstack: "true"}, entries{owns("a", 9, digital), owns("b", 5, openstack)}, 9},
		"the list of ports came later":  {map[string]string{stackit: "true", filter: "80"}, entries{owns("a", 5, stackit), owns("b", 9, filter)}, 9},
		"the status is not the Service": {map[string]string{digital: "true"}, entries{inStatus(owns("cloud", 9, digital))}, 0},
	} {
		s := service("", 0)
		s.Annotations, s.ManagedFields = c.annotations, c.entries
		if got := readIntent(s).listeners[8080].since; !got.Equal(at(c.want)) {
			t.Errorf("%s: since minute %v, want %v", name, got.Sub(start).Minutes(), c.want)
		}
	}
}

func TestWhenAServiceWasLastChanged(t *testing.T) {
	type entries = []metav1.ManagedFieldsEntry
	for name, c := range map[string]struct {
		entries
		want float64
	}{
		"when it was made":      {nil, 0},
		"by the last":           {entries{owns("a", 5, digital), owns("b", 9, ovh)}, 9},
		"in whatever order":     {entries{owns("b", 9, ovh), owns("a", 5, digital)}, 9},
		"not by the cloud's":    {entries{owns("a", 5, digital), inStatus(owns("cloud", 9, ovh))}, 5},
		"not before it is made": {entries{owns("a", -5, digital)}, 0},
	} {
		s := service("", 0)
		s.ManagedFields = c.entries
		if got := readIntent(s).modified; !got.Equal(at(c.want)) {
			t.Errorf("%s: minute %v, want %v", name, got.Sub(start).Minutes(), c.want)
		}
	}
}

// inStatus makes it an entry of the status, which clouds write.
func inStatus(e metav1.ManagedFieldsEntry) metav1.ManagedFieldsEntry {
	e.Subresource = "status"
	return e
}
