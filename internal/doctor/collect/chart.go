package collect

import (
	"context"
	"encoding/json"
	"errors"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/client-go/rest"

	"github.com/usherproxy/usher/internal/consulchart"
	"github.com/usherproxy/usher/internal/doctor"
)

// chart returns the consul-k8s that runs in the cluster.
func chart(ctx context.Context, client rest.Interface) (*doctor.Chart, error) {
	text, err := client.Get().AbsPath("/apis/apps/v1/deployments").Param("labelSelector", "app=consul,component=connect-injector").Do(ctx).Raw()
	if err != nil {
		return nil, err
	}
	var list appsv1.DeploymentList
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, err
	}
	for _, d := range list.Items {
		if containers := d.Spec.Template.Spec.Containers; len(containers) > 0 {
			found := &doctor.Chart{Image: containers[0].Image}
			if err := consulchart.CheckController(found.Image); err != nil {
				found.TooOld = err.Error()
			}
			return found, nil
		}
	}
	return nil, errors.New("there is no Deployment of consul-k8s' controller (app=consul, component=connect-injector)")
}
