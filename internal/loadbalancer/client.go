package loadbalancer

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/usherproxy/usher/internal/guard"
)

// ErrNotInCluster says that Usher runs outside Kubernetes, and was not told of
// any.
var ErrNotInCluster = errors.New("not in a cluster")

// A panic in a goroutine of client-go must not end the process. It ends only that
// goroutine and its request, and client-go sends the request again.
func init() {
	log := utilruntime.PanicHandlers
	utilruntime.ReallyCrash = false
	utilruntime.PanicHandlers = []func(context.Context, any){func(ctx context.Context, cause any) {
		guard.Panics.WithLabelValues("kubernetes").Inc()
		for _, handler := range log {
			handler(klog.NewContext(ctx, klog.Background()), cause) // the logger in ctx discards everything
		}
	}}
}

// Connect gives the client of the API server that the file kubeconfig names, or,
// without one, that of the cluster that Usher runs in. It connects to nothing
// yet. The error is ErrNotInCluster where there is none.
func Connect(kubeconfig string) (rest.Interface, error) {
	config, err := configOf(kubeconfig)
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	// Of each Service, a few questions are asked at the beginning; the rest is up to
	// the API server's own fairness.
	config.QPS, config.Burst = 50, 100
	config.APIPath = "/api"
	config.GroupVersion = &corev1.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.UserAgent = "usher"
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	return client, nil
}

func configOf(kubeconfig string) (*rest.Config, error) {
	if kubeconfig != "" {
		config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
		}
		return config, nil
	}
	config, err := rest.InClusterConfig()
	if errors.Is(err, rest.ErrNotInCluster) {
		return nil, ErrNotInCluster
	}
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	return config, nil
}
