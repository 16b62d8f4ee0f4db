# Every target does the set-up that it needs; all of them are thin names for cargo commands.
# One profile for all, so that each crate is compiled once (see `Cargo.toml`).

CARGO ?= cargo
DEMO_ARGS ?=
EXPERIMENT_ARGS ?=
TORTURE_ARGS ?= --minutes 60
TARGET = $(or $(CARGO_TARGET_DIR),target)

# A user's LIBTORCH only says where `setup` takes libtorch from: what is built sees `.libtorch`.
unexport LIBTORCH

# The first call compiles `xtask`: let cargo show that it does.
QUIET = $(if $(wildcard .libtorch/complete),--quiet)

# `cargo run` would compile dependencies with the features that one package asks for, and the tests then once more with all.
XTASK = $(CARGO) build $(QUIET) --release --workspace --bin xtask && CARGO_MANIFEST_DIR=$(CURDIR)/xtask $(TARGET)/release/xtask
EXPERIMENTS = $(CARGO) build --quiet --release --workspace --bin experiments && $(TARGET)/release/experiments

.PHONY: help setup check test test-device test-long torture-smoke build demo experiments experiments-smoke benchmark-smoke clean

help:
	@echo "make demo    the main job, end to end, into out/demo (DEMO_ARGS=... for more flags)"
	@echo "make test    all tests"
	@echo "make test-device   the GPU path on a stand-in for CUDA (tools/stand_in)"
	@echo "make check   machine paths, words, constants of the docs, format, walls between crates, clippy"
	@echo "make build   the program: vlm-r1, and vlm-r1-engine beside it"
	@echo "make setup   libtorch into .libtorch (the others call it)"
	@echo "make experiments   the paper's studies in small, into out/experiments: one to two hours on two cores (EXPERIMENT_ARGS=... for one of them)"
	@echo "make experiments-smoke   a few steps of one of them"
	@echo "make benchmark-smoke   tiny steps of the benchmarks (benchmarks/README.md)"
	@echo "make torture-smoke   kills, faults and fuzz for a minute (docs/reliability.md)"
	@echo "make test-long   the same for an hour (TORTURE_ARGS=... for another time or seed), and the tests that are left out of CI"
	@echo "make clean   remove what was built; .libtorch stays"

setup:
	@export LIBTORCH='$(LIBTORCH)'; $(XTASK) libtorch

check: setup
	@$(XTASK) check

test: setup
	$(CARGO) test --release --workspace

# The programs that `make build` or `make test` left.
test-device: setup
	@test -x $(TARGET)/release/vlm-r1 -a -x $(TARGET)/release/vlm-r1-engine || $(MAKE) build
	$(XTASK) test-device

build: setup
	$(CARGO) build --release --bin vlm-r1 --bin vlm-r1-engine

demo: build
	$(CARGO) run --quiet --release --bin vlm-r1 -- demo --out out/demo $(DEMO_ARGS)

experiments: build
	$(EXPERIMENTS) $(EXPERIMENT_ARGS)

# A folder of its own each time: finished runs would not be done again.
experiments-smoke: setup
	@test -x $(TARGET)/release/vlm-r1 -a -x $(TARGET)/release/vlm-r1-engine || $(MAKE) build
	rm -rf $(TARGET)/experiments-smoke
	$(EXPERIMENTS) data-quality thinking --quick --seeds 1 --out $(TARGET)/experiments-smoke --binary $(TARGET)/release/vlm-r1

# The programs that `make build` or `make test` left, so that CI does not build it a second time.
benchmark-smoke: setup
	@test -x $(TARGET)/release/vlm-r1 -a -x $(TARGET)/release/vlm-r1-engine || $(MAKE) build
	@python3 -m pip install --quiet --disable-pip-version-check --upgrade --target $(TARGET)/benchmark-python -r benchmarks/requirements-smoke.txt
	PYTHONPATH=$(TARGET)/benchmark-python python3 benchmarks/grpo_step.py --smoke --binary $(TARGET)/release/vlm-r1
	PYTHONPATH=$(TARGET)/benchmark-python python3 benchmarks/grpo_step.py --smoke --family qwen3_vl --binary $(TARGET)/release/vlm-r1
	PYTHONPATH=$(TARGET)/benchmark-python benchmarks/gpu.sh --rehearse --binary $(TARGET)/release/vlm-r1

# The programs that `make build` or `make test` left.
torture-smoke: setup
	@test -x $(TARGET)/release/vlm-r1 -a -x $(TARGET)/release/vlm-r1-engine || $(MAKE) build
	$(XTASK) torture --minutes 1

# Tests in modules named `long`, on the CPU and on the stand-in, and what `test-device` leaves out.
test-long: build
	$(CARGO) test --release --workspace -- --ignored long::
	$(XTASK) test-device --long
	$(XTASK) torture $(TORTURE_ARGS)

clean:
	$(CARGO) clean
