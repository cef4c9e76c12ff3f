module longstrap.io/hack/control-plane/testserver

go 1.26
