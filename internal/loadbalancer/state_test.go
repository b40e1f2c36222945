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

// start is when every Service of these tests was made.
var start = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func at(minutes float64) time.Time {
	return start.Add(time.Duration(minutes * float64(time.Minute)))
}

// service is a Service that was made at start, with DigitalOcean's annotation:
// set to a value by kubectl at some minute, or, with "", not there.
func service(value string, set float64) *corev1.Service {
	s := balanced(nil)
	s.CreationTimestamp = metav1.NewTime(start)
	s.ManagedFields = []metav1.ManagedFieldsEntry{managed("helm", 0, `{"f:spec": {"f:type": {}}}`)}
	if value != "" {
		s.Annotations = map[string]string{digital: value}
		s.ManagedFields = append(s.ManagedFields, managed("kubectl-annotate", set, fmt.Sprintf(`{"f:metadata": {"f:annotations": {"f:%s": {}}}}`, digital)))
	}
	return s
}

func managed(manager string, minute float64, fields string) metav1.ManagedFieldsEntry {
	t := metav1.NewTime(at(minute))
	return metav1.ManagedFieldsEntry{Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, Time: &t, FieldsV1: metav1.NewFieldsV1(fields)}
}

// rig is a follower whose clock the test moves.
type testReconciler struct {
	*reconciler
	t   *testing.T
	now time.Time
	b   *gateway.Balancer
}

func newTestReconciler(t *testing.T, minute float64) *testReconciler {
	f := &reconciler{
		Options: Options{Grace: 10 * time.Minute, Logger: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry())},
		id:      edge,
	}
	return &testReconciler{reconciler: f, t: t, now: at(minute)}
}

// tell tells the follower what the API server said at some minute, and gives
// when it wants to be woken.
func (r *testReconciler) tell(minute float64, h serviceEvent) time.Duration {
	r.now = at(minute)
	r.observe(h, r.state, serviceState{}, r.now)
	return r.wait(minute)
}

// wait lets the clock come to a minute.
func (r *testReconciler) wait(minute float64) time.Duration {
	r.now = at(minute)
	b, wake := r.publish(r.now)
	if b != nil {
		r.b = b
	}
	return wake
}

func (r *testReconciler) wantMode(want settings.Mode) {
	r.t.Helper()
	if r.b == nil {
		r.t.Fatalf("at %s: nothing is known, want mode %q", r.now.Sub(start), want)
	}
	if got := r.b.ForPort(8080).Mode; got != want {
		r.t.Errorf("at %s: mode %q, want %q", r.now.Sub(start), got, want)
	}
}

// wantShown demands a metric, and a part of the remark.
func (r *testReconciler) wantShown(metric, remark string) {
	r.t.Helper()
	text, err := testutil.CollectAndFormat(r.Metrics.graces, expfmt.TypeTextPlain, "usher_kubernetes_grace_end_timestamp_seconds")
	if err != nil {
		r.t.Fatal(err)
	}
	if !strings.Contains(string(text), metric+"\n") {
		r.t.Errorf("the metrics lack %s:\n%s", metric, text)
	}
	if got := r.Metrics.graces.remark(r.now); !strings.Contains(got, remark) {
		r.t.Errorf("the remark is %q and lacks %q", got, remark)
	}
}

func is(s *corev1.Service) serviceEvent { return serviceEvent{synced: true, service: s} }

func TestAHeaderThatIsSwitchedOnIsWaitedForAndThenDemanded(t *testing.T) {
	r := newTestReconciler(t, 0)
	r.tell(30, is(service("", 0)))
	r.wantMode(settings.Off)
	if wake := r.tell(60, is(service("true", 60))); wake != 10*time.Minute {
		t.Errorf("wakes up after %v, want 10m", wake)
	}
	r.wantMode(settings.Permissive)
	metric := fmt.Sprintf(`usher_kubernetes_grace_end_timestamp_seconds{namespace="consul",port="8080",service="edge"} %.6e`, float64(at(70).Unix()))
	r.wantShown(metric, "listener 8080 behind Service consul/edge: 10m0s more, until 2026-01-01T13:10:00Z")
	if wake := r.wait(69.9); wake.Round(time.Second) != 6*time.Second {
		t.Errorf("wakes up after %v, want 6s", wake)
	}
	r.wantMode(settings.Permissive)
	r.wait(70)
	r.wantMode(settings.Strict)
	if n := testutil.CollectAndCount(r.Metrics.graces); n != 0 {
		t.Errorf("%d series of graces after the end, want none", n)
	}
	if got := r.Metrics.graces.remark(r.now); got != "" {
		t.Errorf("after the end the remark is %q", got)
	}
}

func TestAHeaderThatIsSwitchedOffIsStillWaitedForALittle(t *testing.T) {
	for name, s := range map[string]*corev1.Service{"to false": service("false", 60), "removed": service("", 0)} {
		t.Run(name, func(t *testing.T) {
			r := newTestReconciler(t, 0)
			r.tell(30, is(service("true", 0)))
			r.wantMode(settings.Strict)
			r.tell(60, is(s))
			r.wantMode(settings.Permissive)
			r.tell(65, is(s)) // the API server says the same again
			r.wait(69.9)
			r.wantMode(settings.Permissive)
			r.wait(70)
			r.wantMode(settings.Off)
		})
	}
}

// Whoever begins in the middle finds what those know that saw it all.
func TestARestartedUsherAgrees(t *testing.T) {
	for name, minute := range map[string]float64{"in the grace": 65, "after it": 71} {
		t.Run(name, func(t *testing.T) {
			first, second := newTestReconciler(t, 0), newTestReconciler(t, 0)
			first.tell(30, is(service("", 0)))
			first.tell(60.1, is(service("true", 60)))
			first.wait(minute)
			second.tell(minute, is(service("true", 60)))
			if diff := cmp.Diff(first.b, second.b); diff != "" {
				t.Errorf("first -, restarted +:\n%s", diff)
			}
			first.wait(69.99)
			second.wait(69.99)
			first.wait(70)
			second.wait(70)
			first.wantMode(settings.Strict)
			second.wantMode(settings.Strict)
		})
	}
}

// Both hear of it at times of their own, and what is in the Service is the same.
func TestTwoUshersThatHearOfARemovalAtOtherTimesAgree(t *testing.T) {
	removed := service("", 0)
	removed.ManagedFields[0] = managed("helm", 60, `{"f:spec": {"f:type": {}}}`) // it has changed something else, too
	first, second := newTestReconciler(t, 0), newTestReconciler(t, 0)
	for _, r := range []*testReconciler{first, second} {
		r.tell(30, is(service("true", 0)))
	}
	first.tell(60, is(removed))
	second.tell(64, is(removed))
	for _, r := range []*testReconciler{first, second} {
		r.wait(69.9)
		r.wantMode(settings.Permissive)
		r.wait(70)
		r.wantMode(settings.Off)
	}
}

func TestAServiceThatAlwaysSentHeadersIsStrictAtOnce(t *testing.T) {
	r := newTestReconciler(t, 0)
	r.tell(60, is(service("true", 0)))
	r.wantMode(settings.Strict)
}

func TestAServiceThatNeverSentHeadersIsOffAtOnce(t *testing.T) {
	for _, value := range []string{"", "false"} {
		r := newTestReconciler(t, 0)
		r.tell(1, is(service(value, 1)))
		r.wantMode(settings.Off)
	}
}

func TestUnknownIsNotOff(t *testing.T) {
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, "edge", fmt.Errorf(`User "usher" cannot list resource "services"`))
	bad := service("v2", 61)
	for name, h := range map[string]serviceEvent{
		"refused":               {err: forbidden},
		"gone":                  {synced: true},
		"unreadable value":      is(bad),
		"refused, and answered": {synced: true, service: service("", 0), err: forbidden},
	} {
		t.Run(name, func(t *testing.T) {
			for _, c := range []struct {
				before string
				want   settings.Mode
			}{{"true", settings.Strict}, {"false", settings.Off}} {
				r := newTestReconciler(t, 0)
				r.tell(30, is(service(c.before, 0)))
				r.tell(62, h)
				r.wantMode(c.want)
				if len(r.b.Problems) != 1 {
					t.Errorf("problems %v, want one", r.b.Problems)
				}
				r.wait(600)
				r.wantMode(c.want)
				r.tell(601, is(service(c.before, 0)))
				r.wantMode(c.want)
				if len(r.b.Problems) != 0 {
					t.Errorf("problems %v after it is mended, want none", r.b.Problems)
				}
			}
			cold := newTestReconciler(t, 0)
			cold.tell(62, h)
			cold.wantMode("")
			if len(cold.b.Problems) != 1 {
				t.Errorf("problems %v, want one", cold.b.Problems)
			}
		})
	}
}

// A grace that ends while nobody knows anything stays: what it would end with
// may be wrong by then.
func TestNothingBecomesStricterWhileTheServiceIsUnknown(t *testing.T) {
	r := newTestReconciler(t, 0)
	r.tell(60, is(service("true", 60)))
	r.tell(61, serviceEvent{synced: true, service: service("true", 60), err: fmt.Errorf("down")})
	if n := testutil.ToFloat64(r.Metrics.failing); n != 1 {
		t.Errorf("%v watches fail, want 1", n)
	}
	r.wait(600)
	r.wantMode(settings.Permissive)
	r.tell(601, is(service("true", 60)))
	r.wantMode(settings.Strict)
}

// kubectl owns the annotation and changes a label, which moves its time.
func TestAnotherChangeBeginsNoGrace(t *testing.T) {
	r := newTestReconciler(t, 0)
	r.tell(30, is(service("true", 0)))
	r.tell(60, is(service("true", 60)))
	r.wantMode(settings.Strict)
	r.tell(61, serviceEvent{err: fmt.Errorf("down")})
	r.tell(62, is(service("true", 60)))
	r.wantMode(settings.Strict)
	r.tell(63, serviceEvent{err: fmt.Errorf("down")})
	r.tell(65, is(service("true", 64))) // it may have been false in between
	r.wantMode(settings.Permissive)
}

func TestAnotherVersionOfTheHeaderIsAChange(t *testing.T) {
	first := portState{}.observe(portIntent{state: proxyOn, version: settings.V1, since: at(0)}, at(0), at(0))
	for sends, want := range map[settings.Version]time.Time{settings.V1: at(0), settings.V2: at(60)} {
		if h := first.observe(portIntent{state: proxyOn, version: sends, since: at(60)}, at(60), at(60)); h.changed != want {
			t.Errorf("%s after v1: changed at %s, want %s", sends, h.changed, want)
		}
	}
}

func TestAServiceThatIsMadeAnew(t *testing.T) {
	r := newTestReconciler(t, 0)
	r.tell(30, is(service("true", 0)))
	r.tell(60, serviceEvent{synced: true})
	r.wantMode(settings.Strict)
	again := service("", 0)
	again.CreationTimestamp = metav1.NewTime(at(61))
	r.tell(61, is(again))
	r.wantMode(settings.Permissive)
	r.wait(71)
	r.wantMode(settings.Off)
}

func TestNothingIsSaidBeforeTheFirstAnswer(t *testing.T) {
	r := newTestReconciler(t, 0)
	if r.tell(1, serviceEvent{}); r.b != nil {
		t.Errorf("%v was said", r.b)
	}
}

func TestWhatDoesNotChangeIsSaidOnce(t *testing.T) {
	r := newTestReconciler(t, 0)
	r.tell(30, is(service("true", 0)))
	said := r.b
	other := service("true", 0)
	other.Labels = map[string]string{"app": "edge"}
	if r.tell(31, is(other)); r.b != said {
		t.Error("an equal fact was said again")
	}
}

func TestTheLogSaysWhatAListenerFollows(t *testing.T) {
	var log strings.Builder
	r := newTestReconciler(t, 0)
	r.Logger = slog.New(slog.NewTextHandler(&log, nil))
	r.tell(60, is(service("true", 60)))
	want := `msg="a listener follows its load balancer" service=consul/edge port=8080 mode=permissive until=2026-01-01T13:10:00Z`
	if !strings.Contains(log.String(), want) {
		t.Errorf("the log lacks %s:\n%s", want, log.String())
	}
}

func TestNoGraceIsNone(t *testing.T) {
	r := newTestReconciler(t, 0)
	r.Grace = 0
	r.tell(60, is(service("true", 60)))
	r.wantMode(settings.Strict)
	r.tell(61, is(service("", 0)))
	r.wantMode(settings.Off)
}

func TestTimesOfAService(t *testing.T) {
	key := `{"f:metadata": {"f:annotations": {"f:` + digital + `": {}}}}`
	kind := `{"f:spec": {"f:type": {}}}`
	status := managed("cloud", 50, key)
	status.Subresource = "status"
	for name, c := range map[string]struct {
		entries []metav1.ManagedFieldsEntry
		want    float64
	}{
		"nobody owns it":             {nil, 0},
		"one":                        {[]metav1.ManagedFieldsEntry{managed("a", 5, key)}, 5},
		"two with the same value":    {[]metav1.ManagedFieldsEntry{managed("a", 5, key), managed("b", 9, key)}, 5},
		"the type came later":        {[]metav1.ManagedFieldsEntry{managed("a", 5, key), managed("b", 9, kind)}, 9},
		"somebody else came later":   {[]metav1.ManagedFieldsEntry{managed("a", 5, key), managed("b", 9, `{"f:metadata": {"f:labels": {}}}`)}, 5},
		"the status does not count":  {[]metav1.ManagedFieldsEntry{managed("a", 5, key), status}, 5},
		"an entry that is not JSON":  {[]metav1.ManagedFieldsEntry{managed("a", 5, key), managed("b", 3, "x")}, 5},
		"a field that is no object":  {[]metav1.ManagedFieldsEntry{managed("a", 5, `{"f:metadata": 1}`)}, 0},
		"all annotations and no one": {[]metav1.ManagedFieldsEntry{managed("a", 5, `{"f:metadata": {"f:annotations": {".": {}}}}`)}, 0},
	} {
		s := service("", 0)
		s.Annotations, s.ManagedFields = map[string]string{digital: "true"}, c.entries
		if got := readIntent(s).listeners[8080].since; !got.Equal(at(c.want)) {
			t.Errorf("%s: since %s, want minute %v", name, got.Sub(start), c.want)
		}
	}
}

// mixedService has two ports of one listener, with headers on one of them.
func mixedService() *corev1.Service {
	s := service("", 0)
	s.Annotations = map[string]string{awsPorts: "80"}
	s.Spec.Ports[1].TargetPort = s.Spec.Ports[0].TargetPort
	return s
}

// A listener that gets both takes both, for as long as it does; then whoever has
// sent headers has the grace to stop.
func TestAListenerBehindPortsThatDifferTakesBoth(t *testing.T) {
	r := newTestReconciler(t, 0)
	for _, minute := range []float64{30, 600} {
		if wake := r.tell(minute, is(mixedService())); wake != idle {
			t.Errorf("wakes up after %v, though nothing ends", wake)
		}
		r.wantMode(settings.Permissive)
	}
	none := mixedService()
	none.Annotations = nil
	r.tell(700, is(none))
	r.wantMode(settings.Permissive)
	r.wait(710)
	r.wantMode(settings.Off)

	r.tell(800, is(mixedService()))
	all := mixedService()
	all.Annotations[awsPorts] = "80,443"
	all.ManagedFields = append(all.ManagedFields, managed("kubectl-annotate", 900, `{"f:metadata": {"f:annotations": {"f:`+awsPorts+`": {}}}}`))
	r.tell(900, is(all))
	r.wantMode(settings.Permissive)
	r.wait(910)
	r.wantMode(settings.Strict)
}

func TestWhoKeepsTheClientsAddressesIsTold(t *testing.T) {
	r := newTestReconciler(t, 0)
	for minute, s := range []*corev1.Service{service("true", 0), keepsClients(), service("true", 0)} {
		r.tell(float64(30+minute), is(s))
		if want := minute == 1; r.b.PreservesClientIP != want {
			t.Errorf("%d: the peer is the client: %v, want %v", minute, r.b.PreservesClientIP, want)
		}
	}
}

// The log says what listeners become, and not that nobody knows.
func TestTheLogHasNothingOfWhatNobodyKnows(t *testing.T) {
	var log strings.Builder
	r := newTestReconciler(t, 0)
	r.Logger = slog.New(slog.NewTextHandler(&log, nil))
	r.tell(60, is(service("v2", 60)))
	if log.Len() > 0 {
		t.Errorf("the log has\n%s", log.String())
	}
}

// Nobody is told that a grace ends while it does not.
func TestAGraceThatWaitsForTheAPIServerHasNoEnd(t *testing.T) {
	r := newTestReconciler(t, 0)
	r.tell(60, is(service("true", 60)))
	if wake := r.tell(61, serviceEvent{synced: true, service: service("true", 60), err: fmt.Errorf("down")}); wake != idle {
		t.Errorf("wakes up after %v, though nothing ends", wake)
	}
	if n := len(r.Metrics.graces.list()); n != 0 {
		t.Errorf("%d graces are said to end, want none", n)
	}
}

// Whatever is heard in whatever order, what counts in the end is the last that
// was clear.
func TestModesOverTime(t *testing.T) {
	told := map[string]serviceEvent{
		"on": is(service("true", 0)), "off": is(service("", 0)), "gone": {synced: true},
		"down": {err: fmt.Errorf("down")}, "bad": is(service("v2", 0)),
	}
	for a := range maps.Keys(told) {
		for b := range maps.Keys(told) {
			for c := range maps.Keys(told) {
				r := newTestReconciler(t, 0)
				want := settings.Mode("")
				for i, name := range []string{a, b, c} {
					r.tell(100*float64(i+1), told[name])
					r.wait(100*float64(i+1) + 50)
					switch name {
					case "on":
						want = settings.Strict
					case "off":
						want = settings.Off
					}
				}
				if got := r.b.ForPort(8080).Mode; got != want {
					t.Errorf("%s, %s, %s: mode %q, want %q", a, b, c, got, want)
				}
			}
		}
	}
}

// Oracle's network load balancers go on sending headers when the annotation is
// removed.
func TestARemovalThatTheCloudDoesNotFollow(t *testing.T) {
	const key = "oci-network-load-balancer.oraclecloud.com/is-ppv2-enabled"
	with := func(value string, version int) serviceEvent {
		s := service("", 0)
		if value != "" {
			s.Annotations = map[string]string{key: value}
		}
		return versioned(s, version)
	}
	gone := "Kubernetes Service consul/edge: " + key + `: it is gone, but this cloud leaves the balancer as it was then, which sends PROXY headers; set it to "false" to switch them off`
	r, restarted := newTestReconciler(t, 0), newTestReconciler(t, 0)
	r.noting(30, with("true", 1), "")
	note := r.noting(60, with("", 2), "")
	restarted.noting(65, with("", 2), note)
	for _, r := range []*testReconciler{r, restarted} {
		r.wait(600)
		r.wantMode(settings.Strict)
		if len(r.b.Problems) != 1 || r.b.Problems[0].String() != gone {
			t.Errorf("problems %v, want %s", r.b.Problems, gone)
		}
	}
	r.noting(610, with("false", 3), "")
	r.wantMode(settings.Permissive)
	r.noting(630, with("", 4), "")
	r.wantMode(settings.Off)
	if len(r.b.Problems) != 0 {
		t.Errorf("problems %v after it was switched off", r.b.Problems)
	}
	anew := with("", 5)
	anew.service.CreationTimestamp = metav1.NewTime(at(605))
	restarted.noting(606, anew, "")
	restarted.wantMode(settings.Permissive)
	restarted.wait(620)
	restarted.wantMode(settings.Off)
}
