//go:build tools

// Package tools pins the etcd of the API tests.
package tools

import _ "go.etcd.io/etcd/server/v3/etcdmain"
