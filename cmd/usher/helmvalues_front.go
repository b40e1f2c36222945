package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/usherproxy/usher/internal/consulchart"
)

// usherRelease is where the objects of a release of Usher's chart are. The Deployment and the Service have one name.
type usherRelease struct{ namespace, name string }

func (u usherRelease) String() string { return u.namespace + "/" + u.name }

// host returns the name by which pods find the Service.
func (u usherRelease) host() string { return u.name + "." + u.namespace + ".svc" }

// front is what the cluster has for pods that connect to Usher by flags of consul-dataplane.
type front struct {
	usher      usherRelease
	port       consulchart.FrontPort
	admissions []admissionObject // nil if they cannot be read
	unread     []string          // what cannot be read, as notices
}

// admissionObject is a policy or webhook of Usher's chart, and the pods that it is for.
type admissionObject struct {
	consulchart.Admission
	namespaces, pods labels.Selector
}

// of returns what there is for the pods of a gateway.
func (f *front) of(namespace string, podLabels map[string]string) consulchart.Front {
	of := consulchart.Front{Host: f.usher.host(), Usher: f.usher.String(), Port: f.port}
	if f.admissions != nil {
		of.Admissions = []consulchart.Admission{}
	}
	for _, a := range f.admissions {
		in := labels.Set{corev1.LabelMetadataName: namespace}
		a.Selects = a.namespaces.Matches(in) && a.pods.Matches(labels.Set(podLabels))
		of.Admissions = append(of.Admissions, a.Admission)
	}
	return of
}

// readFront reads what the cluster has. Not everybody who may read a gateway's pods may read that.
func (c *checker) readFront(ctx context.Context) (*front, error) {
	f := &front{usher: c.target.usher}
	args, found, err := c.usherArgs(ctx, f.usher)
	switch {
	case apierrors.IsForbidden(err):
		f.unread = append(f.unread, fmt.Sprintf("whether Usher has a port for consul-dataplanes was not checked: %v", err))
	case err != nil:
		return nil, err
	case !found:
		f.port = consulchart.NoUsher
	case slices.ContainsFunc(args, func(arg string) bool { return strings.HasPrefix(arg, "--dataplane-addr=") }):
		f.port = consulchart.PortOpen
	default:
		f.port = consulchart.PortClosed
	}
	f.admissions, err = c.admissions(ctx)
	if apierrors.IsForbidden(err) {
		f.unread = append(f.unread, fmt.Sprintf("which flags new pods of the gateways get by admission was not checked: %v", err))
		err = nil
	}
	return f, err
}

// usherArgs returns the arguments of an Usher.
func (c *checker) usherArgs(ctx context.Context, u usherRelease) (args []string, found bool, err error) {
	var d appsv1.Deployment
	err = c.get(ctx, "/apis/apps/v1/namespaces/"+u.namespace+"/deployments/"+u.name, "", &d)
	if apierrors.IsNotFound(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("deployment %s: %w", u, err)
	}
	for _, container := range d.Spec.Template.Spec.Containers {
		args = append(args, container.Args...)
	}
	return args, true, nil
}

const (
	admissionPath = "/apis/admissionregistration.k8s.io/"
	// usherLabels select the objects of Usher's chart.
	usherLabels = "app.kubernetes.io/name=usher"
)

// admissions returns the policies and webhooks of all releases of Usher's chart.
func (c *checker) admissions(ctx context.Context) ([]admissionObject, error) {
	found := []admissionObject{}
	var webhooks admissionregistrationv1.MutatingWebhookConfigurationList
	if err := c.get(ctx, admissionPath+"v1/mutatingwebhookconfigurations", usherLabels, &webhooks); err != nil {
		return nil, fmt.Errorf("webhooks: %w", err)
	}
	for _, configuration := range webhooks.Items {
		for _, w := range configuration.Webhooks {
			a, err := c.webhookAdmission(ctx, configuration.Name, w)
			if err != nil {
				return nil, err
			}
			found = append(found, a)
		}
	}
	policies, err := c.policyAdmissions(ctx)
	return append(found, policies...), err
}

// webhookAdmission returns a webhook with the change that its Usher makes.
func (c *checker) webhookAdmission(ctx context.Context, name string, w admissionregistrationv1.MutatingWebhook) (admissionObject, error) {
	a := admissionObject{Admission: consulchart.Admission{Object: "MutatingWebhookConfiguration " + name}}
	if err := a.setSelectors(w.NamespaceSelector, w.ObjectSelector); err != nil || w.ClientConfig.Service == nil {
		return a, err
	}
	u := usherRelease{w.ClientConfig.Service.Namespace, w.ClientConfig.Service.Name}
	args, _, err := c.usherArgs(ctx, u)
	for _, arg := range args {
		if change, is := strings.CutPrefix(arg, "--webhook-arg="); is {
			a.Args = append(a.Args, change)
		}
	}
	if len(w.ClientConfig.CABundle) == 0 {
		a.Ineffective = "it has no caBundle, so Kubernetes creates no pods of the gateway; " +
			"with xds.tls.mode=cert-manager, look at the log of cert-manager's cainjector"
	}
	return a, err
}

// policyList is a list of MutatingAdmissionPolicies or their bindings: what the versions v1 and v1beta1 have in common.
type policyList struct {
	Items []struct {
		Metadata metav1.ObjectMeta
		Spec     struct {
			PolicyName       string // of a binding
			MatchConstraints struct{ NamespaceSelector, ObjectSelector *metav1.LabelSelector }
			Variables        []struct{ Name, Expression string }
		}
	}
}

// policies returns the policies and their bindings in the version that the cluster serves; none if it serves neither.
func (c *checker) policies(ctx context.Context) (policies, bindings policyList, err error) {
	for _, version := range []string{"v1", "v1beta1"} {
		if err = c.get(ctx, admissionPath+version+"/mutatingadmissionpolicies", usherLabels, &policies); err == nil {
			err = c.get(ctx, admissionPath+version+"/mutatingadmissionpolicybindings", usherLabels, &bindings)
		}
		if !apierrors.IsNotFound(err) {
			break
		}
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return policies, bindings, fmt.Errorf("policies: %w", err)
	}
	return policies, bindings, nil
}

// policyAdmissions returns the policies with the change that they make.
func (c *checker) policyAdmissions(ctx context.Context) ([]admissionObject, error) {
	policies, bindings, err := c.policies(ctx)
	if err != nil {
		return nil, err
	}
	bound := map[string]bool{}
	for _, b := range bindings.Items {
		bound[b.Spec.PolicyName] = true
	}
	var found []admissionObject
	for _, p := range policies.Items {
		a := admissionObject{Admission: consulchart.Admission{Object: "MutatingAdmissionPolicy " + p.Metadata.Name}}
		if err := a.setSelectors(p.Spec.MatchConstraints.NamespaceSelector, p.Spec.MatchConstraints.ObjectSelector); err != nil {
			return nil, err
		}
		for _, v := range p.Spec.Variables {
			if v.Name == "args" {
				_ = json.Unmarshal([]byte(v.Expression), &a.Args) // the chart writes a list of texts
			}
		}
		if !bound[p.Metadata.Name] {
			a.Ineffective = "it has no MutatingAdmissionPolicyBinding; run helm upgrade of Usher's chart"
		}
		found = append(found, a)
	}
	return found, nil
}

// setSelectors sets the pods that it is for. Without a selector, these are all.
func (a *admissionObject) setSelectors(namespaces, pods *metav1.LabelSelector) (err error) {
	selector := func(s *metav1.LabelSelector) (labels.Selector, error) {
		if s == nil {
			return labels.Everything(), nil
		}
		return metav1.LabelSelectorAsSelector(s)
	}
	if a.namespaces, err = selector(namespaces); err == nil {
		a.pods, err = selector(pods)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", a.Object, err)
	}
	return nil
}
