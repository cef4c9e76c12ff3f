package argocd

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

const token = "of-the-tests"

func freePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

// start runs a binary of the control plane until the test ends.
func start(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	bin := os.Getenv("LONGSTRAP_CONTROL_PLANE")
	if bin == "" {
		t.Fatal("LONGSTRAP_CONTROL_PLANE is not set: run `make test-gitops`")
	}
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(filepath.Join(bin, name), args...)
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("%s:\n%s", name, text[max(0, len(text)-2000):])
		}
		log.Close()
	})
}

// startControlPlane runs etcd and kube-apiserver with the generated CRDs.
func startControlPlane(t *testing.T) *rest.Config {
	t.Helper()
	dir := t.TempDir()
	key := filepath.Join(dir, "sa.key")
	if out, err := exec.Command("openssl", "genrsa", "-out", key, "2048").CombinedOutput(); err != nil {
		t.Fatalf("openssl: %v: %s", err, out)
	}
	tokens := filepath.Join(dir, "tokens.csv")
	if err := os.WriteFile(tokens, []byte(token+",tests,tests,system:masters\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	client, peer, secure := freePort(t), freePort(t), freePort(t)
	start(t, dir, "etcd",
		"--data-dir="+filepath.Join(dir, "etcd"),
		fmt.Sprintf("--listen-client-urls=http://127.0.0.1:%d", client),
		fmt.Sprintf("--advertise-client-urls=http://127.0.0.1:%d", client),
		fmt.Sprintf("--listen-peer-urls=http://127.0.0.1:%d", peer),
		"--unsafe-no-fsync", "--log-level=error")
	start(t, dir, "kube-apiserver",
		fmt.Sprintf("--etcd-servers=http://127.0.0.1:%d", client),
		fmt.Sprintf("--secure-port=%d", secure),
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none",
		"--cert-dir="+filepath.Join(dir, "certs"), "--token-auth-file="+tokens,
		"--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/16",
		"--service-account-issuer=https://tests",
		"--service-account-key-file="+key, "--service-account-signing-key-file="+key)
	config := &rest.Config{
		Host:            fmt.Sprintf("https://127.0.0.1:%d", secure),
		BearerToken:     token,
		TLSClientConfig: rest.TLSClientConfig{CAFile: filepath.Join(dir, "certs", "apiserver.crt")},
	}
	installCRDs(t, config)
	return config
}

func installCRDs(t *testing.T, config *rest.Config) {
	t.Helper()
	paths, err := filepath.Glob("../../../crds/generated/*.yaml")
	if err != nil || len(paths) != 2 {
		t.Fatalf("expected two generated CRDs, found %v (%v)", paths, err)
	}
	crds := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	for _, path := range paths {
		crd := read(t, path)[0]
		err := wait.PollUntilContextTimeout(t.Context(), 200*time.Millisecond, 2*time.Minute, true, func(ctx context.Context) (bool, error) {
			// The server and its certificate come up meanwhile: any error is one of a server that is not there yet.
			client, err := dynamic.NewForConfig(config)
			if err != nil {
				return false, nil
			}
			if _, err = client.Resource(crds).Create(ctx, crd, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
				return false, nil
			}
			live, err := client.Resource(crds).Get(ctx, crd.GetName(), metav1.GetOptions{})
			return err == nil && established(live), nil
		})
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
}

func established(crd *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(crd.Object, "status", "conditions")
	for _, condition := range conditions {
		c := condition.(map[string]any)
		if c["type"] == "Established" && c["status"] == "True" {
			return true
		}
	}
	return false
}
