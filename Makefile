# SPDX-License-Identifier: Apache-2.0
# The only build file. `make help` lists what it can do.
#
# Objects live in build/<configuration>/: release (default), test (address + undefined sanitizers), tsan, cover.

VERSION := 0.2.0
CONFIG  ?= release
CC      ?= cc
B       := build/$(CONFIG)
# V=1 shows the commands.
Q       := $(if $(V),,@)
say      = $(if $(V),,@printf '  %-4s %s\n' $(1) $@)

# Warnings are errors with WERROR=1 (CI sets it).
WARN    := -Wall -Wextra -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla -Wundef -Wwrite-strings
WARN    += $(if $(findstring clang,$(CC)),-Wshadow,-Wshadow=local) $(if $(WERROR),-Werror)
HARDEN  := -fstack-protector-strong -fPIE
LDHARD  := -pie -Wl,-z,relro,-z,now

CFLAGS_release := -O2 -g -D_FORTIFY_SOURCE=2
CFLAGS_test    := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
CFLAGS_tsan    := -O1 -g -fsanitize=thread -fno-omit-frame-pointer
CFLAGS_cover   := -O0 -g --coverage -fprofile-update=atomic
LDFLAGS_test   := -fsanitize=address,undefined
LDFLAGS_tsan   := -fsanitize=thread
LDFLAGS_cover  := --coverage

ALL_CFLAGS = -std=c11 -D_GNU_SOURCE $(WARN) $(HARDEN) $(CFLAGS_$(CONFIG)) -Ilib -Iproto -Iserver -MMD -MP $(CFLAGS)
# lib: IEEE arithmetic as written, so that every level gives the same bits (no contraction, never -ffast-math).
LIB_CFLAGS    := -fno-math-errno -fno-trapping-math -ffp-contract=off
KERNEL_CFLAGS := $(LIB_CFLAGS) $(if $(filter release,$(CONFIG)),-O3)
ifeq (,$(findstring clang,$(CC)))
KERNEL_CFLAGS += -falign-loops=64 -fno-tree-loop-distribution -fno-tree-loop-distribute-patterns
endif
LEVELS        := baseline $(if $(filter x86_64 amd64,$(shell uname -m)),avx2 avx512)
AVX2_CFLAGS   := -mavx2 -mtune=haswell
AVX512_CFLAGS := -mavx2 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512 -mtune=icelake-client

LIB_OBJ    := $(patsubst %.c,$(B)/%.o,$(filter-out lib/cpu_simd.c lib/cuda.c,$(wildcard lib/*.c))) \
              $(LEVELS:%=$(B)/lib/cpu_simd_%.o)
PROTO_OBJ  := $(patsubst %.c,$(B)/%.o,$(wildcard proto/*.c))
SERVER_OBJ := $(patsubst %.c,$(B)/%.o,$(wildcard server/*.c))
ARCHIVES   := $(B)/libproto.a $(B)/libboxloss.a
LDLIBS     := -lmicrohttpd -ljansson -lsqlite3 -lz -lm -lpthread

UNIT    := $(patsubst tests/unit/%.c,$(B)/unit/%,$(wildcard tests/unit/test_*.c))
KERNELS := $(B)/kernels/harness
GOLDEN  := $(B)/golden/golden
C_FILES := $(wildcard lib/*.[ch] lib/loss/*.h proto/*.[ch] server/*.[ch] tests/*/*.[ch])

.PHONY: all run demo test check unit golden kernels e2e e2e-kill e2e-clients deploy-check screenshot tsan bench bench-peers cover layers \
        lint format format-check install docker clean help deps-build deps-demo deps-test deps-bench deps-bench-peers deps-clients deps-lint
.SECONDARY:
.DELETE_ON_ERROR:

all: build/lossd ## build the daemon: build/lossd

build/lossd: build/release/lossd
	@ln -sf release/lossd $@

# ---- what the machine needs -------------------------------------------------------------------------------------

deps-build deps-demo deps-test deps-bench deps-bench-peers deps-clients deps-lint:
	@DYGRAPHS=$(DYGRAPHS) deploy/deps $(@:deps-%=%)

# ---- compile ----------------------------------------------------------------------------------------------------

$(B)/lib/cpu_simd_baseline.o: lib/cpu_simd.c | deps-build
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CC) $(ALL_CFLAGS) $(KERNEL_CFLAGS) -DBX_LEVEL=baseline -c $< -o $@
$(B)/lib/cpu_simd_avx2.o: lib/cpu_simd.c | deps-build
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CC) $(ALL_CFLAGS) $(KERNEL_CFLAGS) $(AVX2_CFLAGS) -DBX_LEVEL=avx2 -c $< -o $@
$(B)/lib/cpu_simd_avx512.o: lib/cpu_simd.c | deps-build
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CC) $(ALL_CFLAGS) $(KERNEL_CFLAGS) $(AVX512_CFLAGS) -DBX_LEVEL=avx512 -c $< -o $@
$(patsubst %,$(B)/lib/%.o,cpu ref assign gradients): $(B)/lib/%.o: lib/%.c | deps-build
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CC) $(ALL_CFLAGS) $(KERNEL_CFLAGS) -c $< -o $@
$(B)/lib/%.o: lib/%.c | deps-build
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CC) $(ALL_CFLAGS) $(LIB_CFLAGS) -c $< -o $@
# What the binary holds: our own pages, and the charts of Debian's libjs-dygraphs.
DYGRAPHS ?= /usr/share/javascript/dygraphs
DYGRAPH_FILES := $(DYGRAPHS)/dygraph.min.js $(DYGRAPHS)/dygraph.min.css
$(B)/server/assets.o: proto/openapi.yaml $(wildcard server/web/*) $(DYGRAPH_FILES)
$(B)/server/assets.o: ALL_CFLAGS += -DDYGRAPHS='"$(DYGRAPHS)"'
$(DYGRAPH_FILES): | deps-build
	@test -r $@ || { echo "lossd: $@ is not there: install libjs-dygraphs, or say DYGRAPHS=DIRECTORY" >&2; exit 1; }
$(B)/%.o: %.c | deps-build
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CC) $(ALL_CFLAGS) -DLOSSD_VERSION='"$(VERSION)"' -c $< -o $@

$(B)/libboxloss.a: $(LIB_OBJ)
	@rm -f $@
	$(call say,AR)
	$(Q)$(AR) rcs $@ $^
$(B)/libproto.a: $(PROTO_OBJ)
	@rm -f $@
	$(call say,AR)
	$(Q)$(AR) rcs $@ $^
$(B)/lossd: $(SERVER_OBJ) $(ARCHIVES)
	$(call say,LD)
	$(Q)$(CC) $(LDHARD) $(LDFLAGS_$(CONFIG)) $(LDFLAGS) $^ $(LDLIBS) -o $@

# The allocation-failure suite holds the whole daemon but main() and makes our own allocations fail by index.
$(B)/unit/test_alloc: $(B)/tests/unit/test_alloc.o $(filter-out $(B)/server/main.o,$(SERVER_OBJ)) $(ARCHIVES)
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CC) $(LDHARD) $(LDFLAGS_$(CONFIG)) $(LDFLAGS) $^ -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc \
	    -Wl,--wrap=aligned_alloc,--wrap=strdup,--wrap=mmap $(LDLIBS) -lcheck -lsubunit -lrt -o $@
$(B)/unit/%: $(B)/tests/unit/%.o $(filter-out $(B)/server/main.o,$(SERVER_OBJ)) $(ARCHIVES)
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CC) $(LDHARD) $(LDFLAGS_$(CONFIG)) $(LDFLAGS) $^ $(LDLIBS) -lcheck -lsubunit -lrt -o $@
$(B)/kernels/%: $(B)/tests/kernels/%.o $(ARCHIVES)
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CC) $(LDHARD) $(LDFLAGS_$(CONFIG)) $(LDFLAGS) $^ $(LDLIBS) -o $@
$(B)/golden/%: $(B)/tests/golden/%.o $(ARCHIVES)
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CC) $(LDHARD) $(LDFLAGS_$(CONFIG)) $(LDFLAGS) $^ $(LDLIBS) -o $@
$(B)/bench/%: $(B)/tests/bench/%.o $(ARCHIVES)
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CC) $(LDHARD) $(LDFLAGS_$(CONFIG)) $(LDFLAGS) $^ $(LDLIBS) -o $@

# ---- use --------------------------------------------------------------------------------------------------------

run: all ## start the daemon on 127.0.0.1:8080
	@deploy/run build/lossd

demo: deps-demo all ## post a real batch to a daemon of its own and show the loss and the assignment
	@deploy/demo build/lossd

install: all ## install the daemon under DESTDIR and PREFIX (/usr/local)
	install -D -m 755 build/release/lossd $(DESTDIR)$(PREFIX)/bin/lossd
PREFIX ?= /usr/local

docker: ## build the container image, with docker, podman or buildah
	@deploy/build-image.sh

# ---- test -------------------------------------------------------------------------------------------------------

# Every suite prints 'N passed, N failed'; tests/run adds them up.
test: ## build with address and undefined-behaviour sanitizers and run every test
	@$(MAKE) --no-print-directory CONFIG=test check
check: deps-test $(B)/lossd $(UNIT) $(KERNELS) $(GOLDEN)
	@LOSSD=$(B)/lossd tests/run $(UNIT) $(KERNELS) $(GOLDEN) tests/golden/sources tests/e2e/run.py
unit: deps-test $(UNIT) ## unit suites only
	@tests/run $(UNIT)
kernels: deps-test $(KERNELS) ## every kernel level against the reference, stage by stage
	@tests/run $(KERNELS)
golden: deps-test $(GOLDEN) ## independent float64 and PyTorch numbers, and these made again
	@tests/run $(GOLDEN) tests/golden/sources
e2e: deps-test $(B)/lossd ## the real daemon over the wire
	@LOSSD=$(B)/lossd tests/run tests/e2e/run.py
e2e-kill: deps-test $(B)/lossd ## kill it under load TRIALS times (100): what was acknowledged is there
	@LOSSD=$(B)/lossd /usr/bin/python3 tests/support/kill.py
# The protocol's own client; not part of `test`, which needs nothing but Debian's packages.
e2e-clients: deps-clients $(B)/lossd build/clients/.ready ## Triton's client from PyPI against the real daemon
	@LOSSD=$(B)/lossd build/clients/bin/python tests/clients/triton.py
build/clients/.ready: | deps-clients
	/usr/bin/python3 -m venv build/clients
	build/clients/bin/pip install -q 'tritonclient[http]' ml_dtypes
	@touch $@
# The schemas come with packages from PyPI too.
deploy-check: deps-clients build/deploy/.ready ## what deploy/ holds against the schemas of Kubernetes, Compose and Grafana
	@build/deploy/bin/python tests/deploy/schemas.py
build/deploy/.ready: | deps-clients
	/usr/bin/python3 -m venv build/deploy
	build/deploy/bin/pip install -q compose-spec grafana-foundation-sdk kubernetes-validate
	@touch $@
screenshot: deps-test build/lossd ## train for a minute before the dashboard, and take README's picture of it
	@SCREENSHOT=deploy/dashboard.png LOSSD=build/lossd /usr/bin/python3 tests/e2e/run.py test_a_real_training
tsan: ## the same tests under the thread sanitizer
	@$(MAKE) --no-print-directory CONFIG=tsan check
cover: ## line and branch coverage of lib, proto and server
	@$(MAKE) --no-print-directory CONFIG=cover check
	@deploy/deps cover && gcovr --root . --filter lib/ --filter proto/ --filter server/ build/cover

BENCH := $(patsubst tests/bench/%.c,$(B)/bench/%,$(wildcard tests/bench/*.c))
bench: deps-bench all $(BENCH) ## ratios against named peers; PARTS="compute wire" runs only these
	@tests/bench/bench.py $(PARTS)
bench-peers: deps-bench deps-bench-peers all $(BENCH) build/peers/.ready ## and against today's PyTorch and FastAPI
	@tests/bench/bench.py --peers $(PARTS)
# The CPU wheel where PyTorch's own index can be reached, else PyPI's, which brings CUDA's libraries unused.
build/peers/.ready: | deps-bench-peers
	/usr/bin/python3 -m venv build/peers
	build/peers/bin/pip install -q --retries 0 --index-url https://download.pytorch.org/whl/cpu torch 2>/dev/null || \
	    build/peers/bin/pip install -q torch
	build/peers/bin/pip install -q numpy fastapi uvicorn httptools uvloop
	@touch $@

# ---- keep -------------------------------------------------------------------------------------------------------

layers: $(ARCHIVES) ## check on the built archives that no layer reaches upwards
	@tests/support/layers $(B)
lint: deps-lint ## cppcheck and shellcheck
	@cppcheck --quiet --error-exitcode=1 --std=c11 --enable=warning,performance,portability --inline-suppr \
	    --suppress=missingIncludeSystem --suppress=toomanyconfigs --max-configs=1 -Ilib -Iproto -Iserver lib proto server
	@shellcheck deploy/deps deploy/run deploy/build-image.sh tests/run tests/support/layers tests/golden/sources .ci/run
format: deps-lint ## format every C file
	@clang-format -i $(C_FILES)
format-check: deps-lint
	@clang-format --dry-run -Werror $(C_FILES)

clean: ## remove everything that was built
	rm -rf build

help: ## list the targets
	@awk -F': .*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

-include $(shell find build/$(CONFIG) -name '*.d' 2>/dev/null)
