# SPDX-License-Identifier: Apache-2.0
# The only build file. `make help` lists what it can do.
#
# Objects live in build/<configuration>/: release (default), test (address + undefined sanitizers), tsan, cover, fuzz.

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
LDHARD  := -pie -Wl,-z,relro,-z,now,-z,noexecstack

# What of it this compiler knows is asked when the first file is compiled: before, there may be none here.
harder   = $(foreach f,-fstack-clash-protection -fcf-protection -mbranch-protection=standard -ftrivial-auto-var-init=zero,\
             $(shell $(CC) -Werror $(f) -x c -c /dev/null -o /dev/null 2>/dev/null && echo $(f)))
HARDER   = $(eval HARDER := $(harder))$(HARDER)
# The same source makes the same bits wherever it lies: compilers write down where they were started.
export PWD := $(CURDIR)
CFLAGS_release = -O2 -g -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3 '-ffile-prefix-map=$(CURDIR)=.' $(HARDER)
CFLAGS_test    := -O1 -g -fsanitize=address,undefined -fsanitize=float-cast-overflow -fno-sanitize-recover=all -fno-omit-frame-pointer
CFLAGS_tsan    := -O1 -g -fsanitize=thread -fno-omit-frame-pointer
CFLAGS_cover   := -O0 -g --coverage -fprofile-update=atomic
# libFuzzer is told of comparisons where an input is read, which is not in arithmetic nor in the tests.
CFLAGS_fuzz    := -O1 -g -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
UNTOLD         := $(if $(filter fuzz,$(CONFIG)),-fno-sanitize-coverage=trace-cmp)
LDFLAGS_test   := -fsanitize=address,undefined
LDFLAGS_tsan   := -fsanitize=thread
LDFLAGS_cover  := --coverage
LDFLAGS_fuzz   := -fsanitize=fuzzer,address,undefined

ALL_CFLAGS = -std=c11 -D_GNU_SOURCE $(WARN) $(HARDEN) $(CFLAGS_$(CONFIG)) -Ilib -Iproto -Iserver -MMD -MP $(CFLAGS)
# lib: IEEE arithmetic as written, so that every level gives the same bits (no contraction, never -ffast-math).
LIB_CFLAGS    := -fno-math-errno -fno-trapping-math -ffp-contract=off $(UNTOLD)
# Their scratch rows are filled before they are read; to clear them first costs AVX2 a tenth.
KERNEL_CFLAGS = $(LIB_CFLAGS) $(if $(filter release,$(CONFIG)),-O3 $(patsubst %=zero,%=uninitialized,$(filter -ftrivial%,$(HARDER))))
ifeq (,$(findstring clang,$(CC)))
KERNEL_CFLAGS += -falign-loops=64 -fno-tree-loop-distribution -fno-tree-loop-distribute-patterns
endif
LEVELS        := baseline $(if $(filter x86_64 amd64,$(shell uname -m)),avx2 avx512)
AVX2_CFLAGS   := -mavx2 -mtune=haswell
AVX512_CFLAGS := -mavx2 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512 -mtune=icelake-client

# CUDA where there is an nvcc, in PATH or in the toolkit's usual place; `make NVCC=` leaves it out.
ifeq ($(origin NVCC),undefined)
NVCC := $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
endif
ifneq (,$(NVCC))
CUDA_HOME   := $(patsubst %/bin/,%,$(dir $(shell command -v $(NVCC))))
CUDA_CFLAGS := $(if $(filter-out /usr,$(CUDA_HOME)),-isystem $(CUDA_HOME)/include) -DBX_CUDA
CUDA_OBJ    := $(patsubst lib/%.cu,build/cuda/%.o,$(wildcard lib/*.cu))
CUDA_LIBS   := $(addprefix -L,$(firstword $(wildcard $(CUDA_HOME)/lib64 $(CUDA_HOME)/targets/*/lib))) \
               -lcudart_static -ldl -lrt -lpthread
# Code for these where nvcc knows them (sm_80 also runs on 8.x, and so on), and PTX of the last for what is newer.
CUDA_CODE    = $(filter $(shell $(NVCC) --list-gpu-code),sm_75 sm_80 sm_90 sm_100)
CUDA_LAST    = $(patsubst sm_%,compute_%,$(lastword $(CUDA_CODE)))
# IEEE arithmetic as written, as for the levels. Device functions of the host half are stubs: no C++ runtime.
CUDA_FLAGS  := -std=c++17 -O3 --fmad=false --ftz=false --prec-div=true --prec-sqrt=true -Ilib
NVCC_FLAGS   = $(CUDA_FLAGS) $(foreach code,$(CUDA_CODE),-gencode arch=$(code:sm_%=compute_%),code=$(code)) \
               -gencode arch=$(CUDA_LAST),code=$(CUDA_LAST) $(if $(WERROR),-Werror all-warnings) --threads 2 \
               $(shell $(NVCC) --help | grep -q compress-mode && echo --compress-mode=size) \
               -Xcompiler -fPIE,-fstack-protector-strong,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics
# Names of functions hold the source's path and names of files a process id, unless nvcc is told otherwise.
NVCC_SAME    = -Xcudafe --orig_src_path_name=$< --objdir-as-tempdir
endif

# The host half of the cuda backend.
CUDA_C     := cuda cuda_job
LIB_C      := $(filter-out lib/cpu_simd.c $(if $(NVCC),,$(CUDA_C:%=lib/%.c)),$(wildcard lib/*.c))
LIB_OBJ    := $(patsubst %.c,$(B)/%.o,$(LIB_C)) $(LEVELS:%=$(B)/lib/cpu_simd_%.o) $(CUDA_OBJ)
PROTO_OBJ  := $(patsubst %.c,$(B)/%.o,$(wildcard proto/*.c))
SERVER_OBJ := $(patsubst %.c,$(B)/%.o,$(wildcard server/*.c))
ARCHIVES   := $(B)/libproto.a $(B)/libboxloss.a
LDLIBS     := $(CUDA_LIBS) -lmicrohttpd -lgnutls -ljansson -lsqlite3 -lz -lm -lpthread

UNIT    := $(patsubst tests/unit/%.c,$(B)/unit/%,$(wildcard tests/unit/test_*.c)) \
           $(patsubst tests/unit/%.cc,$(B)/unit/%,$(wildcard tests/unit/test_*.cc))
KERNELS := $(B)/kernels/harness $(B)/kernels/cuda $(B)/kernels/cuda-emulated
# Not under the thread sanitizer, where the emulated device is slow: it judges numbers, and kernels/cuda-emulated races.
GOLDEN  := $(B)/golden/golden $(if $(filter tsan,$(CONFIG)),,$(B)/golden/golden-emulated)
PTX     := $(if $(NVCC),tests/support/ptx)
FUZZERS := $(filter-out replay planted,$(patsubst tests/fuzz/%.c,%,$(wildcard tests/fuzz/*.c)))
FUZZ    := $(FUZZERS:%=$(B)/fuzz/fuzz_%)
C_FILES := $(wildcard lib/*.[ch] lib/loss/*.h proto/*.[ch] server/*.[ch] tests/*/*.[ch] tests/*/*/*.h lib/*.cu \
           tests/*/*.cc tests/*/*/*.cc)

.PHONY: FORCE all run demo test check unit golden kernels fuzz fuzz-regress fuzz-corpus fuzz-planted e2e e2e-kill e2e-slow e2e-clients deploy-check screenshot tsan bench bench-peers cover layers \
        lint format format-check install docker sbom audit reproducible clean help deps-build deps-demo deps-test deps-bench deps-bench-peers deps-clients deps-fuzz deps-lint
.SECONDARY:
.DELETE_ON_ERROR:

all: build/lossd ## build the daemon: build/lossd
	@$(if $(NVCC),,echo "no nvcc: the daemon is built for the CPU only")

build/lossd: build/release/lossd
	@ln -sf release/lossd $@

# ---- what the machine needs -------------------------------------------------------------------------------------

deps-build deps-demo deps-test deps-bench deps-bench-peers deps-clients deps-fuzz deps-lint:
	@DYGRAPHS=$(DYGRAPHS) NVCC=$(NVCC) deploy/deps $(@:deps-%=%)

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
# Made again when there is another nvcc, or none any more.
$(B)/nvcc: FORCE
	@mkdir -p $(@D)
	@echo '$(NVCC)' | cmp -s - $@ || echo '$(NVCC)' >$@
FORCE:
$(patsubst %,$(B)/lib/%.o,backend $(CUDA_C)): ALL_CFLAGS += $(CUDA_CFLAGS)
$(B)/lib/backend.o $(B)/libboxloss.a: $(B)/nvcc
# The same in every configuration.
build/cuda/%.o: lib/%.cu | deps-build
	@mkdir -p $(@D)
	$(call say,NVCC)
	$(Q)$(NVCC) $(NVCC_FLAGS) $(NVCC_SAME) -MMD -MP -MF $(@:.o=.d) -c $< -o $@
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
	$(Q)$(AR) rcs $@ $(LIB_OBJ)
$(B)/libproto.a: $(PROTO_OBJ)
	@rm -f $@
	$(call say,AR)
	$(Q)$(AR) rcs $@ $^
$(B)/lossd: $(SERVER_OBJ) $(ARCHIVES)
	$(call say,LD)
	$(Q)$(CC) $(LDHARD) $(LDFLAGS_$(CONFIG)) $(LDFLAGS) $^ $(LDLIBS) -o $@
# With bugs on purpose, for tests/e2e/test_detectors.py.
$(B)/planted: $(B)/tests/support/plants.o $(SERVER_OBJ) $(ARCHIVES)
	$(call say,LD)
	$(Q)$(CC) $(LDHARD) $(LDFLAGS_$(CONFIG)) $(LDFLAGS) $^ -Wl,--wrap=head_check,--wrap=answer_problem \
	    -Wl,--wrap=request_abandon,--wrap=history_write $(LDLIBS) -o $@

# The allocation-failure suite holds the whole daemon but main() and makes our own allocations fail by index.
$(B)/unit/test_alloc: $(B)/tests/unit/test_alloc.o $(filter-out $(B)/server/main.o,$(SERVER_OBJ)) $(ARCHIVES)
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CC) $(LDHARD) $(LDFLAGS_$(CONFIG)) $(LDFLAGS) $^ -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc \
	    -Wl,--wrap=aligned_alloc,--wrap=strdup,--wrap=mmap $(LDLIBS) -lcheck -lsubunit -lrt -o $@
# Likewise threads, clocks and file systems.
$(B)/unit/test_faults: LDFLAGS += -Wl,--wrap=pthread_create,--wrap=clock_gettime,--wrap=statfs
# This one puts itself between the daemon and what the library knows of devices.
DEVICE_CALLS := bx_devices bx_devices_lost bx_plan_device_bytes bx_context_open $(addprefix bx_job_,begin feed run rows end)
$(B)/unit/test_device: LDFLAGS += $(DEVICE_CALLS:%=-Wl,--wrap=%)
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
# A fuzz target is libFuzzer's where there is one, else it has a main that replays what is kept.
$(B)/libserver.a: $(filter-out $(B)/server/main.o,$(SERVER_OBJ))
	@rm -f $@
	$(call say,AR)
	$(Q)$(AR) rcs $@ $^
$(B)/tests/fuzz/%.o: ALL_CFLAGS += $(UNTOLD)
FUZZ_MAIN := $(if $(filter fuzz,$(CONFIG)),,$(B)/tests/fuzz/replay.o)
$(B)/fuzz/fuzz_planted: $(B)/tests/fuzz/scan.o $(B)/tests/fuzz/planted.o $(FUZZ_MAIN) $(ARCHIVES)
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CC) $(LDHARD) $(LDFLAGS_$(CONFIG)) $(LDFLAGS) $^ -Wl,--wrap=proto_number_read $(LDLIBS) -o $@
$(B)/fuzz/fuzz_%: $(B)/tests/fuzz/%.o $(FUZZ_MAIN) $(B)/libserver.a $(ARCHIVES)
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CC) $(LDHARD) $(LDFLAGS_$(CONFIG)) $(LDFLAGS) $^ $(LDLIBS) -o $@
$(B)/bench/%: $(B)/tests/bench/%.o $(B)/libserver.a $(ARCHIVES)
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CC) $(LDHARD) $(LDFLAGS_$(CONFIG)) $(LDFLAGS) $^ $(LDLIBS) -o $@

# ---- the emulated device ----------------------------------------------------------------------------------------

# The same library, daemon and tests on a device that is none: tests/support/emulated stands for the toolkit and the
# driver, and g++ compiles the kernels. Sanitizers do not look at the scheduler of threads, which tells them what it does.
COMMA        := ,
E            := $(B)/emulated
EMULATED     := -Itests/support/emulated
EMULATED_LIBS := $(filter-out $(CUDA_LIBS),$(LDLIBS)) -lpthread
EMULATED_LIB := $(B)/libproto.a $(E)/libboxloss.a
ifeq ($(origin CXX),default)
CXX := $(if $(findstring clang,$(CC)),clang++,g++)
endif
CXX_WARN    := -Wall -Wextra -Wpointer-arith -Wvla -Wundef -Wwrite-strings $(if $(WERROR),-Werror)
CXX_FLAGS    = -std=c++17 -D_GNU_SOURCE $(CXX_WARN) $(HARDEN) -Ilib $(EMULATED) -MMD -MP $(CXXFLAGS)
CXX_DEVICE   = -x c++ -include cuda_runtime.h $(LIB_CFLAGS) -fno-strict-aliasing -Wno-unknown-pragmas $(CFLAGS_$(CONFIG))
$(patsubst %,$(E)/%.o,backend $(CUDA_C)): ALL_CFLAGS += $(EMULATED) -DBX_CUDA
$(patsubst %,$(E)/%.o,backend $(CUDA_C)): $(E)/%.o: lib/%.c | deps-test
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CC) $(ALL_CFLAGS) $(LIB_CFLAGS) -c $< -o $@
$(E)/%.o: lib/%.cu | deps-test
	@mkdir -p $(@D)
	$(call say,CXX)
	$(Q)$(CXX) $(CXX_FLAGS) $(CXX_DEVICE) -c $< -o $@
$(E)/runtime.o: tests/support/emulated/runtime.cc | deps-test
	@mkdir -p $(@D)
	$(call say,CXX)
	$(Q)$(CXX) $(CXX_FLAGS) $(CFLAGS_$(CONFIG)) -c $< -o $@
$(E)/device.o: tests/support/emulated/device.cc | deps-test
	@mkdir -p $(@D)
	$(call say,CXX)
	$(Q)$(CXX) $(CXX_FLAGS) $(subst -fsanitize=thread,-DEMULATED_TSAN,\
	    $(subst -fsanitize=address$(COMMA)undefined,-DEMULATED_ASAN,$(CFLAGS_$(CONFIG)))) -O2 -c $< -o $@
$(E)/test_emulated.o: tests/unit/test_emulated.cc | deps-test
	@mkdir -p $(@D)
	$(call say,CXX)
	$(Q)$(CXX) $(CXX_FLAGS) $(CXX_DEVICE) -c $< -o $@
EMULATED_OBJ := $(filter-out $(patsubst %,$(B)/lib/%.o,backend $(CUDA_C)) $(CUDA_OBJ),$(LIB_OBJ)) \
                $(patsubst %,$(E)/%.o,backend $(CUDA_C) runtime device) $(patsubst lib/%.cu,$(E)/%.o,$(wildcard lib/*.cu))
$(E)/libboxloss.a: $(EMULATED_OBJ)
	@rm -f $@
	$(call say,AR)
	$(Q)$(AR) rcs $@ $^
$(B)/lossd-emulated: $(SERVER_OBJ) $(EMULATED_LIB)
	$(call say,LD)
	$(Q)$(CXX) $(LDHARD) $(LDFLAGS_$(CONFIG)) $(LDFLAGS) $^ $(EMULATED_LIBS) -o $@
$(B)/kernels/%-emulated: $(B)/tests/kernels/%.o $(EMULATED_LIB)
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CXX) $(LDHARD) $(LDFLAGS_$(CONFIG)) $(LDFLAGS) $^ $(EMULATED_LIBS) -o $@
$(B)/golden/%-emulated: $(B)/tests/golden/%.o $(EMULATED_LIB)
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CXX) $(LDHARD) $(LDFLAGS_$(CONFIG)) $(LDFLAGS) $^ $(EMULATED_LIBS) -o $@
$(B)/unit/test_cuda: $(B)/tests/unit/test_cuda.o $(EMULATED_LIB)
$(B)/unit/test_emulated: $(E)/test_emulated.o $(E)/runtime.o $(E)/device.o
$(B)/unit/test_cuda $(B)/unit/test_emulated:
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CXX) $(LDHARD) $(LDFLAGS_$(CONFIG)) $(LDFLAGS) $^ $(EMULATED_LIBS) -lcheck -lsubunit -lrt -o $@

# ---- use --------------------------------------------------------------------------------------------------------

run: all ## start the daemon on 127.0.0.1:8080
	@deploy/run build/lossd

demo: deps-demo all ## post a real batch to a daemon of its own and show the loss and the assignment
	@deploy/demo build/lossd

install: all ## install the daemon under DESTDIR and PREFIX (/usr/local)
	install -D -m 755 build/release/lossd $(DESTDIR)$(PREFIX)/bin/lossd
PREFIX ?= /usr/local

docker: ## build the container image, with docker, podman or buildah, from BASE
	@SOURCE_DATE_EPOCH=$(EPOCH) BASE=$(BASE) deploy/build-image.sh
# The date of what is built from a commit is the commit's.
EPOCH = $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct 2>/dev/null))

sbom: all ## say what the daemon consists of, as SPDX: build/lossd.spdx.json
	@NVCC=$(NVCC) SOURCE_DATE_EPOCH=$(EPOCH) deploy/sbom build/release/lossd >build/lossd.spdx.new
	@mv build/lossd.spdx.new build/lossd.spdx.json
	@echo build/lossd.spdx.json
audit: sbom ## fail when apt has newer packages of what the daemon loads
	@deploy/audit build/lossd.spdx.json
reproducible: deps-build ## build the daemon twice, in two places: the same bits
	@MAKE="$(MAKE)" tests/support/reproducible

# ---- test -------------------------------------------------------------------------------------------------------

# Every suite prints 'N passed, N failed'; tests/run adds them up.
test: all ## build with address and undefined-behaviour sanitizers and run every test; and look at the daemon's hardening
	@$(MAKE) --no-print-directory CONFIG=test check
check: deps-test $(B)/lossd $(B)/lossd-emulated $(B)/planted $(UNIT) $(KERNELS) $(GOLDEN) $(FUZZ)
	@$(TEST_ENV) tests/run $(UNIT) $(KERNELS) $(PTX) $(GOLDEN) tests/golden/sources $(FUZZ) tests/e2e/run.py
TEST_ENV = LOSSD=$(B)/lossd LOSSD_EMULATED=$(B)/lossd-emulated NVCC=$(NVCC) \
           CUDA_FLAGS="$(CUDA_FLAGS)" HARNESS=$(B)/kernels/cuda
unit: deps-test $(UNIT) ## unit suites only
	@tests/run $(UNIT)
kernels: deps-test $(KERNELS) ## every kernel level and device against the reference; CUDA=require: a GPU too
	@$(TEST_ENV) tests/run $(KERNELS) $(PTX) $(SANITIZED)
# The toolkit's own checks of a real device.
SANITIZED = $(if $(filter require,$(CUDA)),tests/support/sanitized)
golden: deps-test $(GOLDEN) ## independent float64 and PyTorch numbers, and these made again
	@tests/run $(GOLDEN) tests/golden/sources
fuzz: deps-fuzz ## search for inputs that break TARGET, for SECONDS (300); without a TARGET, list them
ifeq (,$(TARGET))
	@echo $(FUZZERS)
else
	@$(MAKE) --no-print-directory CONFIG=fuzz CC=clang NVCC= build/fuzz/fuzz/fuzz_$(TARGET)
	@/usr/bin/python3 tests/fuzz/fuzz.py search $(TARGET) $(or $(SECONDS),300)
endif
fuzz-regress: deps-test $(FUZZ) ## what fuzzing has found interesting, again, without libFuzzer
	@tests/run $(FUZZ)
fuzz-corpus: deps-fuzz ## keep of what TARGET has found whatever reaches more
	@$(MAKE) --no-print-directory CONFIG=fuzz CC=clang NVCC= build/fuzz/fuzz/fuzz_$(TARGET)
	@/usr/bin/python3 tests/fuzz/fuzz.py keep $(TARGET)
fuzz-planted: deps-fuzz ## a bug that was planted on purpose must be found
	@$(MAKE) --no-print-directory CONFIG=fuzz CC=clang NVCC= build/fuzz/fuzz/fuzz_planted
	@/usr/bin/python3 tests/fuzz/fuzz.py planted
e2e: deps-test $(B)/lossd $(B)/lossd-emulated $(B)/planted ## the real daemon over the wire
	@$(TEST_ENV) tests/run tests/e2e/run.py
e2e-kill: deps-test $(B)/lossd ## kill it under load TRIALS times (100): what was acknowledged is there
	@LOSSD=$(B)/lossd /usr/bin/python3 tests/support/kill.py
e2e-slow: deps-test all ## 1,000 slow clients of each kind for 4 minutes, and what is hostile, against the release build
	@ATTACKERS=1000 SECONDS=240 LOSSD=build/lossd /usr/bin/python3 tests/e2e/run.py test_slow test_hostile
e2e-soak: deps-test all ## load for HOURS (24), a part of it hostile: nothing grows, nothing slows down
	@LOSSD=build/lossd /usr/bin/python3 tests/support/soak.py
# Clients from PyPI: the protocol's own, and one that asks whatever the OpenAPI document says may be asked, EXAMPLES (20) of
# each. Not part of `test`, which needs nothing but Debian's packages.
e2e-clients: deps-clients $(B)/lossd build/clients/.ready ## Triton's client and schemathesis (EXAMPLES of each kind: 20) against the real daemon
	@LOSSD=$(B)/lossd build/clients/bin/python tests/clients/triton.py
	@LOSSD=$(B)/lossd EXAMPLES=$(EXAMPLES) build/clients/bin/python tests/clients/conformance.py
build/clients/.ready: tests/clients/requirements.txt | deps-clients
	/usr/bin/python3 -m venv build/clients
	build/clients/bin/pip install -q -r $<
	@touch $@
# The schemas come with packages from PyPI too.
deploy-check: deps-clients build/deploy/.ready sbom ## what deploy/ holds against the schemas of Kubernetes, Compose, Grafana and SPDX
	@build/deploy/bin/python tests/deploy/schemas.py
build/deploy/.ready: tests/deploy/schemas.py | deps-clients
	/usr/bin/python3 -m venv build/deploy
	build/deploy/bin/pip install -q compose-spec grafana-foundation-sdk kubernetes-validate spdx-tools
	@touch $@
screenshot: deps-test build/lossd ## train for a minute before the dashboard, and take README's picture of it
	@SCREENSHOT=deploy/dashboard.png LOSSD=build/lossd /usr/bin/python3 tests/e2e/run.py test_a_real_training
tsan: all ## the same tests under the thread sanitizer
	@PATIENCE=120 $(MAKE) --no-print-directory CONFIG=tsan check
# Counting takes most of the time of a loop: greedy matching of hundreds takes 16 s on a processor of its own.
cover: ## line and branch coverage of lib, proto and server
	@find build/cover -name '*.gcda' -delete 2>/dev/null; PATIENCE=120 $(MAKE) --no-print-directory CONFIG=cover check
	@deploy/deps cover
	@for layer in lib proto server; do gcovr --root . --filter $$layer/ --print-summary build/cover || exit; done

BENCH := $(patsubst tests/bench/%.c,$(B)/bench/%,$(filter-out $(if $(NVCC),,%/gpu.c),$(wildcard tests/bench/*.c)))
$(B)/tests/bench/gpu.o: ALL_CFLAGS += $(CUDA_CFLAGS)
bench: deps-bench all $(BENCH) ## ratios against named peers; PARTS="compute gpu" runs only these
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
	@cppcheck --quiet --error-exitcode=1 --language=c++ --std=c++17 --enable=warning,performance,portability \
	    --inline-suppr --suppress=missingIncludeSystem --suppress=toomanyconfigs --max-configs=1 -D__x86_64__ \
	    $(EMULATED) -Ilib --include=tests/support/emulated/cuda_runtime.h lib/*.cu \
	    tests/support/emulated/*.cc
	@shellcheck deploy/deps deploy/run deploy/build-image.sh deploy/sbom deploy/audit tests/run tests/support/layers \
	    tests/support/ptx tests/support/sanitized tests/support/reproducible tests/golden/sources .ci/run
format: deps-lint ## format every C file
	@clang-format -i $(C_FILES)
format-check: deps-lint
	@clang-format --dry-run -Werror $(C_FILES)

clean: ## remove everything that was built
	rm -rf build

help: ## list the targets
	@awk -F': .*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

-include $(shell find build/$(CONFIG) build/cuda -name '*.d' 2>/dev/null)
