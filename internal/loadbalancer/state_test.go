package loadbalancer

import (
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
)

// start is when every Service of these tests was created.
var start = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func at(minutes float64) time.Time {
	return start.Add(time.Duration(minutes * float64(time.Minute)))
}

// service is a Service that was created at start, with DigitalOcean's annotation:
// set to a value by kubectl at some minute, or, with "", not there.
func service(value string, set float64) *corev1.Service {
	s := balanced(nil)
	s.CreationTimestamp = metav1.NewTime(start)
	s.ManagedFields = []metav1.ManagedFieldsEntry{managed("helm", 0, `{"f:spec": {"f:type": {}}}`)}
	if value != "" {
		s.Annotations = map[string]string{digital: value, doPrefix + "type": "REGIONAL"}
		s.ManagedFields = append(s.ManagedFields, managed("kubectl-annotate", set, fmt.Sprintf(`{"f:metadata": {"f:annotations": {"f:%s": {}}}}`, digital)))
	}
	return s
}

func managed(manager string, minute float64, fields string) metav1.ManagedFieldsEntry {
	t := metav1.NewTime(at(minute))
	return metav1.ManagedFieldsEntry{Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, Time: &t, FieldsV1: metav1.NewFieldsV1(fields)}
}

// testReconciler is a reconciler whose clock the test sets.
type testReconciler struct {
	*reconciler
	t    *testing.T
	time time.Time
	last *gateway.Balancer // what was put last
}

func newTestReconciler(t *testing.T) *testReconciler {
	o := Options{Grace: 10 * time.Minute, Logger: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry())}
	return newTestReconcilerWith(t, o, start)
}

// newTestReconcilerWith returns a reconciler that starts at a time.
func newTestReconcilerWith(t *testing.T, o Options, at time.Time) *testReconciler {
	r := &testReconciler{t: t, time: at}
	r.reconciler = newReconciler(o, edge, func(b *gateway.Balancer) { r.last = b }, func() time.Time { return r.time })
	return r
}

// observeAt applies an event at some minute, and returns when the reconciler wants to
// be called again.
func (r *testReconciler) observeAt(minute float64, e serviceEvent) time.Duration {
	return r.observeWith(minute, e, serviceState{})
}

func (r *testReconciler) observeWith(minute float64, e serviceEvent, recorded serviceState) time.Duration {
	r.event = e
	r.state = r.state.afterEvent(recorded, r.readEvent(), at(minute))
	return r.advanceTo(minute)
}

// advanceTo sets the clock to a minute.
func (r *testReconciler) advanceTo(minute float64) time.Duration {
	r.time = at(minute)
	return r.publish(r.time)
}

func (r *testReconciler) wantMode(want settings.Mode) {
	r.t.Helper()
	if r.last == nil {
		r.t.Fatalf("at %s: nothing is known, want mode %q", r.time.Sub(start), want)
	}
	if got := r.last.ForPort(8080).Mode; got != want {
		r.t.Errorf("at %s: mode %q, want %q", r.time.Sub(start), got, want)
	}
}

// wantGracePeriod checks for a metric, and a part of the warning.
func (r *testReconciler) wantGracePeriod(metric, warning string) {
	r.t.Helper()
	text, err := testutil.CollectAndFormat(r.Metrics.graceEnd, expfmt.TypeTextPlain, "usher_kubernetes_grace_end_timestamp_seconds")
	if err != nil {
		r.t.Fatal(err)
	}
	if !strings.Contains(string(text), metric+"\n") {
		r.t.Errorf("the metrics lack %s:\n%s", metric, text)
	}
	if got := r.Metrics.warning(r.time); !strings.Contains(got, warning) {
		r.t.Errorf("the warning is %q and lacks %q", got, warning)
	}
}

func serviceIs(s *corev1.Service) serviceEvent { return serviceEvent{service: s} }

func TestListenerIsPermissiveForAGracePeriodAfterHeadersAreSwitchedOn(t *testing.T) {
	r := newTestReconciler(t)
	r.observeAt(30, serviceIs(service("", 0)))
	r.wantMode(settings.Off)
	if wake := r.observeAt(60, serviceIs(service("true", 60))); wake != 10*time.Minute {
		t.Errorf("wakes up after %v, want 10m", wake)
	}
	r.wantMode(settings.Permissive)
	metric := fmt.Sprintf(`usher_kubernetes_grace_end_timestamp_seconds{kubernetes_namespace="consul",kubernetes_service="edge",port="8080"} %.6e`, float64(at(70).Unix()))
	r.wantGracePeriod(metric, "Service consul/edge, listener 8080: grace period until 13:10Z (10m0s left); connections")
	if end := r.last.ForPort(8080).GraceEnd; !end.Equal(at(70)) {
		t.Errorf("the mode lasts until %v, want until %v", end, at(70))
	}
	if wake := r.advanceTo(69.9); wake.Round(time.Second) != 6*time.Second {
		t.Errorf("wakes up after %v, want 6s", wake)
	}
	r.wantMode(settings.Permissive)
	r.advanceTo(70)
	r.wantMode(settings.Strict)
	if end := r.last.ForPort(8080).GraceEnd; !end.IsZero() {
		t.Errorf("after the grace period it ends at %v", end)
	}
	if n := testutil.CollectAndCount(r.Metrics.graceEnd); n != 0 {
		t.Errorf("%d series after the end of the grace period, want none", n)
	}
	if got := r.Metrics.warning(r.time); got != "" {
		t.Errorf("after the end the warning is %q", got)
	}
}

func TestListenerIsPermissiveForAGracePeriodAfterHeadersAreSwitchedOff(t *testing.T) {
	for name, s := range map[string]*corev1.Service{"to false": service("false", 60), "removed": service("", 0)} {
		t.Run(name, func(t *testing.T) {
			r := newTestReconciler(t)
			r.observeAt(30, serviceIs(service("true", 0)))
			r.wantMode(settings.Strict)
			r.observeAt(60, serviceIs(s))
			r.wantMode(settings.Permissive)
			r.observeAt(65, serviceIs(s)) // the same event again
			r.advanceTo(69.9)
			r.wantMode(settings.Permissive)
			r.advanceTo(70)
			r.wantMode(settings.Off)
		})
	}
}

// An Usher that starts in the middle agrees with one that saw every event.
func TestRestartedUsherAgrees(t *testing.T) {
	for name, minute := range map[string]float64{"in the grace period": 65, "after it": 71} {
		t.Run(name, func(t *testing.T) {
			first, second := newTestReconciler(t), newTestReconciler(t)
			first.observeAt(30, serviceIs(service("", 0)))
			first.observeAt(60.1, serviceIs(service("true", 60)))
			first.advanceTo(minute)
			second.observeAt(minute, serviceIs(service("true", 60)))
			if diff := cmp.Diff(first.last, second.last); diff != "" {
				t.Errorf("first -, restarted +:\n%s", diff)
			}
			first.advanceTo(69.99)
			second.advanceTo(69.99)
			first.advanceTo(70)
			second.advanceTo(70)
			first.wantMode(settings.Strict)
			second.wantMode(settings.Strict)
		})
	}
}

// Both observe it at different times, but the times in the Service are the same.
func TestUshersThatObserveARemovalAtDifferentTimesAgree(t *testing.T) {
	removed := service("", 0)
	removed.ManagedFields[0] = managed("helm", 60, `{"f:spec": {"f:type": {}}}`) // it has changed something else, too
	first, second := newTestReconciler(t), newTestReconciler(t)
	for _, r := range []*testReconciler{first, second} {
		r.observeAt(30, serviceIs(service("true", 0)))
	}
	first.observeAt(60, serviceIs(removed))
	second.observeAt(64, serviceIs(removed))
	for _, r := range []*testReconciler{first, second} {
		r.advanceTo(69.9)
		r.wantMode(settings.Permissive)
		r.advanceTo(70)
		r.wantMode(settings.Off)
	}
}

func TestListenerIsStrictAtOnceIfHeadersWereAlwaysOn(t *testing.T) {
	r := newTestReconciler(t)
	r.observeAt(60, serviceIs(service("true", 0)))
	r.wantMode(settings.Strict)
}

func TestListenerIsOffAtOnceIfHeadersWereNeverOn(t *testing.T) {
	for _, value := range []string{"", "false"} {
		r := newTestReconciler(t)
		r.observeAt(1, serviceIs(service(value, 1)))
		r.wantMode(settings.Off)
	}
}

func TestUnknownIsNotOff(t *testing.T) {
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, "edge", fmt.Errorf(`User "usher" cannot list resource "services"`))
	bad := service("v2", 61)
	for name, h := range map[string]serviceEvent{
		"refused":               {err: forbidden},
		"deleted":               {},
		"invalid value":         serviceIs(bad),
		"refused, and answered": {service: service("", 0), err: forbidden},
	} {
		t.Run(name, func(t *testing.T) {
			for _, c := range []struct {
				before string
				want   settings.Mode
			}{{"true", settings.Strict}, {"false", settings.Off}} {
				r := newTestReconciler(t)
				r.observeAt(30, serviceIs(service(c.before, 0)))
				r.observeAt(62, h)
				r.wantMode(c.want)
				if len(r.last.Problems) != 1 {
					t.Errorf("problems %v, want one", r.last.Problems)
				}
				r.advanceTo(600)
				r.wantMode(c.want)
				r.observeAt(601, serviceIs(service(c.before, 0)))
				r.wantMode(c.want)
				if len(r.last.Problems) != 0 {
					t.Errorf("problems %v after it is corrected, want none", r.last.Problems)
				}
			}
			cold := newTestReconciler(t)
			cold.observeAt(62, h)
			cold.wantMode("")
			if len(cold.last.Problems) != 1 {
				t.Errorf("problems %v, want one", cold.last.Problems)
			}
		})
	}
}

// A grace period does not end while the intent is unknown: the mode after it may be
// wrong by then.
func TestGracePeriodDoesNotEndWhileTheIntentIsUnknown(t *testing.T) {
	r := newTestReconciler(t)
	r.observeAt(60, serviceIs(service("true", 60)))
	r.observeAt(61, serviceEvent{service: service("true", 60), err: fmt.Errorf("down")})
	if n := testutil.ToFloat64(r.Metrics.failing); n != 1 {
		t.Errorf("%v watches fail, want 1", n)
	}
	r.advanceTo(600)
	r.wantMode(settings.Permissive)
	r.observeAt(601, serviceIs(service("true", 60)))
	r.wantMode(settings.Strict)
}

// kubectl owns the annotation and changes a label, which moves its time.
func TestUnrelatedChangeStartsNoGracePeriod(t *testing.T) {
	r := newTestReconciler(t)
	r.observeAt(30, serviceIs(service("true", 0)))
	r.observeAt(60, serviceIs(service("true", 60)))
	r.wantMode(settings.Strict)
	r.observeAt(61, serviceEvent{err: fmt.Errorf("down")})
	r.observeAt(62, serviceIs(service("true", 60)))
	r.wantMode(settings.Strict)
	r.observeAt(63, serviceEvent{err: fmt.Errorf("down")})
	r.observeAt(65, serviceIs(service("true", 64))) // it may have been false in between
	r.wantMode(settings.Permissive)
}

func TestAnotherHeaderVersionIsAChange(t *testing.T) {
	first := listenerState{}.afterIntent(portIntent{State: proxyOn, Version: v1, since: at(0)}, at(0), at(0))
	for version, want := range map[settings.Version]time.Time{v1: at(0), v2: at(60)} {
		p := first.afterIntent(portIntent{State: proxyOn, Version: version, since: at(60)}, at(60), at(60))
		if p.Changed != want {
			t.Errorf("%s after v1: changed at %s, want %s", version, p.Changed, want)
		}
	}
}

func TestServiceIsRecreated(t *testing.T) {
	r := newTestReconciler(t)
	r.observeAt(30, serviceIs(service("true", 0)))
	r.observeAt(60, serviceEvent{})
	r.wantMode(settings.Strict)
	again := service("", 0)
	again.CreationTimestamp = metav1.NewTime(at(61))
	r.observeAt(61, serviceIs(again))
	r.wantMode(settings.Permissive)
	r.advanceTo(71)
	r.wantMode(settings.Off)
}

func TestEqualBalancerIsPublishedOnce(t *testing.T) {
	r := newTestReconciler(t)
	r.observeAt(30, serviceIs(service("true", 0)))
	published := r.last
	other := service("true", 0)
	other.Labels = map[string]string{"app": "edge"}
	if r.observeAt(31, serviceIs(other)); r.last != published {
		t.Error("an equal balancer was published again")
	}
}

func TestLogHasEachModeChange(t *testing.T) {
	var log strings.Builder
	r := newTestReconciler(t)
	r.Logger = slog.New(slog.NewTextHandler(&log, nil))
	r.observeAt(60, serviceIs(service("true", 60)))
	want := `msg="listener mode changed to match the load balancer" service=consul/edge port=8080 mode=permissive until=2026-01-01T13:10:00Z`
	if !strings.Contains(log.String(), want) {
		t.Errorf("the log lacks %s:\n%s", want, log.String())
	}
}

func TestGracePeriodOfZero(t *testing.T) {
	r := newTestReconciler(t)
	r.Grace = 0
	r.observeAt(60, serviceIs(service("true", 60)))
	r.wantMode(settings.Strict)
	r.observeAt(61, serviceIs(service("", 0)))
	r.wantMode(settings.Off)
}

func TestIntentIsAsOldAsItsOldestManager(t *testing.T) {
	key := `{"f:metadata": {"f:annotations": {"f:` + digital + `": {}}}}`
	serviceType := `{"f:spec": {"f:type": {}}}`
	status := managed("cloud", 50, key)
	status.Subresource = "status"
	for name, c := range map[string]struct {
		entries []metav1.ManagedFieldsEntry
		want    float64
	}{
		"no manager":                 {nil, 0},
		"one":                        {[]metav1.ManagedFieldsEntry{managed("a", 5, key)}, 5},
		"two with the same value":    {[]metav1.ManagedFieldsEntry{managed("a", 5, key), managed("b", 9, key)}, 5},
		"the type came later":        {[]metav1.ManagedFieldsEntry{managed("a", 5, key), managed("b", 9, serviceType)}, 9},
		"an unrelated manager later": {[]metav1.ManagedFieldsEntry{managed("a", 5, key), managed("b", 9, `{"f:metadata": {"f:labels": {}}}`)}, 5},
		"the status does not count":  {[]metav1.ManagedFieldsEntry{managed("a", 5, key), status}, 5},
		"an entry that is not JSON":  {[]metav1.ManagedFieldsEntry{managed("a", 5, key), managed("b", 3, "x")}, 5},
		"a field that is no object":  {[]metav1.ManagedFieldsEntry{managed("a", 5, `{"f:metadata": 1}`)}, 0},
		"no single annotation":       {[]metav1.ManagedFieldsEntry{managed("a", 5, `{"f:metadata": {"f:annotations": {".": {}}}}`)}, 0},
	} {
		s := service("", 0)
		s.Annotations, s.ManagedFields = withValue(digital, "true").Annotations, c.entries
		if got := readIntent(s).ports[8080].since; !got.Equal(at(c.want)) {
			t.Errorf("%s: since %s, want minute %v", name, got.Sub(start), c.want)
		}
	}
}

// mixedService has two ports of one listener, with headers on one of them.
func mixedService() *corev1.Service {
	s := service("", 0)
	s.Annotations, s.Spec.LoadBalancerClass = map[string]string{awsPorts: "80"}, new(awsClass)
	s.Spec.Ports[1].TargetPort = s.Spec.Ports[0].TargetPort
	return s
}

// A listener behind ports that disagree is permissive for as long as they do, and then
// for a grace period.
func TestListenerBehindPortsThatDisagreeIsPermissive(t *testing.T) {
	r := newTestReconciler(t)
	for _, minute := range []float64{30, 600} {
		if wake := r.observeAt(minute, serviceIs(mixedService())); wake != idle {
			t.Errorf("wakes up after %v, though nothing ends", wake)
		}
		r.wantMode(settings.Permissive)
	}
	none := mixedService()
	none.Annotations = nil
	r.observeAt(700, serviceIs(none))
	r.wantMode(settings.Permissive)
	r.advanceTo(710)
	r.wantMode(settings.Off)

	r.observeAt(800, serviceIs(mixedService()))
	all := mixedService()
	all.Annotations[awsPorts] = "80,443"
	all.ManagedFields = append(all.ManagedFields, managed("kubectl-annotate", 900, `{"f:metadata": {"f:annotations": {"f:`+awsPorts+`": {}}}}`))
	r.observeAt(900, serviceIs(all))
	r.wantMode(settings.Permissive)
	r.advanceTo(910)
	r.wantMode(settings.Strict)
}

// An annotation that was there before is honoured because another one is gone, whose removal has left no time.
func TestAnnotationThatIsHonouredFromNowOnStartsAGracePeriod(t *testing.T) {
	const forwardedFor = "loadbalancer.openstack.org/x-forwarded-for"
	for name, c := range map[string]struct {
		annotation, other, before, after string
		was                              settings.Mode
	}{
		"ignored before":     {digital, doPrefix + "type", "REGIONAL_NETWORK", "REGIONAL", settings.Off},
		"unclear before":     {openstack, forwardedFor, "true", "", ""},
		"not decided before": {digital, doPrefix + "type", "", "REGIONAL", ""},
	} {
		t.Run(name, func(t *testing.T) {
			revision := func(value string) serviceEvent {
				s := service("", 0)
				s.Annotations = map[string]string{c.annotation: "true"}
				if value != "" {
					s.Annotations[c.other] = value
				}
				s.ManagedFields = append(s.ManagedFields, owns("helm", -60, c.annotation))
				return serviceIs(s)
			}
			r := newTestReconciler(t)
			r.observeAt(30, revision(c.before))
			r.wantMode(c.was)
			r.observeAt(60, revision(c.after))
			r.wantMode(settings.Permissive)
			r.advanceTo(70)
			r.wantMode(settings.Strict)
		})
	}
}

// An annotation that stays is not honoured any more.
func TestAnnotationThatIsIgnoredFromNowOnStartsAGracePeriod(t *testing.T) {
	r := newTestReconciler(t)
	r.observeAt(30, serviceIs(service("true", -60)))
	r.wantMode(settings.Strict)
	ignored := service("true", -60)
	ignored.Annotations[doPrefix+"type"] = "REGIONAL_NETWORK"
	ignored.ManagedFields = append(ignored.ManagedFields, owns("kubectl-annotate", 60, doPrefix+"type"))
	r.observeAt(60, serviceIs(ignored))
	r.wantMode(settings.Permissive)
	r.advanceTo(70)
	r.wantMode(settings.Off)
}

// The controller in Kubernetes may have set the attribute, and then leaves it set.
func TestRemovalOfAnUnclearAnnotationIsUnclear(t *testing.T) {
	nlb := func(attributes string) serviceEvent {
		s := service("", 0)
		s.Annotations = map[string]string{awsType: "nlb"}
		if attributes != "" {
			s.Annotations[awsAttributes] = attributes
		}
		return serviceIs(s)
	}
	r := newTestReconciler(t)
	r.observeAt(1, nlb(""))
	r.wantMode(settings.Off)
	r.observeAt(2, nlb(awsPPV2+"=true"))
	r.observeAt(3, nlb(""))
	r.wantMode(settings.Off)
	if len(r.last.Problems) != 1 || !strings.Contains(r.last.Problems[0].What, `set it to "proxy_protocol_v2.enabled=false"`) {
		t.Errorf("problems %v, want one about the removal", r.last.Problems)
	}
	r.observeAt(4, nlb(awsPPV2+"=false"))
	if len(r.last.Problems) != 0 {
		t.Errorf("problems %v after it was switched off", r.last.Problems)
	}
	fresh := newTestReconciler(t)
	fresh.observeAt(2, nlb(awsPPV2+"=true"))
	fresh.observeAt(3, nlb(""))
	fresh.wantMode("")
}

func TestBalancerPreservesClientIP(t *testing.T) {
	r := newTestReconciler(t)
	for minute, s := range []*corev1.Service{service("true", 0), preservesClients(), service("true", 0)} {
		r.observeAt(float64(30+minute), serviceIs(s))
		if want := minute == 1; r.last.PreservesClientIP != want {
			t.Errorf("%d: preserves client IP: %v, want %v", minute, r.last.PreservesClientIP, want)
		}
	}
}

// The log has mode changes only.
func TestLogHasNothingAboutUnknownModes(t *testing.T) {
	var log strings.Builder
	r := newTestReconciler(t)
	r.Logger = slog.New(slog.NewTextHandler(&log, nil))
	r.observeAt(60, serviceIs(service("v2", 60)))
	if log.Len() > 0 {
		t.Errorf("the log has\n%s", log.String())
	}
}

// A grace period that does not end has no end in the metrics.
func TestGracePeriodHasNoEndWhileTheIntentIsUnknown(t *testing.T) {
	r := newTestReconciler(t)
	r.observeAt(60, serviceIs(service("true", 60)))
	if wake := r.observeAt(61, serviceEvent{service: service("true", 60), err: fmt.Errorf("down")}); wake != idle {
		t.Errorf("wakes up after %v, though nothing ends", wake)
	}
	if n := len(gracePeriods(r.Options)[edge]); n != 0 {
		t.Errorf("%d grace periods have an end, want none", n)
	}
}

// After any sequence of events, the last intent that was known counts.
func TestModesOverTime(t *testing.T) {
	events := map[string]serviceEvent{
		"on": serviceIs(service("true", 0)), "off": serviceIs(service("", 0)), "gone": {},
		"down": {err: fmt.Errorf("down")}, "bad": serviceIs(service("v2", 0)),
	}
	for a := range maps.Keys(events) {
		for b := range maps.Keys(events) {
			for c := range maps.Keys(events) {
				r := newTestReconciler(t)
				want := settings.Mode("")
				for i, name := range []string{a, b, c} {
					r.observeAt(100*float64(i+1), events[name])
					r.advanceTo(100*float64(i+1) + 50)
					switch name {
					case "on":
						want = settings.Strict
					case "off":
						want = settings.Off
					}
				}
				if got := r.last.ForPort(8080).Mode; got != want {
					t.Errorf("%s, %s, %s: mode %q, want %q", a, b, c, got, want)
				}
			}
		}
	}
}

// Oracle's network load balancers keep sending headers when the annotation is removed.
func TestRemovalThatTheCloudDoesNotFollow(t *testing.T) {
	const key = "oci-network-load-balancer.oraclecloud.com/is-ppv2-enabled"
	with := func(value string, version int) serviceEvent {
		s := service("", 0)
		if value != "" {
			s.Annotations = withValue(key, value).Annotations
		}
		return versioned(s, version)
	}
	removed := "Kubernetes Service consul/edge: " + key + `: the annotation was removed, which does not stop this cloud's load balancer from sending PROXY headers; set it to "false"`
	r, restarted := newTestReconciler(t), newTestReconciler(t)
	r.observeRecorded(30, with("true", 1), "")
	recorded := r.observeRecorded(60, with("", 2), "")
	restarted.observeRecorded(65, with("", 2), recorded)
	for _, r := range []*testReconciler{r, restarted} {
		r.advanceTo(600)
		r.wantMode(settings.Strict)
		if len(r.last.Problems) != 1 || r.last.Problems[0].String() != removed {
			t.Errorf("problems %v, want %s", r.last.Problems, removed)
		}
	}
	r.observeRecorded(610, with("false", 3), "")
	r.wantMode(settings.Permissive)
	r.observeRecorded(630, with("", 4), "")
	r.wantMode(settings.Off)
	if len(r.last.Problems) != 0 {
		t.Errorf("problems %v after it was switched off", r.last.Problems)
	}
	recreated := with("", 5)
	recreated.service.CreationTimestamp = metav1.NewTime(at(605))
	restarted.observeRecorded(606, recreated, "")
	restarted.wantMode(settings.Permissive)
	restarted.advanceTo(620)
	restarted.wantMode(settings.Off)
}
