//go:build tools

// Package tools pins the control plane that the API tests run against: the commands are built
// from these imports, so go.sum holds what they need.
package tools

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
	_ "k8s.io/kubernetes/cmd/kubectl"
)
