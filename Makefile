# `make setup` makes a Debian or Ubuntu machine ready; every other target does it first, and does
# nothing when it was done since the last change of the files that it depends on.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
READY := .venv/.ready
PYTEST := $(BIN)/python -m pytest
UNIT_TESTS := $(PYTEST) -n 2 tests/unit tests/property tests/simulation
INTEGRATION_TESTS := $(PYTEST) -n 3 --dist loadfile tests/integration
KERNEL ?= 6.1
NEW_KERNEL ?= 7.2
SESSIONS ?= 1009
SEEDS ?= 500
ROUNDS ?= 9
SECONDS ?= 10
MINUTES ?= 30
CAPTURE ?= kprobe
ORDER ?= --order-repetitions 50 --order-rounds 100000
ARGS ?=

.PHONY: help
help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

.PHONY: setup
setup: $(READY) ## install what is needed (apt, .venv)

$(READY): pyproject.toml scripts/setup.sh
	@scripts/setup.sh

.PHONY: demo
demo: $(READY) ## two nodes on this machine, one map kept equal (ARGS="..." for options)
	@$(BIN)/mapbridge demo $(ARGS)

.PHONY: demo-vm
demo-vm: $(READY) ## the same in a virtual machine (KERNEL=6.1, CAPTURE=kprobe, SESSIONS=1009)
	@$(BIN)/python -m tests.vm run --kernel $(KERNEL) -- \
		$(BIN)/mapbridge demo --sessions $(SESSIONS) --capture $(CAPTURE) $(ARGS)

.PHONY: test
test: $(READY) ## everything; names what was skipped and why
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-host test-guests

# Side by side: the guests work while tests on this machine wait, and the other way round.
.PHONY: test-host
test-host: lint proto-check benchmark-tools
	$(UNIT_TESTS)
	$(INTEGRATION_TESTS)
	@$(MAKE) --no-print-directory package-test

.PHONY: test-guests
test-guests: test-vm
	$(BIN)/python -m tests.vm matrix --kernel $(NEW_KERNEL)

.PHONY: test-unit
test-unit: $(READY) ## unit and property tests, no privileges
	$(UNIT_TESTS) $(ARGS)

.PHONY: simulate
simulate: $(READY) ## seeded runs of the core with faults (SEEDS=500)
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) $(ARGS)

.PHONY: chaos
chaos: $(READY) ## three nodes, three servers, load and a fault a round (ROUNDS=9)
	$(BIN)/python -m tests.chaos --rounds $(ROUNDS) $(ARGS)

.PHONY: soak
soak: $(READY) ## random load and faults for long; nothing may grow (MINUTES=30); writes build/soak/
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(ARGS)

.PHONY: fuzz
fuzz: $(READY) ## bytes of others against their readers, SECONDS=10 for each (installs atheris)
	$(BIN)/pip install -q atheris
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(ARGS)

.PHONY: test-integration
test-integration: $(READY) ## real maps and real brokers on this machine, as root
	$(INTEGRATION_TESTS) $(ARGS)

.PHONY: test-vm
test-vm: $(READY) ## the probes on a real kernel in a virtual machine (KERNEL=6.1)
	$(BIN)/python -m tests.vm test --kernel $(KERNEL) $(ARGS)

.PHONY: test-kernels
test-kernels: $(READY) ## what is seen on each kernel; writes build/kernels.json, docs/reference/kernels.md
	$(BIN)/python -m tests.vm matrix $(ARGS)

.PHONY: test-order
test-order: $(READY) ## two processors on the same keys, 50 times, here and in a guest (KERNEL=6.1)
	$(PYTEST) tests/integration/test_order.py $(ORDER) $(ARGS)
	$(BIN)/python -m tests.vm test --kernel $(KERNEL) --timeout 3000 tests/vm/test_order.py $(ORDER) $(ARGS)

.PHONY: lint
lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: $(READY) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: proto
proto: $(READY) ## generate bridge/wire/*_pb2.py from schemas/
	$(BIN)/python schemas/generate.py

.PHONY: proto-check
proto-check: $(READY) ## fail when the generated files are not what schemas/ gives
	$(BIN)/python schemas/generate.py --check

.PHONY: pages
pages: $(READY) ## write the docs' pages that come out of the code: metrics and options
	$(BIN)/python -m bridge.health.page docs/reference/metrics.md
	$(BIN)/python -m bridge.cli.reference docs/reference/options.md

.PHONY: site
site: $(READY) ## the documentation as a site, in build/site
	$(BIN)/mkdocs build --quiet

.PHONY: pictures
pictures: $(READY) ## the page and `top` during the demo, for the docs (ARGS="--out build")
	$(BIN)/python -m tests.pictures $(ARGS)

.PHONY: share
share: $(READY) ## manual pages and shell completions in build/share
	@scripts/make_share.sh $(BIN)/mapbridge build/share

.PHONY: benchmark-tools
benchmark-tools: ## what `mapbridge bench transports` compares with (Go, gRPC, conntrackd), by apt
	@benchmarks/setup.sh

.PHONY: bench
bench: $(READY) benchmark-tools ## every benchmark on this machine and in a guest, 15 minutes; build/bench/
	@scripts/bench.sh $(ARGS)

.PHONY: performance-page
performance-page: $(READY) ## write the tables of docs/explanation/performance.md out of build/bench
	$(BIN)/python -m bridge.bench.page build/bench docs/explanation/performance.md

.PHONY: wheel
wheel: share ## build dist/*.tar.gz and dist/*.whl
	$(BIN)/python -m build --no-isolation

.PHONY: package-test
package-test: share ## build both, and try the wheel in an environment of its own
	@scripts/package_test.sh $(BIN)

.PHONY: image
image: $(READY) ## build the images by docker or podman, and try them (ARGS=--no-registry)
	$(BIN)/python -m tests.containers image $(ARGS)

.PHONY: compose-check
compose-check: $(READY) ## start what docker-compose.yml says, and look (ARGS=--no-registry)
	@$(BIN)/python -c 'import podman_compose' 2>/dev/null || $(BIN)/pip install -q podman-compose
	$(BIN)/python -m tests.containers compose $(ARGS)

.PHONY: helm-check
helm-check: $(READY) ## the Helm chart, by helm and by Kubernetes' schemas
	@$(BIN)/python -c 'import kubernetes_validate' 2>/dev/null || \
		$(BIN)/pip install -q kubernetes-validate
	HELM=$$(scripts/get_helm.sh) $(PYTEST) tests/helm $(ARGS)

.PHONY: systemd-check
systemd-check: $(READY) ## the unit under a real systemd in a virtual machine (KERNEL=6.1)
	$(BIN)/python -m tests.vm run --kernel $(KERNEL) --timeout 600 -- tests/systemd/boot.sh

.PHONY: clean
clean: ## remove what was built, .venv too
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
