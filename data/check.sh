#!/usr/bin/env bash
# check.sh - igpt under the tools that find what tests do not see: make check
# SPDX-License-Identifier: MIT
#
#   data/check.sh [WORD ...]    the parts whose names hold one of the words; all without one
#
# The tests under sanitizers and valgrind, and igpt.c read by three analysers, each where it is there;
# what is missing is named with the Debian package that brings it. A kind of finding that is switched off
# below has its reason beside it; anything else that is found makes the exit status 1.
set -u
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_WAIT_POLICY=passive TMPDIR=$work
cc=${CC:-cc} wanted="$*" failed=0 skipped=""
flags="-std=gnu11 -fno-math-errno -Wno-unknown-pragmas -I. -g -O2"
asked="-std=gnu11 -I. -Wno-unknown-pragmas" # of the analysers: without OpenMP, whose pragmas they cannot follow

is_wanted() {
    [ -z "$wanted" ] && return 0
    for word in $wanted; do case "$1" in *$word*) return 0 ;; esac; done
    return 1
}

have() { # program, package
    command -v "$1" >/dev/null && return 0
    skipped="$skipped
  $name: no $1 (package $2)"
    return 1
}

links() { # compiler and flags: can it build such a program, and does that run?
    echo 'int main(void){return 0;}' | $1 -x c - -o "$work/tried" 2>/dev/null && "$work/tried" 2>/dev/null && return 0
    skipped="$skipped
  $name: $1 makes no program here"
    return 1
}

begun() { printf '== %s\n' "$name"; SECONDS=0; }
ended() { # exit status, file with what was said
    if [ "$1" -eq 0 ] && [ -z "${3:-}" ]; then
        printf '%s: nothing found, %d seconds\n' "$name" $SECONDS
    else
        failed=1
        tail -n 60 "$2"
        printf '%s: FOUND SOMETHING\n' "$name"
    fi
}

# Tests, in one build, and the program that they run in the other.
tested() { # compiler and flags, what stands before the program, words that choose tests
    local words=$3
    begun
    $1 igpt.c -o "$work/igpt" -lm 2>"$work/said" && $1 -DIGPT_NO_MAIN test_igpt.c igpt.c -o "$work/test" -lm 2>>"$work/said" &&
        IGPT="$2 $work/igpt" "$work/test" $words >"$work/said" 2>&1
    ended $? "$work/said"
    tail -n 1 "$work/said"
}

# A command keeps its memory until it ends, by design: there leaks are not looked for. The tests are free of them.
kept="env ASAN_OPTIONS=detect_leaks=0"
sanitize="-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -fno-omit-frame-pointer"
openmp=-fopenmp
echo 'int main(void){return 0;}' | $cc -fopenmp -x c - -o /dev/null 2>/dev/null || openmp=""
for real in float double; do
    name="address and undefined sanitizers, $real"
    is_wanted "$name" && links "$cc $sanitize" || continue
    [ $real = float ] && double="" || double=-DIGPT_DOUBLE
    tested "$cc $flags $openmp $sanitize $double" "$kept" ""
done

# Only clang's OpenMP tells this sanitizer, by its library archer, which threads wait for which; with gcc's
# every barrier would be reported. OpenMP's own library is not looked into, as archer asks.
name="thread sanitizer"
export TSAN_OPTIONS=ignore_noninstrumented_modules=1
if is_wanted "$name" && have clang "clang libomp-dev" && links "clang -fopenmp -fsanitize=thread"; then
    printf 'int main(void) {\n#pragma omp parallel\n{}\nreturn 0; }\n' >"$work/team.c"
    clang -fopenmp -fsanitize=thread "$work/team.c" -o "$work/team" 2>/dev/null
    if ARCHER_OPTIONS=verbose=1 "$work/team" 2>&1 | grep -q "Archer detected"; then
        tested "clang $flags -fopenmp -fsanitize=thread" "" \
            "threads gradients matmul k-means quantisation cached split features probe learns"
    else
        skipped="$skipped
  $name: no archer (package libomp-dev)"
    fi
fi

# What reads files, and one pass through the network: what the sanitizers do not see is memory that is
# read before it is written. Without threads, whose stacks count as leaks, and vectors wider than
# valgrind knows; with -O1, as its manual asks.
name="valgrind"
if is_wanted "$name" && have valgrind valgrind; then
    begun
    $cc $flags -O1 -DIGPT_NO_MAIN test_igpt.c igpt.c -o "$work/test" -lm 2>"$work/said" &&
        valgrind -q --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=all --show-leak-kinds=all \
            "$work/test" JSON safetensors director records PPM folders PNG terminal SVG few cached masks \
            Adam features >"$work/said" 2>&1
    ended $? "$work/said"
fi

name="gcc -fanalyzer"
if is_wanted "$name" && have gcc gcc; then
    begun
    gcc $asked -O1 -fanalyzer -c igpt.c -o "$work/igpt.o" 2>"$work/said"
    ended $? "$work/said" "$(grep -m 1 warning: "$work/said")"
fi

# cppcheck: style is clang-format's and the reader's. Each of the three builds is looked at by itself.
name="cppcheck"
off="
wrongPrintfScanfArgNum:igpt.c               add() has the layer's number ready for names that hold a %lld
invalidFunctionArg:igpt.c                   it takes a row of a softmax for empty; its sum is at least 1
nullPointerArithmeticRedundantCheck:igpt.c  stored_list() asks after the sum with NULL, which it does not use
invalidPointerCast:igpt.c                   the sampler's reals lie behind it in its memory, on a boundary of 64
missingIncludeSystem                        the system's headers are not looked into
"
if is_wanted "$name" && have cppcheck cppcheck; then
    begun
    : >"$work/said"
    for build in "-UIGPT_DOUBLE -UIGPT_PLAIN" "-DIGPT_DOUBLE -UIGPT_PLAIN" "-DIGPT_PLAIN -UIGPT_DOUBLE"; do
        cppcheck -q --std=c11 --language=c --enable=warning,performance,portability --error-exitcode=1 $build \
            -D__GNUC__=12 -D__FLT_EVAL_METHOD__=0 -U_WIN32 -U__wasi__ -U__TINYC__ -U__clang__ -U_OPENMP -U__APPLE__ \
            $(awk 'NF { print "--suppress=" $1 }' <<<"$off") igpt.c 2>>"$work/said" || echo "$build: $?" >>"$work/said"
    done
    ended 0 "$work/said" "$(head -c 1 "$work/said")"
fi

name="clang-tidy"
off="
bugprone-easily-swappable-parameters    sizes stand in the order that igpt.h explains
bugprone-implicit-widening-of-multiplication-result  products of enums, far below 2^31
bugprone-narrowing-conversions          real is float on purpose; sizes are checked where files bring them
bugprone-suspicious-string-compare      strcmp() and memcmp() say: they differ
bugprone-reserved-identifier            _POSIX_C_SOURCE and _FILE_OFFSET_BITS are meant to be set
cert-dcl37-c                            the same
cert-dcl51-cpp                          the same
bugprone-macro-parentheses              the argument is a type, or a piece of a pragma
bugprone-misplaced-widening-cast        a size_t becomes a Size, which holds it
bugprone-not-null-terminated-result     a PNG chunk's name has no zero behind it
bugprone-suspicious-memory-comparison   reals that are equal by < differ at most in their bits: any order will do
cert-exp42-c                            the same
cert-flp37-c                            the same
cert-err33-c                            a FILE remembers that writing failed, and file_finish() asks it
cert-flp30-c                            a chart's axis runs over its ticks' values
clang-analyzer-security.FloatLoopCounter  the same
clang-analyzer-security.insecureAPI.strcpy  into memory that was measured for it
clang-analyzer-security.insecureAPI.DeprecatedOrUnsafeBufferHandling  wants Annex K's snprintf_s, which no libc has
clang-analyzer-core.CallAndMessage      does not know that need() ends the program: a result that failed is not used
clang-analyzer-core.DivideZero          the same
clang-analyzer-core.NullDereference     takes fail() for 0, and goes on with what was not read; it is -1
clang-analyzer-core.uninitialized.Assign  takes a tile for one without columns, whose edge then stays empty
clang-analyzer-core.UndefinedBinaryOperatorResult  nearest() finds its maximum again, which is there
"
if is_wanted "$name" && have clang-tidy clang-tidy; then
    begun
    clang-tidy --quiet "--checks=-*,bugprone-*,cert-*,clang-analyzer-*$(awk 'NF { printf ",-%s", $1 }' <<<"$off")" \
        igpt.c -- $asked >"$work/said" 2>"$work/errors"
    ended $? "$work/said" "$(grep -m 1 'warning:\|error:' "$work/said")"
fi

[ -z "$skipped" ] || echo "skipped:$skipped"
exit $failed
