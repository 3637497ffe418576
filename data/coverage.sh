#!/usr/bin/env bash
# coverage.sh - how much of igpt.c the tests run: make coverage
# SPDX-License-Identifier: MIT
#
#   LEAST=97 data/coverage.sh
#
# What `make test` runs, with igpt.c built by gcc --coverage: the tests in float, in double and on the
# plain routines, the program, the same with calls that fail, and the example. A line counts where any of
# these builds has code for it, so none for another system does, and is covered where any of them ran it.
# Prints every line that none did, then the share; exit status 1 below LEAST per cent, or where a test fails.
set -u
cd "$(dirname "$0")/.."
least=${LEAST:-97}
for program in gcc gcov; do
    command -v $program >/dev/null || { echo "coverage: no $program (package gcc)"; exit 1; }
done
work=$(mktemp -d) && work=$(cd "$work" && pwd -P) || exit 1
trap 'rm -rf "$work"' EXIT
cp -r igpt.c igpt.h test_igpt.c data "$work" && cd "$work" || exit 1

flags="-std=gnu11 -O2 -Wno-unknown-pragmas -I."
for flag in -march=native -mprefer-vector-width=512 -fopenmp; do
    echo 'int main(void){return 0;}' | gcc $flag -x c - -o tried 2>/dev/null && flags="$flags $flag"
done

# An object in a folder of its own, beside which its counts come to lie.
object() { # folder, flags, source
    mkdir "$1" && gcc $flags --coverage $2 -c "$3" -o "$1/igpt.o"
}
tests() { # folder, flags
    object "$1" "-DIGPT_NO_MAIN $2" igpt.c && gcc $flags $2 test_igpt.c "$1/igpt.o" --coverage -o "test_$1" -lm
}
{
    object program "" igpt.c && gcc $flags program/igpt.o --coverage -o igpt -lm &&
        tests float "" && tests double -DIGPT_DOUBLE && tests plain -DIGPT_PLAIN &&
        object included "-DIGPT_NO_MAIN -DIGPT_API=static -DIGPT_INCLUDE -Wno-unused-function" data/example.c &&
        object fault "-include data/fault.h" igpt.c && gcc $flags fault/igpt.o --coverage -o igpt_fault -lm &&
        gcc $flags -DFUZZ_REPLAY data/fuzz.c -o fuzz_replay -lm &&
        gcc $flags included/igpt.o --coverage -o example_included -lm &&
        gcc $flags data/example.c float/igpt.o --coverage -o example_linked -lm
} || exit 1

# Threads that count in the same memory slow each other down ten times: so there is one, but in the tests
# about threads. Where two add to a count at once it comes out too small, but not as 0.
export OMP_WAIT_POLICY=passive OMP_THREAD_LIMIT=1
./test_double >said_double 2>&1 &
{ ./test_float && ./test_plain; } >said 2>&1 && OMP_THREAD_LIMIT=8 ./test_float threads matmul split >>said 2>&1
status=$?
wait $! || status=1
cat said said_double | grep -B 8 FAILED
tail -q -n 1 said said_double

# gcov writes "count: line: text", with - for no code, ##### and ===== for code that did not run.
for folder in program float double plain fault included; do gcov -t $folder/igpt.gcno 2>gcov_said; done >counts
awk -F : -v least="$least" '
    $2 + 0 == 0 { if ($3 == "Source") here = $4 ~ /(^|\/)igpt\.c$/; next }
    !here || $1 ~ /^ *-$/ { next }
    { line = $2 + 0; code[line] = 1; if (line > last) last = line }
    $1 ~ /[0-9]/ { ran[line] = 1 }
    { text[line] = substr($0, length($1 ":" $2 ":") + 1) }
    END {
        for (line = 1; line <= last; line++) {
            n += code[line]
            covered += ran[line]
            if (code[line] && !ran[line]) printf "igpt.c:%d: %s\n", line, text[line]
        }
        if (!n) { print "coverage: gcov has counted nothing"; exit 1 }
        printf "coverage: %d of %d lines of igpt.c, %.2f %%; at least %s %% expected\n", covered, n, 100 * covered / n, least
        exit 100 * covered < least * n
    }' counts && exit $status
exit 1
