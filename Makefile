# Everything one types here. Caches lie outside the tree: LONGSTRAP_CACHE, default ~/.cache/longstrap.

export LONGSTRAP_CACHE ?= $(HOME)/.cache/longstrap
export CARGO_TARGET_DIR ?= $(LONGSTRAP_CACHE)/target
OUT ?= longstrap-out
PART ?= all

.PHONY: help demo test test-api test-charts test-compat test-gitops test-kueue figures parity lint fmt crds

help:
	@printf '%s\n' \
	  'make demo              extend a real small model from 8K to 16K here (30 minutes on 2 cores)' \
	  'make test              all tests; sets up what it needs' \
	  'make test-api          the operator against a real Kubernetes API' \
	  'make test-compat       the same on Kubernetes 1.33 (builds it: 10 minutes)' \
	  'make test-charts       lint, values, templates, alerts; a real API server takes them' \
	  'make test-gitops       kstatus and Argo CD on our objects' \
	  'make test-kueue        the operator with a real Kueue (builds it: 11 minutes)' \
	  'make figures [PART=]   measured figures: machine, train, inference, operator, demo, all' \
	  'make parity            logits and gradients against PyTorch (installs a gigabyte)' \
	  'make lint              rustfmt, clippy, cargo-deny' \
	  'make crds              write crds/generated/ and the chart of the kinds again'

demo:
	@hack/demo.sh "$(OUT)"

test:
	@hack/test.sh

test-api:
	@hack/test-api.sh

test-compat:
	@LONGSTRAP_KUBERNETES=kubernetes-1.33 hack/test-api.sh

test-charts:
	@hack/charts/test.sh

test-gitops:
	@hack/test-gitops.sh

test-kueue:
	@hack/test-kueue.sh

figures:
	@hack/figures.sh "$(PART)"

parity:
	@hack/parity.sh

lint:
	@hack/lint.sh

fmt:
	cargo fmt --all

crds:
	cargo run --quiet -p longstrap-crds --bin crdgen
