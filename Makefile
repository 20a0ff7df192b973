# SPDX-License-Identifier: Apache-2.0
#
# The front door; everything behind it is meson (build/) and tests/run-suites.
BUILD ?= build
BUILDTYPE ?= debugoptimized
# One migration as `make demo` shows it; give others to the bench in DEMO.
DEMO ?= --memory 1G --workload random --vcpus 2
REPORT ?= demo-report.html

C_FILES = $(shell find src include tests bpf -name '*.[ch]' | LC_ALL=C sort)

.PHONY: all deps demo test test-vm vmms chaos abuse model fuzz asan tsan lint install clean

all: $(BUILD)/build.ninja
	ninja -C $(BUILD)

$(BUILD)/build.ninja:
	tests/install-deps --check build
	meson setup --buildtype=$(BUILDTYPE) -Dwerror=true $(BUILD)

deps:
	tests/install-deps build build-optional run test

demo:
	tests/install-deps build build-optional run
	$(MAKE) all
	@echo "A real guest is migrated; its report, to open in a browser: $(abspath $(REPORT))"
	$(BUILD)/src/ctl/postcopyctl bench $(DEMO) --report $(REPORT)
	@echo "The report: file://$(abspath $(REPORT))"

test: deps
	tests/run-suites --build $(BUILD)

# In QEMU; POSTCOPYD_TEST_KERNEL_DIR names the directory of a kernel that can do guest_memfd
# with userfaultfd.
test-vm: deps
	tests/run-suites --build $(BUILD) vm

# The VMMs that people run: every version, memory and shape; `make test` has some of them.
vmms: deps
	POSTCOPYD_VMMS=all tests/run-suites --build $(BUILD) vmms

# Each kind of fault at 20 random points of a migration; `make test` has two of each.
chaos: deps
	POSTCOPYD_CHAOS_POINTS=20 tests/run-suites --build $(BUILD) chaos

# A guest among hostile VMMs, clients, peers and a source, for an hour, or POSTCOPYD_ABUSE_SECONDS;
# `make test` has 5 minutes of it.
abuse: deps
	POSTCOPYD_ABUSE_SECONDS=$${POSTCOPYD_ABUSE_SECONDS:-3600} tests/run-suites --build $(BUILD) abuse

# What may happen to a guest, all of it up to a bound: POSTCOPYD_MODEL_LUCK=1 lets one thing more go
# wrong than `make test` does, and takes some minutes and 2 GiB.
model: deps
	tests/run-suites --build $(BUILD) model

# Each parser of what comes from outside, FUZZ_RUNS times (10^8: some hours in all; docs/fuzzing.md). With
# FUZZ_SECONDS for so long at most; FUZZ names some of them.
fuzz:
	tests/install-deps build fuzz
	tests/run-fuzz --build $(BUILD)-fuzz $(FUZZ)

asan: deps
	tests/run-suites --build $(BUILD) unit-asan integration-asan

tsan: deps
	tests/run-suites --build $(BUILD) unit-tsan

lint: $(BUILD)/build.ninja
	tests/install-deps lint
	tests/check-includes
	clang-format --dry-run -Werror $(C_FILES)
	ninja -C $(BUILD)
	clang-tidy -p $(BUILD) --quiet $(filter src/%.c,$(C_FILES))

install: all
	meson install -C $(BUILD) --no-rebuild

clean:
	rm -rf $(BUILD) $(BUILD)-asan $(BUILD)-fuzz $(BUILD)-tsan $(REPORT)
