# What one does here. Everything is in the scripts: tests/install, tests/guest/build, tests/demo, tests/run, .ci/run.

.PHONY: help demo demo-down demo-drivers demo-drivers-down test lint bench chaos fuzz sim install guest

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1 \t/p' $(MAKEFILE_LIST) | expand -t 12

demo: install guest ## three controllers, three hosts, six real guests, on this machine; leaves them running
	cargo build --locked --release
	tests/demo

demo-down: ## remove every process, namespace and file of the demo
	tests/demo down

demo-drivers: guest ## a QEMU, a libvirt, a container and a user mode host in one fleet, by the same verbs; as root
	@tests/install drivers
	cargo build --locked --release
	tests/demo-drivers

demo-drivers-down: ## remove every process and file of that demo
	tests/demo-drivers down

test: ## every test, the ones with real guests included
	tests/run

lint: ## formatting, clippy, dependencies
	tests/lint

bench: install guest ## the numbers of docs/PERFORMANCE.md
	@tests/install bench
	cargo build --locked --release
	cargo bench --locked --package dunlin-tests

chaos: install ## kill, stop and cut off controllers and agents under load for MINUTES=15, then look what is lost; as root
	cargo build --locked --release
	cargo bench --locked --package dunlin-tests -- chaos

fuzz: install ## every reader of bytes from outside against mutated files, for MINUTES (20)
	FUZZ_MINUTES=$(or $(MINUTES),20) cargo test --locked --release --package dunlin-tests --test fuzz

sim: install ## the fleet simulated, everything breaking that can: SEEDS=10000 runs, FROM=1 the first
	DUNLIN_SIM_SEEDS=$(or $(SEEDS),10000) DUNLIN_SIM_SEED=$(or $(FROM),1) \
		cargo test --locked --release --package dunlin-tests --test sim whatever_breaks -- --nocapture

install: ## what is missing on this machine
	@tests/install

guest: install ## the small Debian guest, in target/guest
	@tests/guest/build
