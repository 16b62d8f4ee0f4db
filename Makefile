# Every target does the set-up that it needs; all of them are thin names for cargo commands.

# A user's LIBTORCH only says where `setup` takes libtorch from: what is built sees `.libtorch`.
unexport LIBTORCH

CARGO ?= cargo
DEMO_ARGS ?=

.PHONY: help setup check test build demo clean

help:
	@echo "make demo    the main job, end to end, into out/demo (DEMO_ARGS=... for more flags)"
	@echo "make test    all tests"
	@echo "make check   machine paths, format, walls between crates, clippy"
	@echo "make build   the binary vlm-r1"
	@echo "make setup   libtorch into .libtorch (the others call it)"
	@echo "make clean   remove what was built; .libtorch stays"

setup:
	@LIBTORCH='$(LIBTORCH)' $(CARGO) run --quiet --package xtask -- libtorch

check: setup
	$(CARGO) run --quiet --package xtask -- check

test: setup
	$(CARGO) test --workspace

build: setup
	$(CARGO) build --release --package cli

demo: setup
	$(CARGO) run --release --quiet --package cli -- demo --out out/demo $(DEMO_ARGS)

clean:
	$(CARGO) clean
