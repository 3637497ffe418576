# Makefile - builds igpt with nothing but a C compiler and make.
# SPDX-License-Identifier: MIT
#
#   make            the program, ./igpt
#   make test       all tests: in float, in double, on the plain routines, and with tiny blocks
#   make gradcheck  every gradient against central differences and against PyTorch;
#                   FILE=theirs.safetensors: someone else's gradients of the fixture against PyTorch's
#   make bench      what this machine reaches, against its own peak; CSV=FILE: into that file, too
#   make fuzz       strange files for every reader, FUZZ_SECONDS=1200; needs clang
#   make port-check every compiler and emulator that this machine has: data/port-check.sh
#   make check      sanitizers, valgrind and analysers, each where it is there: data/check.sh
#   make soak       kills, faults and resumes, MINUTES=5: data/soak.sh
#   make coverage   which lines of igpt.c the tests run: data/coverage.sh
#   make clean
#
# make ARCH= builds for any machine of this kind instead of this one; make OPENMP=-fopenmp-simd without
# threads; make PLAIN=-DIGPT_PLAIN on the plain routines. It is GNU make's; without any make:
#   cc -O3 -march=native -fopenmp igpt.c -lm -o igpt

CC ?= cc
ARCH ?= -march=native
CFLAGS ?= -O3
# On x86 of 32 bits: floats in registers of their own width, not in x87's.
X87 := $(shell echo '__FLT_EVAL_METHOD__' | $(CC) -E -x c - 2>/dev/null | grep '^2')
SSE := $(if $(X87),-msse2 -mfpmath=sse)
WARN = -Wall -Wextra -Wshadow -Wstrict-prototypes

# Does the compiler know this flag, and link with it, and with a second one that need not stay?
try = $(shell echo 'int main(void){return 0;}' | $(CC) $(1) $(2) -x c - -o /dev/null 2>/dev/null && echo $(1))

OPENMP := $(or $(call try,-fopenmp,-include omp.h),$(call try,-fopenmp-simd),-Wno-unknown-pragmas)
# Vectors as wide as the machine has (compilers shy away from 64 bytes of their own accord).
WIDE := $(call try,-mprefer-vector-width=512)
# sqrt need not set errno: gcc learns that from igpt.c, clang from here.
FLAGS := -std=gnu11 $(CFLAGS) $(call try,$(ARCH)) $(SSE) $(WIDE) -fno-math-errno $(WARN) $(OPENMP)
LIBRARY = $(FLAGS) -DIGPT_NO_MAIN -I.

igpt: igpt.c igpt.h .built-with
	$(CC) $(FLAGS) $(PLAIN) igpt.c -o $@ -lm

test_igpt: test_igpt.c igpt.c igpt.h .built-with
	$(CC) $(LIBRARY) test_igpt.c igpt.c -o $@ -lm

test_igpt_double: test_igpt.c igpt.c igpt.h .built-with
	$(CC) $(LIBRARY) -DIGPT_DOUBLE test_igpt.c igpt.c -o $@ -lm

test_igpt_plain: test_igpt.c igpt.c igpt.h .built-with
	$(CC) $(LIBRARY) -DIGPT_PLAIN test_igpt.c igpt.c -o $@ -lm

# All blocks tiny, so that their edges are met everywhere; in double, for central differences.
test_igpt_tiny: test_igpt.c igpt.c igpt.h .built-with
	$(CC) $(LIBRARY) -DIGPT_TINY -DIGPT_DOUBLE test_igpt.c igpt.c -o $@ -lm

# Another program, with igpt linked to it, and with igpt as a part of it.
example_linked: data/example.c igpt.c igpt.h .built-with
	$(CC) $(LIBRARY) data/example.c igpt.c -o $@ -lm

example_included: data/example.c igpt.c igpt.h .built-with
	$(CC) $(LIBRARY) -DIGPT_API=static -DIGPT_INCLUDE -Wno-unused-function data/example.c -o $@ -lm

# The program, of which a call of the system fails when it is told to: quickly built.
igpt_fault: igpt.c igpt.h data/fault.h .built-with
	$(CC) $(FLAGS) -O1 -include data/fault.h igpt.c -o $@ -lm

# Some tests run more threads than there are cores: those that wait should sleep.
test: igpt igpt_fault fuzz_replay example_linked example_included test_igpt test_igpt_double test_igpt_plain test_igpt_tiny
	@OMP_WAIT_POLICY=passive ./test_igpt ./test_igpt_double ./test_igpt_plain ./test_igpt_tiny

gradcheck: test_igpt_double
	@OMP_WAIT_POLICY=passive ./test_igpt_double --table $(FILE)

bench_igpt: data/bench.c igpt.c igpt.h .built-with
	$(CC) $(LIBRARY) data/bench.c igpt.c -o $@ -lm

bench: bench_igpt
	@./bench_igpt $(CSV)

# Changes when compiler or flags do; then everything is built anew.
.built-with: force
	@echo '$(CC) $(FLAGS) $(PLAIN)' | cmp -s - $@ || echo '$(CC) $(FLAGS) $(PLAIN)' >$@

port-check:
	@data/port-check.sh

check: igpt igpt_fault fuzz_replay example_linked example_included
	@CC="$(CC)" data/check.sh

MINUTES ?= 5
soak: igpt
	@MINUTES=$(MINUTES) data/soak.sh

coverage:
	@data/coverage.sh

# The inputs that fuzzing kept, once more; with any compiler.
fuzz_replay: data/fuzz.c igpt.c igpt.h .built-with
	$(CC) $(FLAGS) -O1 -DFUZZ_REPLAY data/fuzz.c -o $@ -lm

FUZZ_SECONDS ?= 1200
fuzz:
	clang -std=gnu11 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
	    -Wno-unknown-pragmas data/fuzz.c -o fuzz_igpt -lm
	@corpus=$$(mktemp -d); ./fuzz_igpt -max_total_time=$(FUZZ_SECONDS) -max_len=8192 \
	    -artifact_prefix=fuzz_ $$corpus data/fuzz $$corpus; status=$$?; rm -r $$corpus; exit $$status

clean:
	rm -f igpt igpt_fault example_linked example_included test_igpt test_igpt_double test_igpt_plain test_igpt_tiny bench_igpt fuzz_igpt fuzz_replay .built-with

.PHONY: test gradcheck bench fuzz port-check check soak coverage force clean
