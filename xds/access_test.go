package xds_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/xds"
)

func TestDeniedEnvoyGetsNothing(t *testing.T) {
	reasons := map[codes.Code]string{
		codes.PermissionDenied: "permission_denied",
		codes.Unauthenticated:  "unauthenticated",
		codes.InvalidArgument:  "invalid_argument",
	}
	for code, reason := range reasons {
		forBoth(t, func(r *harness) {
			r.source.publish(small().set(t))
			r.authorizer.setAnswer(status.Error(code, "no"))
			e := r.connectWith(fakeenvoy.Options{Token: "sesame"})
			e.Subscribe(cds)
			e.ExpectEnd(code)
			if len(r.source.watchedNodes()) != 0 {
				t.Error("the source was watched for a denied Envoy")
			}
			if got := r.count("usher_xds_denied_streams_total", reason); got != 1 {
				t.Errorf("%v denials counted, want 1", got)
			}
		})
	}
}

func TestAuthorizerFailsWhenTheStreamOpens(t *testing.T) {
	forBoth(t, func(r *harness) {
		r.source.publish(small().set(t))
		r.authorizer.setAnswer(errors.New("connection refused"))
		e := r.connect()
		e.Subscribe(cds)
		e.ExpectEnd(codes.Unavailable)
	})
}

func TestTokenIsRevokedWhileTheStreamIsOpen(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.authorizer.setAnswer(fmt.Errorf("token: %w", status.Error(codes.Unauthenticated, "ACL not found")))
		e.ExpectNone()
		time.Sleep(30 * time.Second) // of the bubble's time
		e.ExpectEnd(codes.Unauthenticated)
	})
}

func TestAuthorizerFailsWhileTheStreamIsOpen(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		time.Sleep(95 * time.Second) // of the bubble's time
		e.ExpectNone()
		if got := len(r.authorizer.calls()); got < 4 || got > 6 {
			t.Errorf("authorized %d times in 95 s, want at the start and at least every 30 s", got)
		}
		r.authorizer.setAnswer(errors.New("connection refused"))
		time.Sleep(30 * time.Second)
		e.ExpectEnd(codes.Unavailable)
	})
}

func TestTokenReachesTheAuthorizerAndNothingElse(t *testing.T) {
	forBoth(t, func(r *harness) {
		r.source.publish(small().set(t))
		e := r.connectWith(fakeenvoy.Options{Token: "sesame"})
		e.Subscribe(cds)
		e.ExpectAck(cds, "web")
		caller := r.authorizer.calls()[0]
		if string(caller.Credential.Token) != "sesame" {
			t.Errorf("the authorizer got %q", string(caller.Credential.Token))
		}
		printed := fmt.Sprintf("%v %+v %#v %s %q", caller, caller, caller.Credential.Token, caller.Credential.Token, caller.Credential.Token) + r.log.String()
		if strings.Contains(printed, "sesame") {
			t.Errorf("the token is printed: %s", printed)
		}
	})
}

func TestFirstRequestWithoutANode(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.connectWith(fakeenvoy.Options{Anonymous: true})
		e.Subscribe(cds)
		e.ExpectEnd(codes.InvalidArgument)
	})
}

func TestNodeIsReadFromTheFirstRequest(t *testing.T) {
	forBoth(t, func(r *harness) {
		metadata, err := structpb.NewStruct(map[string]any{"node_name": "n1", "partition": "default", "number": 1})
		if err != nil {
			t.Fatal(err)
		}
		e := r.connectWith(fakeenvoy.Options{Node: &corev3.Node{
			Id: "gateway-1", Cluster: "gateway", Metadata: metadata, UserAgentName: "envoy",
			UserAgentVersionType: &corev3.Node_UserAgentBuildVersion{UserAgentBuildVersion: &corev3.BuildVersion{
				Version: &typev3.SemanticVersion{MajorNumber: 1, MinorNumber: 36, Patch: 2},
			}},
		}})
		e.Subscribe(cds)
		e.Subscribe(lds)
		e.ExpectNone()
		want := []xds.Node{{
			ID: "gateway-1", Cluster: "gateway", UserAgent: "envoy", Major: 1, Minor: 36, Patch: 2, Stream: 1,
			Metadata: map[string]string{"node_name": "n1", "partition": "default"},
		}}
		if diff := cmp.Diff(want, r.source.watchedNodes(), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Error(diff)
		}
	})
}

func TestSourceEndsTheStream(t *testing.T) {
	for name, c := range map[string]struct {
		err   error
		want  codes.Code
		level string
	}{
		"with a status":   {status.Error(codes.FailedPrecondition, "two gateways"), codes.FailedPrecondition, "WARN"},
		"with an error":   {errors.New("lost"), codes.Unavailable, "WARN"},
		"with nil":        {nil, codes.Unavailable, "WARN"},
		"at its shutdown": {status.Error(codes.Unavailable, "shutting down"), codes.Unavailable, "INFO"},
	} {
		t.Run(name, func(t *testing.T) {
			forBoth(t, func(r *harness) {
				r.source.fail = make(chan error)
				e := r.connect()
				e.Subscribe(cds)
				synctest.Wait()
				r.source.fail <- c.err
				e.ExpectEnd(c.want)
				if want := "level=" + c.level + ` msg="stream ended by its source"`; !strings.Contains(r.log.String(), want) {
					t.Errorf("log is %s, want %s", r.log, want)
				}
			})
		})
	}
}

func TestBearerTokenReachesTheAuthorizerAndNothingElse(t *testing.T) {
	forBoth(t, func(r *harness) {
		r.source.publish(small().set(t))
		e := r.connectWith(fakeenvoy.Options{Bearer: "sesame"})
		e.Subscribe(cds)
		e.ExpectAck(cds, "web")
		caller := r.authorizer.calls()[0]
		if string(caller.Credential.Bearer) != "sesame" || caller.Credential.Token != "" {
			t.Errorf("the authorizer got %q and %q", string(caller.Credential.Bearer), string(caller.Credential.Token))
		}
		r.authorizer.setAnswer(status.Error(codes.Unauthenticated, "no"))
		denied := r.connectWith(fakeenvoy.Options{Bearer: "sesame"})
		denied.Subscribe(cds)
		denied.ExpectEnd(codes.Unauthenticated)
		if !strings.Contains(r.log.String(), `msg="envoy refused" envoy=envoy cluster=gateway release=unknown address="unix socket" count=1 token="a bearer token" error=no`) {
			t.Errorf("the log does not say what the caller had: %s", r.log)
		}
		c := caller.Credential
		text, err := c.Bearer.MarshalText()
		printed := fmt.Sprintf("%v %+v %#v %s %q %v %#v %v %s", caller, caller, c, c, c.Bearer, c.Bearer, c.Bearer, c.Bearer.LogValue(), text) + r.log.String()
		if err != nil || strings.Contains(printed, "sesame") {
			t.Errorf("%v: the token is printed: %s", err, printed)
		}
	})
}

// Nothing of a stream whose credential is not clear reaches the authorizer.
func TestAnAmbiguousCredentialIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		options fakeenvoy.Options
		header  string
		want    string
	}{
		"both":           {fakeenvoy.Options{Token: "a", Bearer: "b"}, "", "both x-consul-token and authorization"},
		"another scheme": {fakeenvoy.Options{}, "Basic c2VzYW1l", `is not "Bearer TOKEN"`},
		"no token":       {fakeenvoy.Options{}, "Bearer ", `is not "Bearer TOKEN"`},
		"no scheme":      {fakeenvoy.Options{}, "c2VzYW1l", `is not "Bearer TOKEN"`},
		"too long":       {fakeenvoy.Options{Bearer: strings.Repeat("t", 4<<10)}, "", "authorization has more than 4096 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			forBoth(t, func(r *harness) {
				c.options.Authorization = c.header
				e := r.connectWith(c.options)
				e.Subscribe(cds)
				if err := e.End(); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), c.want) {
					t.Errorf("ended with %v, want %q", err, c.want)
				}
				r.wantUnasked()
				if strings.Contains(r.log.String(), "c2VzYW1l") {
					t.Errorf("the header is logged: %s", r.log)
				}
			})
		})
	}
}

// The name of the scheme is case-insensitive (RFC 9110).
func TestTheBearerSchemeInAnyCase(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.connectWith(fakeenvoy.Options{Authorization: "bearer sesame"})
		e.Subscribe(cds)
		e.ExpectNone()
		if c := r.authorizer.calls()[0].Credential; string(c.Bearer) != "sesame" {
			t.Errorf("the authorizer got %q", string(c.Bearer))
		}
	})
}

func TestAStreamEndsWhenItsCredentialExpires(t *testing.T) {
	for _, lifetime := range []time.Duration{time.Second, 10 * time.Second, 70 * time.Second} {
		forBoth(t, func(r *harness) {
			r.source.publish(small().set(t))
			begin := time.Now()
			r.authorizer.expiry = begin.Add(lifetime)
			e := r.connectWith(fakeenvoy.Options{Bearer: "sesame"})
			e.Subscribe(cds)
			e.ExpectAck(cds, "web")
			time.Sleep(lifetime - time.Millisecond)
			e.ExpectNone()
			e.ExpectEnd(codes.Unauthenticated)
			if took := time.Since(begin); took != lifetime {
				t.Errorf("it ended after %v, want %v", took, lifetime)
			}
			synctest.Wait()
			if got := r.count("usher_xds_denied_streams_total", "unauthenticated"); got != 0 || strings.Contains(r.log.String(), "level=WARN") {
				t.Errorf("%v denials are counted; the log: %s", got, r.log)
			}
		})
	}
}
