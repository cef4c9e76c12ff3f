//go:build pinned

// Package kueue pins what hack/kueue/build.sh builds.
package kueue

import _ "sigs.k8s.io/kueue/cmd/kueue"
