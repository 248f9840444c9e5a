# What people and CI run. `make run` and `make test` are all that a newcomer needs.

.DEFAULT_GOAL := help
.PHONY: help run test model chaos check check-all docs-config image loadtest

CARGO ?= cargo
# Told to the build, so that `berth --version` names the commit.
COMMIT := $(shell git rev-parse --short=12 HEAD 2>/dev/null)
VERSION := $(shell sed -n '/^version/{s/.*"\(.*\)"/\1/p;q}' Cargo.toml)
DENY_VERSION := 0.20.2

help: ## Print this.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

run: ## Build Berth and start it on 127.0.0.1:5000.
	$(if $(COMMIT),SOURCE_COMMIT=$(COMMIT)) $(CARGO) run --release --locked -- serve

test: ## Install what the tests need, and run all of them.
	scripts/setup-tests
	$(CARGO) test --locked
	$(CARGO) test --locked -p berth-model -- --nocapture
	$(CARGO) test --locked -p loadtest

model: ## Search the models of the protocols further than each change can wait for.
	$(CARGO) test --release --locked -p berth-model -- --include-ignored --nocapture

chaos: ## Let everything go wrong at once, for an hour or BERTH_CHAOS_MINUTES, over BERTH_CHAOS_OVER: docs/chaos.md.
	BERTH_CHAOS_MINUTES=$${BERTH_CHAOS_MINUTES:-60} $(CARGO) test --release --locked --test chaos -- --ignored --nocapture for_hours

check: ## All that a change must pass: format, lints, docs, tests, dependencies.
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -p berth -p berth-model -p loadtest -- -D warnings
	$(CARGO) clippy --locked --test clients -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items
	$(MAKE) test
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny --version $(DENY_VERSION)
	$(CARGO) deny --locked check bans licenses sources

check-all: check ## That, and what is too long for each change: all other clients, Valkey, fake-gcs-server, 5 GiB, 200 times kill -9, 10,000 pushes that are told whatever dies, chaos, known vulnerabilities.
	scripts/setup-check-all
	$(CARGO) test --release --locked --test clients -- --test-threads=1 --nocapture
	BERTH_TEST_REDIS_SERVER=$(CURDIR)/target/tools/valkey-server $(CARGO) test --locked --test it -- index:: rules_suspect:: e2e_redis:: sentinel:: cluster::
	BERTH_TEST_GCS_SERVER=$(CURDIR)/target/tools/fake-gcs-server $(CARGO) test --locked --test it -- storage::
	for over in redis+s3 embedded+s3 sentinel+s3 cluster+s3 redis+gcs embedded+gcs redis+azure embedded+azure; do \
		BERTH_TEST_OVER=$$over $(CARGO) test --locked --test it -- rules_rebuild:: rules_tag:: rules_upload:: || exit; done
	BERTH_CRASH_ROUNDS=200 $(CARGO) test --locked --test it e2e_crash:: -- --nocapture
	BERTH_EVENTS_PENDING=20000 $(CARGO) test --release --locked --test it events_backlog:: -- --nocapture
	BERTH_EVENTS_PUSHES=10000 $(CARGO) test --locked --test it events_crash:: -- --nocapture --test-threads=1
	$(CARGO) test --release --locked --test chaos -- --ignored --nocapture each_fault_alone
	BERTH_CHAOS_MINUTES=10 $(MAKE) chaos
	for over in sentinel+s3 cluster+s3 redis+gcs redis+azure; do \
		BERTH_CHAOS_OVER=$$over BERTH_CHAOS_MINUTES=5 $(MAKE) chaos || exit; done
	$(CARGO) deny --locked check advisories

docs-config: ## Write docs/configuration.md from the doc comments of the settings.
	WRITE_DOCS=1 $(CARGO) test --locked --test it config::the_reference

image: ## Build the container image, for this machine's architecture.
	$(if $(COMMIT),SOURCE_COMMIT=$(COMMIT)) $(CARGO) build --release --locked
	scripts/stage-image target/release/berth target/image
	docker build --tag berth --file infra/Dockerfile --build-arg VERSION=$(VERSION) \
		--build-arg SOURCE_COMMIT=$(shell git rev-parse HEAD 2>/dev/null) target/image

loadtest: ## Compare Berth with CNCF Distribution on this machine, and tokens and events with none.
	$(if $(COMMIT),SOURCE_COMMIT=$(COMMIT)) $(CARGO) build --release --locked
	$(CARGO) run --release --locked -p loadtest -- products
	$(CARGO) run --release --locked -p loadtest -- access
	$(CARGO) run --release --locked -p loadtest -- events
