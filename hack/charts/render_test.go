package charts

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

const (
	container = "spec.template.spec.containers.0."
	digestA   = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	digestB   = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// images are the operator's and that of the pods of runs.
func images(t *testing.T, all objects) [2]string {
	t.Helper()
	deployment := all.of(t, "Deployment")
	args, _ := deployment.at(container + "args").([]any)
	var worker string
	for _, arg := range args {
		if image, found := strings.CutPrefix(fmt.Sprint(arg), "--worker-image="); found {
			worker = image
		}
	}
	return [2]string{fmt.Sprint(deployment.at(container + "image")), worker}
}

func TestImages(t *testing.T) {
	for _, test := range []struct {
		set              string
		operator, worker string
	}{
		{"", "longstrap:0.1.0", "longstrap:0.1.0"},
		{"image.registry=r.io/a/", "r.io/a/longstrap:0.1.0", "r.io/a/longstrap:0.1.0"},
		{"image.registry=r.io,global.imageRegistry=m.io:5000/x", "m.io:5000/x/longstrap:0.1.0", "m.io:5000/x/longstrap:0.1.0"},
		{"global.imageRegistry=m.io,workerImage.repository=w,workerImage.tag=v1", "m.io/longstrap:0.1.0", "m.io/w:v1"},
		{"image.tag=v2", "longstrap:v2", "longstrap:v2"},
		// A digest wins over a tag.
		{"image.tag=v2,image.digest=" + digestA, "longstrap@" + digestA, "longstrap@" + digestA},
		{"image.digest=" + digestA + ",workerImage.digest=" + digestB, "longstrap@" + digestA, "longstrap@" + digestB},
		{"image.digest=" + digestA + ",workerImage.tag=v3", "longstrap@" + digestA, "longstrap:v3"},
		// Another repository has other digests and tags.
		{"image.tag=v2,image.digest=" + digestA + ",workerImage.repository=w", "longstrap@" + digestA, "w:0.1.0"},
	} {
		if got := images(t, mustRender(t, "--set", test.set)); got != [2]string{test.operator, test.worker} {
			t.Errorf("%s: %v", test.set, got)
		}
	}
}

// TestFields: one row for each thing that a value decides.
func TestFields(t *testing.T) {
	rendered := map[string]objects{}
	for name, path := range valuesFiles(t) {
		rendered[name] = mustRender(t, "--values", path)
	}
	for _, test := range []struct{ values, kind, path, want string }{
		{"default", "Deployment", "metadata.name", `"r-longstrap"`},
		{"default", "Deployment", "spec.replicas", `2`},
		{"default", "Deployment", container + "resources.limits.cpu", `null`},
		{"default", "Deployment", container + "resources.limits.memory", `"512Mi"`},
		{"default", "Deployment", container + "securityContext.readOnlyRootFilesystem", `true`},
		{"default", "Deployment", container + "securityContext.runAsUser", `null`},
		{"default", "Deployment", "spec.template.spec.securityContext", `{"runAsNonRoot":true,"seccompProfile":{"type":"RuntimeDefault"}}`},
		{"default", "Deployment", "spec.template.spec.priorityClassName", `null`},
		{"default", "Deployment", "spec.template.spec.topologySpreadConstraints.0.topologyKey", `"kubernetes.io/hostname"`},
		{"default", "Deployment", "spec.template.spec.topologySpreadConstraints.1.labelSelector.matchLabels.app\\.kubernetes\\.io/name", `"longstrap-operator"`},
		{"default", "Deployment", container + "livenessProbe.httpGet", `{"path":"/healthz","port":"metrics"}`},
		{"default", "Deployment", container + "readinessProbe.httpGet", `{"path":"/readyz","port":"metrics"}`},
		{"default", "Deployment", container + "command", `["longstrap-operator"]`},
		{"default", "Deployment", container + "args", `["--identity=$(POD_NAME)","--lease-namespace=$(POD_NAMESPACE)","--lease-name=r-longstrap","--worker-image=longstrap:0.1.0","--listen=0.0.0.0:8080","--workers=64","--outage-timeout-seconds=600"]`},
		{"default", "PodDisruptionBudget", "spec.maxUnavailable", `1`},
		{"default", "NetworkPolicy", "spec.policyTypes", `["Ingress","Egress"]`},
		{"default", "NetworkPolicy", "spec.ingress", `[{"from":[{"namespaceSelector":{}}],"ports":[{"port":"metrics"}]}]`},
		{"default", "NetworkPolicy", "spec.egress.0", `{"ports":[{"port":443},{"port":6443}]}`},
		{"default", "NetworkPolicy", "spec.egress.1", `{"ports":[{"port":7078}],"to":[{"namespaceSelector":{},"podSelector":{"matchLabels":{"app.kubernetes.io/name":"longstrap"}}}]}`},
		{"default", "ServiceAccount", "automountServiceAccountToken", `false`},
		{"everything", "Deployment", "metadata.name", `"extension"`},
		{"everything", "Deployment", container + "args", `["--identity=$(POD_NAME)","--lease-namespace=$(POD_NAMESPACE)","--lease-name=extension","--worker-image=registry.example.com/mirror/acme/longstrap-worker@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","--listen=0.0.0.0:8080","--workers=32","--outage-timeout-seconds=60","--cluster=production-1"]`},
		{"everything", "Deployment", container + "env.2", `{"name":"RUST_LOG","value":"info,kube=debug"}`},
		{"everything", "Deployment", container + "imagePullPolicy", `"Always"`},
		{"everything", "Deployment", "spec.template.spec.imagePullSecrets", `[{"name":"pull"}]`},
		{"everything", "Deployment", "spec.template.spec.serviceAccountName", `"extender"`},
		{"everything", "Deployment", "spec.template.spec.priorityClassName", `"system-cluster-critical"`},
		{"everything", "Deployment", "spec.template.spec.nodeSelector", `{"kubernetes.io/os":"linux"}`},
		{"everything", "Deployment", "spec.template.spec.tolerations.0.operator", `"Exists"`},
		{"everything", "Deployment", "spec.template.spec.topologySpreadConstraints.0.whenUnsatisfiable", `"DoNotSchedule"`},
		{"everything", "Deployment", "spec.template.metadata.labels.cost-center", `"17"`},
		{"everything", "Deployment", "spec.template.metadata.labels.team", `"ml"`},
		{"everything", "Deployment", "spec.template.metadata.annotations.example\\.com/scrape", `"no"`},
		{"everything", "Service", "spec.ports", `[{"name":"metrics","port":9090,"targetPort":"metrics"}]`},
		{"everything", "ServiceAccount", "metadata.annotations", `{"example.com/role":"reader"}`},
		{"everything", "NetworkPolicy", "spec.egress.0", `{"ports":[{"port":443},{"port":8443}],"to":[{"ipBlock":{"cidr":"10.0.0.0/8"}}]}`},
		{"everything", "NetworkPolicy", "spec.ingress.0.from.0.namespaceSelector.matchLabels", `{"kubernetes.io/metadata.name":"monitoring"}`},
		{"everything", "ServiceMonitor", "metadata.labels.release", `"prometheus"`},
		{"everything", "ServiceMonitor", "spec.endpoints.0.interval", `"15s"`},
		{"everything", "PrometheusRule", "metadata.labels.release", `"prometheus"`},
		{"namespaced", "NetworkPolicy system", "spec.egress.1.to.0.namespaceSelector", `{"matchExpressions":[{"key":"kubernetes.io/metadata.name","operator":"In","values":["team-a","team-b"]}]}`},
		{"namespaced", "NetworkPolicy team-b", "spec.ingress.0", `{"from":[{"podSelector":{"matchLabels":{"app.kubernetes.io/name":"longstrap"}}}]}`},
		{"namespaced", "NetworkPolicy team-b", "spec.ingress.1.ports", `[{"port":"progress"}]`},
		{"namespaced", "NetworkPolicy team-b", "spec.ingress.1.from.0.namespaceSelector.matchLabels", `{"kubernetes.io/metadata.name":"system"}`},
		{"namespaced", "NetworkPolicy team-b", "spec.policyTypes", `["Ingress"]`},
		{"namespaced", "Deployment", container + "args.7", `"--namespaces=team-a,team-b"`},
		{"namespaced", "Deployment", container + "args.8", `"--cluster=5f0f3b4c-0a59-4c0e-9d0e-0d2a3f0f7f11"`},
		{"air-gapped", "Deployment", container + "image", `"mirror.internal:5000/longstrap/longstrap@` + digestA + `"`},
		{"bare", "Deployment", "spec.replicas", `1`},
		{"bare", "Deployment", "spec.template.spec.serviceAccountName", `"made-elsewhere"`},
		{"bare", "Deployment", "spec.template.spec.topologySpreadConstraints", `null`},
	} {
		got, err := json.Marshal(rendered[test.values].of(t, test.kind).at(test.path))
		if err != nil || string(got) != test.want {
			t.Errorf("%s: %s %s is %s, expected %s", test.values, test.kind, test.path, got, test.want)
		}
	}
}

// TestKinds: what exists at all.
func TestKinds(t *testing.T) {
	basic := "Deployment Service"
	for name, want := range map[string]string{
		"default":    basic + " ClusterRole ClusterRoleBinding NetworkPolicy PodDisruptionBudget Role RoleBinding ServiceAccount",
		"air-gapped": basic + " ClusterRole ClusterRoleBinding NetworkPolicy PodDisruptionBudget Role RoleBinding ServiceAccount",
		"everything": basic + " ClusterRole ClusterRoleBinding ConfigMap NetworkPolicy PodDisruptionBudget PodMonitor PrometheusRule Role RoleBinding ServiceAccount ServiceMonitor",
		// No right on the cluster is needed, nor given.
		"namespaced": basic + " NetworkPolicy PodDisruptionBudget Role RoleBinding ServiceAccount",
		"bare":       basic,
	} {
		var kinds []string
		for _, o := range mustRender(t, "--values", valuesFiles(t)[name]) {
			kinds = append(kinds, o.kind())
		}
		slices.Sort(kinds)
		expected := strings.Fields(want)
		slices.Sort(expected)
		if kinds = slices.Compact(kinds); !slices.Equal(kinds, expected) {
			t.Errorf("%s: %v, expected %v", name, kinds, expected)
		}
	}
}

func TestLabelsAndNamespaces(t *testing.T) {
	clusterScoped := []string{"ClusterRole", "ClusterRoleBinding"}
	for name, path := range valuesFiles(t) {
		for _, o := range mustRender(t, "--values", path) {
			for _, label := range []string{"name", "instance", "component", "part-of", "version", "managed-by"} {
				if o.at(`metadata.labels.app\.kubernetes\.io/`+label) == nil {
					t.Errorf("%s: %s %s has no label %s", name, o.kind(), o.name(), label)
				}
			}
			if (o.namespace() == "") != slices.Contains(clusterScoped, o.kind()) {
				t.Errorf("%s: %s %s is in the namespace %q", name, o.kind(), o.name(), o.namespace())
			}
		}
	}
}

// TestPodSecurity asks the code of the admission plug-in: the pods pass the level Restricted.
func TestPodSecurity(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	level := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	refused := func(d *appsv1.Deployment) policy.AggregateCheckResult {
		return policy.AggregateCheckResults(evaluator.EvaluatePod(level, &d.Spec.Template.ObjectMeta, &d.Spec.Template.Spec))
	}
	for name, path := range valuesFiles(t) {
		var deployment appsv1.Deployment
		mustRender(t, "--values", path).of(t, "Deployment").as(t, &deployment)
		if result := refused(&deployment); !result.Allowed {
			t.Errorf("%s: %s", name, result.ForbiddenDetail())
		}
		deployment.Spec.Template.Spec.Containers[0].SecurityContext.Capabilities = nil
		if refused(&deployment).Allowed {
			t.Errorf("%s: the check lets everything pass", name)
		}
	}
}
