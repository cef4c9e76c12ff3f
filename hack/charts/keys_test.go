package charts

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"testing"
)

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

// insecure trusts the certificate that the test's API server made for itself.
func insecure() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }
