package charts

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"longstrap.io/hack/control-plane/testserver"
)

// apiServer is a real etcd and kube-apiserver; nothing runs pods.
type apiServer struct {
	t                       *testing.T
	kubectlPath, kubeconfig string
}

func startAPIServer(t *testing.T) *apiServer {
	t.Helper()
	bin := fromEnv(t, "LONGSTRAP_CONTROL_PLANE")
	// The tenant may do everything in the namespace that it is given, and nothing else.
	running := testserver.Start(t, bin, testserver.User{Name: "admin", Groups: "system:masters"}, testserver.User{Name: "tenant"})
	server := &apiServer{t: t, kubectlPath: filepath.Join(bin, "kubectl"), kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: admin,
clusters: [{name: c, cluster: {server: %q, certificate-authority: %q}}],
contexts: [{name: admin, context: {cluster: c, user: admin}}, {name: tenant, context: {cluster: c, user: tenant}}],
users: [{name: admin, user: {token: admin}}, {name: tenant, user: {token: tenant}}]}`, running.URL, running.CA)
	if err := os.WriteFile(server.kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return server
}

// in is the same server for a subtest, which then fails alone.
func (s *apiServer) in(t *testing.T) *apiServer {
	return &apiServer{t: t, kubectlPath: s.kubectlPath, kubeconfig: s.kubeconfig}
}

func (s *apiServer) kubectl(input string, args ...string) (string, error) {
	command := exec.Command(s.kubectlPath, append([]string{"--kubeconfig", s.kubeconfig}, args...)...)
	command.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

func (s *apiServer) must(input string, args ...string) string {
	s.t.Helper()
	out, err := s.kubectl(input, args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

func (s *apiServer) helm(args ...string) string {
	s.t.Helper()
	out, err := helm(s.t, append(args, "--kubeconfig", s.kubeconfig)...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

const aRun = `
apiVersion: longstrap.io/v1alpha1
kind: ContextExtensionRun
metadata: {name: kept, namespace: team-a}
spec:
  storage: {uri: "s3://acme/run"}
  model: {uri: "s3://acme/model"}
  data: [{name: short, uri: "s3://acme/data"}]
  stages: [{name: one, contextLength: 16Ki, steps: 1}]
`

// TestAgainstAnAPIServer: one server for all of it, because it takes seconds to start.
func TestAgainstAnAPIServer(t *testing.T) {
	server := startAPIServer(t)
	for _, namespace := range []string{"system", "team-a", "team-b"} {
		server.must("", "create", "namespace", namespace)
	}
	// Here nobody aggregates roles; the pods' own level is enforced where Deployments are made, as a warning.
	server.must("", "label", "namespace", "system", "pod-security.kubernetes.io/warn=restricted")

	for name, path := range valuesFiles(t) {
		t.Run("dry run of "+name, func(t *testing.T) {
			text, err := helm(t, "template", "r", operatorChart, "--namespace", "system", "--kube-version", "1.37.2", "--values", path)
			if err != nil {
				t.Fatal(err)
			}
			var known strings.Builder
			for document := range strings.SplitSeq(text, "\n---\n") {
				// Kinds of the Prometheus operator: decoded strictly elsewhere.
				if !strings.Contains(document, "apiVersion: monitoring.coreos.com/") {
					known.WriteString("---\n" + document + "\n")
				}
			}
			for _, how := range [][]string{{"--server-side"}, {}} {
				args := append([]string{"apply", "--dry-run=server", "--validate=strict", "-f", "-"}, how...)
				if _, err := server.kubectl(known.String(), args...); err != nil {
					t.Error(err)
				}
			}
		})
	}

	t.Run("the kinds outlive their chart", func(t *testing.T) {
		server := server.in(t)
		says := func(notes string, expected map[string]bool) {
			t.Helper()
			for text, there := range expected {
				if strings.Contains(notes, text) != there {
					t.Errorf("the notes contain %q: %t\n%s", text, !there, notes)
				}
			}
		}
		notes := server.helm("install", "r", operatorChart, "--namespace", "system")
		says(notes, map[string]bool{"watches all namespaces": true, "rollout status deployment/r-longstrap": true, "install the chart longstrap-crds": true, "on port 443, 6443": true})
		server.helm("install", "crds", crdsChart, "--namespace", "system")
		server.must("", "wait", "--for=condition=Established", "--timeout=60s", "crd", "contextextensionruns.longstrap.io", "synthesisjobs.longstrap.io")
		server.must(aRun, "apply", "--validate=strict", "-f", "-")
		server.must("", "--namespace", "system", "get", "deployment/r-longstrap", "poddisruptionbudget/r-longstrap", "networkpolicy/r-longstrap")
		notes = server.helm("upgrade", "r", operatorChart, "--namespace", "system", "--values", valuesFiles(t)["namespaced"])
		says(notes, map[string]bool{"watches team-a, team-b.": true, "install the chart longstrap-crds": false})
		server.must("", "--namespace", "team-a", "get", "role/r-longstrap", "rolebinding/r-longstrap")
		if left := server.must("", "get", "clusterrole,clusterrolebinding", "-l", "app.kubernetes.io/part-of=longstrap", "-o", "name"); left != "" {
			t.Errorf("an installation for namespaces keeps rights on the cluster: %s", left)
		}
		server.helm("uninstall", "r", "--namespace", "system")
		server.helm("uninstall", "crds", "--namespace", "system")
		server.must("", "--namespace", "team-a", "get", "contextextensionrun/kept")
		server.helm("install", "crds", crdsChart, "--namespace", "system")
		server.helm("install", "r", operatorChart, "--namespace", "system")
		server.must("", "--namespace", "team-a", "get", "contextextensionrun/kept")
		server.helm("uninstall", "r", "--namespace", "system")
		left := server.must("", "get", "deployment,service,serviceaccount,configmap,role,rolebinding,poddisruptionbudget,networkpolicy,clusterrole,clusterrolebinding",
			"-A", "-l", "app.kubernetes.io/part-of=longstrap", "-o", "name")
		if left != "" {
			t.Errorf("uninstalling leaves %s", left)
		}
	})

	// Whoever may do everything in two namespaces, and nothing on the cluster, can install for them.
	t.Run("a tenant can install", func(t *testing.T) {
		server := server.in(t)
		for _, namespace := range []string{"team-a", "team-b"} {
			server.must("", "--namespace", namespace, "create", "role", "all", "--verb=*", "--resource=*.*")
			server.must("", "--namespace", namespace, "create", "rolebinding", "all", "--role=all", "--user=tenant")
		}
		tenant := []string{"--kube-context", "tenant", "--namespace", "team-a"}
		server.helm(append([]string{"install", "own", operatorChart, "--values", valuesFiles(t)["namespaced"]}, tenant...)...)
		server.helm(append([]string{"uninstall", "own"}, tenant...)...)
	})
}
