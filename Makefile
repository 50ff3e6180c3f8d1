# `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST_ARGS ?=
BENCH_ARGS ?=
RUNS ?= 10
STORMS := tests/acceptance/test_flips.py tests/acceptance/test_direct_storms.py tests/acceptance/test_faults.py \
	tests/acceptance/test_recovery.py tests/acceptance/test_rollback.py tests/acceptance/test_lost_store.py \
	tests/acceptance/test_identical.py tests/integration/test_ownership_stress.py

# Proto tree, folder of the generated modules, their import path.
PROTO_TREES := protos:libs/pb:libs.pb \
	$(if $(wildcard tests/contracts/toy/*.proto),tests/contracts:tests/contracts/pb:tests.contracts.pb)
# Descriptor image, compiled contract, its document.
IMAGE := build/protos.binpb
OPENAPI := $(IMAGE) libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService libs/pb/sandbox/v1/openapi.json
PIN := $(BIN)/uv pip compile -q pyproject.toml --generate-hashes --no-emit-index-url --universal \
	--python-version 3.11 --custom-compile-command "make pins"

.PHONY: help env stack protos image check-protos openapi check-openapi alerts dashboards kubernetes-schemas docs \
	check-docs protos-baseline client-versions upgrade versions lint check test bytecode collected fuzz mutants mcp-conformance storms demo bench sbom up down pins clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' Makefile

env: $(INSTALLED) ## make .venv with the pinned packages and this project

$(INSTALLED): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-input --progress-bar off --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install -q --no-input --progress-bar off --no-deps --no-build-isolation -e .
	@touch $@

stack: env ## get Kafka, PostgreSQL, Redis, Go and Chromium, or say what is missing and how to get it
	$(BIN)/python -m libs.proving.servers

protos: env ## generate the Python modules and the OpenAPI document from the .proto files
	@for tree in $(PROTO_TREES); do $(BIN)/python protos/generate.py $${tree//:/ }; done
	@$(BIN)/python -m clients.python.write_stubs
	@$(MAKE) --no-print-directory openapi

check-protos: env ## fail if a generated module is not fresh
	@for tree in $(PROTO_TREES); do $(BIN)/python protos/generate.py $${tree//:/ } --check; done
	@$(BIN)/python -m clients.python.write_stubs --check

image: env ## write the .proto files with their imports and comments to build/protos.binpb, for buf
	@$(BIN)/python protos/generate.py protos libs/pb libs.pb --image $(IMAGE)

openapi: image ## write the OpenAPI document from the .proto files and their comments
	@$(BIN)/python protos/openapi.py $(OPENAPI)

alerts: env ## write deploy/alerts.yaml from the gates and the alerts of the system
	@$(BIN)/python deploy/make_alerts.py

dashboards: env ## write deploy/grafana/dashboards from the table of metrics
	@$(BIN)/python deploy/make_dashboards.py

check-openapi: image ## fail if the OpenAPI document is not fresh
	@$(BIN)/python protos/openapi.py $(OPENAPI) --check

.PHONY: screenshots
screenshots: env ## take the pictures of the operators' page in docs/console.md, in every state (needs Chromium; minutes)
	$(BIN)/python docs/screenshots.py

protos-baseline: image ## with a release: take its protos as what later ones must not break
	$(BIN)/buf build $(IMAGE) --exclude-imports --exclude-source-info -o protos/baseline.binpb

kubernetes-schemas: env ## write the schemas that the Kubernetes manifests are checked with
	@$(BIN)/uv run -q --no-project --python $(BIN)/python --with kubernetes-validate==1.37.0 \
	python deploy/kubernetes/make_schemas.py

docs: env ## write the documents that follow from the code
	$(BIN)/python docs/generate.py

check-docs: env ## fail if a document is not fresh, or a link leads nowhere
	$(BIN)/python docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The types take as long as all other checks together, so they run beside them.
lint: env ## check style, types, imports, protos and documents
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target check-types check-protos check-openapi check-docs check-style

.PHONY: check-types check-style
check-types: env
	$(BIN)/mypy libs services tests protos/generate.py protos/openapi.py deploy/make_alerts.py docs clients/python

check-style: image
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python deploy/make_alerts.py --check
	$(BIN)/python deploy/make_dashboards.py --check
	$(BIN)/buf lint $(IMAGE) --config buf.yaml
	$(BIN)/buf breaking $(IMAGE) --against protos/baseline.binpb --config buf.yaml --exclude-imports

# Everything that needs no server and at most a second of processor time for each test.
check: lint bytecode ## lint and the fast tests, after each edit: under 90 seconds on two idle cores
	$(BIN)/python -m pytest -q --numprocesses 2 --no-servers -m "not slow" --hypothesis-profile check -r fE \
	tests/unit tests/model tests/transcripts tests/contracts clients/python/tests

# Three processes share the files, each with servers of its own: they wait more than they compute. The order is kept:
# long tests (acceptance) come first.
test: bytecode collected stack ## run every test, on real servers that it starts itself (PYTEST_ARGS="-k name" for some)
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --durations=25 $(PYTEST_ARGS)

# The tests start some hundred processes. Where PYTHONDONTWRITEBYTECODE is set, each would compile all that it imports.
bytecode: env
	@$(BIN)/python -m compileall -q libs services tests

# pytest rewrites the asserts of each test file. Otherwise each of the three processes would do so for all files.
collected: env
	@for files in tests/unit "tests/acceptance tests/contracts tests/integration"; do \
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --collect-only -qq $$files >/dev/null & done; wait

FUZZ_CASES ?= 100000
FUZZ_SEED ?=

fuzz: bytecode ## send FUZZ_CASES=100000 hostile requests to every listener, and try decoders (FUZZ_SEED=1 repeats a run)
	$(BIN)/python -m tests.fuzz $(FUZZ_CASES) $(FUZZ_SEED)
	$(BIN)/python -m pytest -q --no-servers --hypothesis-profile fuzz tests/fuzz/test_decoders.py

mutants: env stack ## break each rule once and see its test fail (MUTANTS="text" for some)
	$(BIN)/python -m tests.mutants $(MUTANTS)

# Node 22 comes as a package too: the suite needs it.
MCP_NODE := build/mcp-conformance
MCP_PACKAGES := node@22 @modelcontextprotocol/conformance@0.1.16 @modelcontextprotocol/inspector@2.12.0

$(MCP_NODE)/.installed: Makefile
	npm install --silent --no-audit --no-fund --no-save --prefix $(MCP_NODE) $(MCP_PACKAGES)
	@touch $@

mcp-conformance: env $(MCP_NODE)/.installed ## run the MCP conformance suite and inspector against A, B and a router (needs npm)
	$(BIN)/python -m tests.mcp_conformance $(MCP_NODE)

storms: bytecode stack ## the storm and recovery suites in full length, RUNS=10 times
	@for run in $$(seq $(RUNS)); do echo "run $$run of $(RUNS)"; \
	BATON_TEST_STORMS=full $(BIN)/python -m pytest -q $(STORMS) || exit 1; done

FROM ?= HEAD~1

upgrade: bytecode stack ## upgrade a system under load, process by process, from the commit FROM=HEAD~1 to this tree, and back
	$(BIN)/python -m tests.upgrade $(FROM) --stack real

client-versions: env ## run baton-client's tests with the oldest and the newest packages that it takes
	rm -rf build/client && mkdir -p build && cp -r clients/python build/client
	@for versions in lowest-direct:3.10 highest:3.13; do environment=build/client-$${versions%:*}; \
	$(BIN)/uv venv -q --clear --python $${versions#*:} $$environment; \
	$(BIN)/uv pip install -q --python $$environment --resolution $${versions%:*} ./build/client "pytest>=8"; \
	$(BIN)/uv pip list -q --python $$environment | grep -E "^(grpcio|protobuf|googleapis)"; \
	$$environment/bin/python -m pytest -q -c /dev/null --rootdir clients/python -p no:cacheprovider clients/python/tests; done

# Beside the ranges' packages: what the unit tests need, at any version.
TEST_TOOLS := "pytest>=9" "pytest-asyncio>=1.5" "hypothesis>=6.170" "pyyaml>=6" cloudevents grpcio-tools trustme

versions: env ## run the unit tests with the oldest and the newest packages that this project takes
	@for resolution in lowest-direct highest; do environment=build/versions/$$resolution; echo "$$resolution"; \
	$(BIN)/uv venv -q --clear --python $(BIN)/python $$environment; \
	$(BIN)/uv pip install -q --python $$environment --resolution $$resolution .; \
	$(BIN)/uv pip install -q --python $$environment --no-upgrade $(TEST_TOOLS); \
	$$environment/bin/python -m pytest -q -o addopts= --import-mode=importlib -p no:cacheprovider --no-servers tests/unit \
	$(foreach file,requirements docs protos language,--ignore tests/unit/test_$(file).py) || exit 1; done

demo: env ## show a migration there and back under load, about a minute
	$(BIN)/baton demo

bench: env stack ## measure, each figure beside its baseline (BENCH_ARGS="--quick")
	$(BIN)/python -m tests.bench $(BENCH_ARGS)

SBOM := build/sbom

sbom: env ## write the packages of the programs with versions and licences to build/sbom.cdx.json (CycloneDX)
	$(BIN)/uv venv -q --clear --python $(BIN)/python $(SBOM)
	$(BIN)/uv pip install -q --python $(SBOM) --require-hashes -r requirements/base.txt
	$(BIN)/uv run -q --no-project --python $(BIN)/python --with cyclonedx-bom==7.2.1 cyclonedx-py environment \
	--pyproject pyproject.toml --mc-type application --output-reproducible -o $(SBOM).cdx.json $(SBOM)

up: env ## run the system in containers (Docker Compose 2.20 or later), clients at localhost:7600 over TLS
	@docker compose version >/dev/null 2>&1 || { echo "docker compose is missing: see https://docs.docker.com/compose/install/" >&2; exit 1; }
	$(BIN)/python -m deploy.compose.make_secrets
	docker compose up --build --detach --wait --wait-timeout 300

down: ## stop the containers and keep their data (docker compose down --volumes removes it)
	docker compose down

pins: env ## choose the newest allowed versions again and write requirements/
	$(PIN) --upgrade -o requirements/base.txt
	$(PIN) --upgrade --extra dev -o requirements/dev.txt
	echo 'setuptools>=77' | $(subst pyproject.toml,-,$(PIN)) -c requirements/dev.txt -o requirements/build.txt

clean: ## remove all that was made here, .venv included
	rm -rf build $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find libs services tests protos -name __pycache__ -type d -exec rm -rf {} +
