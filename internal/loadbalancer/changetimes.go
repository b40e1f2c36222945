package loadbalancer

import (
	"encoding/json"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// times are when the parts of a Service were last changed, as its managedFields
// have it
// (https://kubernetes.io/docs/reference/using-api/server-side-apply/#field-management).
// A manager's time moves whenever that manager changes anything, so that each is
// the latest that it can have been: a grace may begin anew, and never too early.
// The API server's clock made them, so that all who read the Service agree.
type changeTimes struct {
	created time.Time
	// newest is when anything but the status was changed; a field that is merely
	// removed leaves no trace.
	modified time.Time
	managed  []managedFields
}

// entry is what one manager owns.
type managedFields struct {
	at     time.Time
	fields map[string]any
}

func changeTimesOf(s *corev1.Service) changeTimes {
	t := changeTimes{created: s.CreationTimestamp.Time, modified: s.CreationTimestamp.Time}
	for _, m := range s.ManagedFields {
		if m.Subresource != "" || m.Time == nil || m.FieldsV1 == nil {
			continue
		}
		e := managedFields{at: m.Time.Time}
		if json.Unmarshal(m.FieldsV1.GetRawBytes(), &e.fields) != nil {
			continue
		}
		t.managed = append(t.managed, e)
		if e.at.After(t.modified) {
			t.modified = e.at
		}
	}
	return t
}

// of gives when annotations, or the type of the Service, became what they are.
func (t changeTimes) of(annotations []string) time.Time {
	latest := t.ownedSince("f:spec", "f:type")
	for _, key := range annotations {
		if at := t.ownedSince("f:metadata", "f:annotations", "f:"+key); at.After(latest) {
			latest = at
		}
	}
	return latest
}

// owned gives when a field became what it is, at the latest. All managers that
// own it agree on its value, so that it is as old as the oldest of them. Where
// nobody owns it, it is as old as the Service.
func (t changeTimes) ownedSince(path ...string) time.Time {
	var oldest time.Time
	for _, e := range t.managed {
		if hasField(e.fields, path) && (oldest.IsZero() || e.at.Before(oldest)) {
			oldest = e.at
		}
	}
	if oldest.IsZero() {
		return t.created
	}
	return oldest
}

func hasField(fields map[string]any, path []string) bool {
	next, there := fields[path[0]]
	if !there || len(path) == 1 {
		return there
	}
	below, _ := next.(map[string]any)
	return hasField(below, path[1:])
}
