// Package testserver starts a real etcd and kube-apiserver for the Go tests of other folders; nothing
// runs pods. Only the standard library: those tests pin different versions of Kubernetes' modules.
package testserver

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// User is known by a token that is the user's name.
type User struct {
	Name string
	// Groups, as system:masters.
	Groups string
}

// Server runs until the test ends.
type Server struct {
	// URL, as https://127.0.0.1:6443.
	URL string
	// CA is the file of the certificate that signed the server's.
	CA string
}

// Start runs the binaries of the folder bin, and returns when the server is ready. The first user must
// be allowed to read /readyz.
func Start(t *testing.T, bin string, users ...User) Server {
	t.Helper()
	dir := t.TempDir()
	key := write(t, dir, "key.pem", serviceAccountKey(t))
	var tokens strings.Builder
	for _, user := range users {
		fmt.Fprintf(&tokens, "%s,%s,%s,%s\n", user.Name, user.Name, user.Name, user.Groups)
	}
	client, peer, secure := freePort(t), freePort(t), freePort(t)
	run(t, dir, filepath.Join(bin, "etcd"),
		"--data-dir="+filepath.Join(dir, "etcd"),
		fmt.Sprintf("--listen-client-urls=http://127.0.0.1:%d", client),
		fmt.Sprintf("--advertise-client-urls=http://127.0.0.1:%d", client),
		fmt.Sprintf("--listen-peer-urls=http://127.0.0.1:%d", peer),
		"--unsafe-no-fsync", "--log-level=error")
	run(t, dir, filepath.Join(bin, "kube-apiserver"),
		fmt.Sprintf("--etcd-servers=http://127.0.0.1:%d", client),
		fmt.Sprintf("--secure-port=%d", secure),
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none",
		"--cert-dir="+filepath.Join(dir, "certs"),
		"--token-auth-file="+write(t, dir, "tokens.csv", tokens.String()),
		"--authorization-mode=RBAC",
		"--service-cluster-ip-range=10.0.0.0/16",
		"--service-account-issuer=https://tests",
		"--service-account-key-file="+key, "--service-account-signing-key-file="+key)
	server := Server{URL: fmt.Sprintf("https://127.0.0.1:%d", secure), CA: filepath.Join(dir, "certs", "apiserver.crt")}
	server.wait(t, users[0])
	return server
}

// wait polls: a server that starts cannot tell when it is ready.
func (s Server) wait(t *testing.T, user User) {
	t.Helper()
	transport := http.DefaultTransport.(*http.Transport).Clone()
	// The certificate is made by the server meanwhile.
	transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	client := http.Client{Transport: transport, Timeout: 5 * time.Second}
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		request, err := http.NewRequest(http.MethodGet, s.URL+"/readyz", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+user.Name)
		if response, err := client.Do(request); err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return
			}
		}
	}
	t.Fatal("the API server does not get ready")
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func freePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

// run starts a program until the test ends; its log is shown when the test fails.
func run(t *testing.T, dir, path string, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(dir, filepath.Base(path)+".log"))
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(path, args...)
	command.Stdout, command.Stderr = log, log
	// Nothing outlives a test binary that is killed.
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
		if text, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("the end of %s:\n%s", log.Name(), text[max(0, len(text)-2000):])
		}
		_ = log.Close()
	})
}

// serviceAccountKey signs the tokens of ServiceAccounts; nobody asks for one here.
func serviceAccountKey(t *testing.T) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	block := pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	return string(pem.EncodeToMemory(&block))
}
