//go:build tools

// Package tools pins the Helm that the chart tests use: it is built from this import, so go.sum
// holds what it needs.
package tools

import _ "helm.sh/helm/v3/cmd/helm"
