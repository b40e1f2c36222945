//go:build kubernetes

package cluster

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// WaitRolledOut waits until a Deployment has only ready pods of its template, and
// nothing is left of others. It returns the pods.
func (c *Cluster) WaitRolledOut(t *testing.T, namespace, deployment string) []*Pod {
	t.Helper()
	var selector string
	testprocess.Eventually(t, "the Deployment "+deployment+" is rolled out", RolloutDeadline, func() error {
		d, err := c.API.AppsV1().Deployments(namespace).Get(t.Context(), deployment, metav1.GetOptions{})
		if err != nil {
			return err
		}
		selector = metav1.FormatLabelSelector(d.Spec.Selector)
		if err := errors.Join(rolledOut(d), c.podsAre(t, namespace, selector, *d.Spec.Replicas)); err != nil {
			return err
		}
		selector += "," + hashLabel + "=" + templateHash(d.Spec.Template)
		return nil
	})
	c.logf("the Deployment %s is rolled out", deployment)
	return c.Pods(t, namespace, selector)
}

func rolledOut(d *appsv1.Deployment) error {
	wanted, is := *d.Spec.Replicas, d.Status
	if is.ObservedGeneration < d.Generation || is.UpdatedReplicas != wanted || is.Replicas != wanted || is.AvailableReplicas != wanted {
		return fmt.Errorf("%d pods, %d of the template, %d ready; want %d", is.Replicas, is.UpdatedReplicas, is.AvailableReplicas, wanted)
	}
	return nil
}

// podsAre wants a number of pods, those included that still end. A pod that has
// failed is a permanent error: no longer wait changes that.
func (c *Cluster) podsAre(t *testing.T, namespace, selector string, wanted int32) error {
	t.Helper()
	pods, err := c.API.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return err
	}
	if len(pods.Items) != int(wanted) {
		err = fmt.Errorf("there are %d pods, want %d", len(pods.Items), wanted)
	}
	for _, p := range pods.Items {
		if p.Status.Phase == corev1.PodFailed && p.DeletionTimestamp == nil {
			return testprocess.Permanent(fmt.Errorf("the pod %s failed: %s", p.Name, p.Status.Message))
		}
		if p.Status.Message != "" {
			err = errors.Join(err, fmt.Errorf("the pod %s: %s", p.Name, p.Status.Message))
		}
	}
	return err
}

// Name is the pod's name.
func (p *Pod) Name() string { return p.name() }

// Log is what a container of the pod has printed so far.
func (p *Pod) Log(t *testing.T, container string) string {
	t.Helper()
	return testprocess.ReadFile(t, p.logFile(container))
}

func (p *Pod) logFile(container string) string {
	return filepath.Join(p.cluster.dir, "logs", p.name()+"_"+container)
}

// WaitLog waits until a container of the pod has printed the text.
func (p *Pod) WaitLog(t *testing.T, container, text string) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("%s of %s prints %q", container, p.name(), text), testprocess.ChangeDeadline, func() error {
		if !strings.Contains(p.Log(t, container), text) {
			return errors.New("not yet")
		}
		return nil
	})
}

// AccessLog is the JSON access log among what a container prints.
func (p *Pod) AccessLog(container string) *lab.AccessLog {
	return &lab.AccessLog{Process: &testprocess.Process{Name: p.name(), Stdout: p.logFile(container)}}
}
