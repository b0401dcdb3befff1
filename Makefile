# Everything that is done with this tree by hand. Each target sets up what it needs.
# The commands run in bash; BORNITE is the release binary wherever cargo puts it.

SHELL := /bin/bash
CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
TARGET_DIR := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
BORNITE := $(TARGET_DIR)/release/bornite

.PHONY: help deps build demo test bench soak install ci fmt clean

help: ## Show the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

deps: ## Install what the build and the tests lack on this machine
	@scripts/deps.sh

build: deps ## Build the release binary
	$(CARGO) build --release --locked --package bornite

demo: build ## Import a Python stack through four local nodes and show where the requests went
	$(BORNITE) demo

test: deps ## Run all tests
	@scripts/test.sh

bench: build ## Run the benchmarks
	$(CARGO) bench --locked --package bornite-bench

soak: deps ## Run the long tests, those that `test` leaves out, and each fuzz target for its share of a minute
	@scripts/fuzz.sh 60
	@scripts/test.sh --soak

install: build ## Install binary, man pages and completions below DESTDIR and PREFIX
	@scripts/install.sh $(BORNITE) "$(DESTDIR)$(PREFIX)"

ci: ## Run what the continuous integration runs
	.ci/run

fmt: ## Format the sources
	$(CARGO) fmt --all

clean: ## Remove what cargo has built
	$(CARGO) clean
