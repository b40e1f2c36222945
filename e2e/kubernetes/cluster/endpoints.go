//go:build kubernetes

package cluster

import (
	"context"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// reconcileEndpoints writes, for each Service with a selector, the addresses of
// its pods: as Endpoints, which Consul's controllers read, and as an
// EndpointSlice, which the API server reads to call webhooks.
func (c *Cluster) reconcileEndpoints(ctx context.Context) error {
	services, err := c.API.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	pods, err := c.API.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, service := range services.Items {
		if len(service.Spec.Selector) == 0 {
			continue
		}
		selected := selectedBy(service, pods.Items)
		if err := c.writeEndpoints(ctx, service, selected); err != nil {
			return err
		}
		if err := c.writeEndpointSlice(ctx, service, selected); err != nil {
			return err
		}
	}
	return nil
}

// selectedBy are the pods of a Service that have an address and have not ended.
func selectedBy(service corev1.Service, pods []corev1.Pod) []corev1.Pod {
	selector := labels.SelectorFromSet(service.Spec.Selector)
	var selected []corev1.Pod
	for _, p := range pods {
		ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
		if p.Namespace == service.Namespace && p.Status.PodIP != "" && !ended && selector.Matches(labels.Set(p.Labels)) {
			selected = append(selected, p)
		}
	}
	return selected
}

// writeEndpoints leaves out pods that are being deleted, at once: load balancers
// send them nothing new while they still run.
func (c *Cluster) writeEndpoints(ctx context.Context, service corev1.Service, pods []corev1.Pod) error {
	//nolint:staticcheck // Consul's controllers read Endpoints, deprecated or not
	wanted := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{
		Name: service.Name, Namespace: service.Namespace, Labels: service.Labels,
	}}
	for _, p := range pods {
		if p.DeletionTimestamp != nil {
			continue
		}
		subset := corev1.EndpointSubset{} //nolint:staticcheck // the same
		for _, port := range service.Spec.Ports {
			if number := targetPort(port, p); number != 0 {
				subset.Ports = append(subset.Ports, corev1.EndpointPort{Name: port.Name, Port: number, Protocol: port.Protocol})
			}
		}
		address := corev1.EndpointAddress{IP: p.Status.PodIP, NodeName: &p.Spec.NodeName, TargetRef: podReference(p)}
		if ready(&p) || service.Spec.PublishNotReadyAddresses {
			subset.Addresses = []corev1.EndpointAddress{address}
		} else {
			subset.NotReadyAddresses = []corev1.EndpointAddress{address}
		}
		wanted.Subsets = append(wanted.Subsets, subset)
	}
	endpoints := c.API.CoreV1().Endpoints(service.Namespace)
	has, err := endpoints.Get(ctx, service.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = endpoints.Create(ctx, wanted, metav1.CreateOptions{})
		return err
	}
	if err != nil || reflect.DeepEqual(has.Subsets, wanted.Subsets) {
		return err
	}
	has.Subsets = wanted.Subsets
	_, err = endpoints.Update(ctx, has, metav1.UpdateOptions{})
	return err
}

func (c *Cluster) writeEndpointSlice(ctx context.Context, service corev1.Service, pods []corev1.Pod) error {
	wanted := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: service.Name + "-0", Namespace: service.Namespace,
			Labels: map[string]string{
				discoveryv1.LabelServiceName: service.Name, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io",
			},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(&service, corev1.SchemeGroupVersion.WithKind("Service"))},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for _, p := range pods {
		terminating := p.DeletionTimestamp != nil
		serving := ready(&p) || service.Spec.PublishNotReadyAddresses
		is := serving && !terminating
		wanted.Endpoints = append(wanted.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{p.Status.PodIP}, NodeName: &p.Spec.NodeName, TargetRef: podReference(p),
			Conditions: discoveryv1.EndpointConditions{Ready: &is, Serving: &serving, Terminating: &terminating},
		})
	}
	if len(pods) > 0 {
		for _, port := range service.Spec.Ports {
			if number := targetPort(port, pods[0]); number != 0 {
				wanted.Ports = append(wanted.Ports, discoveryv1.EndpointPort{Name: &port.Name, Port: &number, Protocol: &port.Protocol})
			}
		}
	}
	slices := c.API.DiscoveryV1().EndpointSlices(service.Namespace)
	has, err := slices.Get(ctx, wanted.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = slices.Create(ctx, wanted, metav1.CreateOptions{})
		return err
	}
	if err != nil || reflect.DeepEqual(has.Endpoints, wanted.Endpoints) && reflect.DeepEqual(has.Ports, wanted.Ports) {
		return err
	}
	has.Endpoints, has.Ports = wanted.Endpoints, wanted.Ports
	_, err = slices.Update(ctx, has, metav1.UpdateOptions{})
	return err
}

func podReference(p corev1.Pod) *corev1.ObjectReference {
	return &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID}
}

// targetPort is the number of a Service's port at a pod, where it may have a name.
// 0: the pod has no port of that name.
func targetPort(port corev1.ServicePort, p corev1.Pod) int32 {
	if port.TargetPort.Type == intstr.Int {
		return port.TargetPort.IntVal
	}
	for _, c := range p.Spec.Containers {
		for _, known := range c.Ports {
			if known.Name == port.TargetPort.StrVal {
				return known.ContainerPort
			}
		}
	}
	return 0
}
