#!/usr/bin/env bash
# port-check.sh - builds igpt for whatever this machine has compilers and emulators for, and runs it.
# SPDX-License-Identifier: MIT
#
#   data/port-check.sh [WORD ...]    the targets whose names hold one of the words; all without one
#
# For each target: the tests that matter to a port, and five steps of training, whose loss and samples
# must be those of the first target. What is missing is named with the Debian package that brings it.
# Exit status 1 if anything that could be run went wrong.
set -u
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_WAIT_POLICY=passive WINEDEBUG=-all WINEPREFIX=$work/wine TMPDIR=$work
flags="-std=gnu11 -fno-math-errno -Wall -Wextra"
tests="exp random matmul gradients PyTorch masks JSON safetensors directory directories pictures"
small="--batch 4 --n-layer 2 --n-embd 16 --n-head 2 --n-px 6 --n-vocab 8"
wanted="$*" failed=0 skipped="" first_loss="" samples=""

cat >"$work/wasi.mjs" <<'JS'
import { WASI } from 'node:wasi';
import { readFileSync } from 'node:fs';
const wasi = new WASI({ version: 'preview1', args: process.argv.slice(2), env: process.env,
    preopens: { '.': '.', [process.env.TMPDIR]: process.env.TMPDIR }, returnOnExit: true });
const module = await WebAssembly.compile(readFileSync(process.argv[2]));
process.exitCode = wasi.start(await WebAssembly.instantiate(module, wasi.getImportObject()));
JS

is_wanted() {
    [ -z "$wanted" ] && return 0
    for word in $wanted; do case "$1" in *$word*) return 0 ;; esac; done
    return 1
}

have() { # program, package: is it there? else note what is missing
    command -v "$1" >/dev/null && return 0
    skipped="$skipped
  $name: no $1 (package $2)"
    return 1
}

figure() { awk -v name="$1" '$1 == name { print $2 }' "$2"; }

# target COMPILER LINK RUN: builds with the compiler and its flags and runs with `run`; sets $row's parts.
target() {
    local dir=$work/$((++count)) note=""
    mkdir "$dir"
    $1 igpt.c -o "$dir/igpt" -lm $2 2>"$dir/errors" &
    if ! $1 -DIGPT_NO_MAIN -I. test_igpt.c igpt.c -o "$dir/test_igpt" -lm $2 2>"$dir/test_errors" || ! wait $!; then
        wait
        note="does not compile: $(cat "$dir/errors" "$dir/test_errors" | grep -m 1 -i error)"
    else
        grep -i "warning" "$dir/errors" | grep -v "statically linked" | head -n 3
        local exe=""
        [ -e "$dir/igpt.exe" ] && exe=.exe
        TMPDIR=$dir $3 "$dir/test_igpt$exe" $tests >"$dir/tests.txt" 2>&1
        passed=$(tail -n 1 "$dir/tests.txt" | tr -d '\r')
        $3 "$dir/igpt$exe" train --quiet --steps 5 $small --out "$dir/out" >"$dir/train.txt" 2>&1
        loss=$(figure train_nats_per_pixel "$dir/train.txt" | tr -d '\r')
        same=no
        [ -n "$first_loss" ] || first_loss=$loss samples=$dir/out/samples.png
        cmp -s "$samples" "$dir/out/samples.png" && same=yes
        case "$passed" in *" 0 failed") ;; *) note="tests: $passed" ;; esac
        [ "$loss" = "$first_loss" ] || note="$note; loss $loss"
        [ $same = yes ] || note="$note; other samples"
        printf '| %-22s | %-44s | %-20s | %-8s | %-7s |\n' "$name" "$said" "$passed" "$loss" $same
    fi
    [ -z "$note" ] && return
    failed=1
    printf '| %-22s | %-44s | %s\n' "$name" "$said" "WRONG: $note"
    [ -s "$dir/tests.txt" ] && grep -B 3 FAILED "$dir/tests.txt"
}

version() { $1 --version 2>&1 | head -n 1 | sed 's/ (.*)//'; }

native() { # name, compiler, package, flags
    name=$1
    is_wanted "$name" && have "$2" "$3" || return
    said="$(version "$2") $4"
    target "$2 $flags $4" "" ""
}

cross() { # name, compiler, package, flags, emulator, its package
    name=$1
    is_wanted "$name" && have "$2" "$3" && have "$5" "$6" || return
    said="$(version "$2") $4"
    target "$2 $flags -O2 -Wno-unknown-pragmas -static $4" "" "$5"
}

count=0
printf '| %-22s | %-44s | %-20s | %-8s | %-7s |\n' target compiler tests "loss" samples
printf '|---|---|---|---|---|\n'
native "x86-64 or this machine" "${CC:-cc}" gcc "-O3 -march=native -fopenmp"
for cc in gcc clang; do
    openmp=-fopenmp
    echo 'int main(void){return 0;}' | $cc -fopenmp -x c - -o /dev/null 2>/dev/null || openmp=-Wno-unknown-pragmas
    for level in -O0 -O1 -O2 -O3 -Os; do native "$cc $level" $cc $cc "$level -march=native $openmp"; done
    for standard in c11 c17 c2x; do
        native "$cc $standard, pedantic" $cc $cc "-O1 -std=$standard -pedantic -Wno-unknown-pragmas"
    done
    native "$cc without threads" $cc $cc "-O2 -Wno-unknown-pragmas"
    native "$cc plain" $cc $cc "-O2 -DIGPT_PLAIN $openmp"
    if [ "$(uname -m)" = x86_64 ]; then
        native "$cc SSE2" $cc $cc "-O3 -march=x86-64 $openmp"
        grep -q avx2 /proc/cpuinfo && native "$cc AVX2" $cc $cc "-O3 -march=x86-64-v3 $openmp"
        if grep -q avx512f /proc/cpuinfo; then
            native "$cc AVX-512" $cc $cc "-O3 -march=x86-64-v4 -mprefer-vector-width=512 $openmp"
        else # the same code, its vectors of 64 bytes made of two
            native "$cc AVX-512 in halves" $cc $cc "-O2 -march=native -D__AVX512F__ -Wno-psabi $openmp"
        fi
    fi
done
native "musl" musl-gcc musl-tools "-O2 -static -Wno-unknown-pragmas"
native "tcc" tcc tcc ""
cross "i386" i686-linux-gnu-gcc "gcc-i686-linux-gnu libc6-dev-i386-cross" "-msse2 -mfpmath=sse" qemu-i386 qemu-user
cross "aarch64" aarch64-linux-gnu-gcc "gcc-aarch64-linux-gnu libc6-dev-arm64-cross" "-O3" qemu-aarch64 qemu-user
cross "armhf" arm-linux-gnueabihf-gcc "gcc-arm-linux-gnueabihf libc6-dev-armhf-cross" "" qemu-arm qemu-user
cross "riscv64" riscv64-linux-gnu-gcc "gcc-riscv64-linux-gnu libc6-dev-riscv64-cross" "" qemu-riscv64 qemu-user
cross "ppc64le" powerpc64le-linux-gnu-gcc "gcc-powerpc64le-linux-gnu libc6-dev-ppc64el-cross" "" qemu-ppc64le qemu-user
cross "mips (big-endian, 32)" mips-linux-gnu-gcc "gcc-mips-linux-gnu libc6-dev-mips-cross" "" qemu-mips qemu-user
cross "s390x (big-endian, 64)" s390x-linux-gnu-gcc "gcc-s390x-linux-gnu libc6-dev-s390x-cross" "" qemu-s390x qemu-user

# A run that is begun on one machine goes on on the other, as it would have on the first.
name="s390x and x86-64 in turn"
if is_wanted "$name" && have s390x-linux-gnu-gcc "gcc-s390x-linux-gnu libc6-dev-s390x-cross" && have qemu-s390x qemu-user; then
    here=$work/here there=$work/there
    "${CC:-cc}" $flags -O2 -Wno-unknown-pragmas igpt.c -o "$here" -lm
    s390x-linux-gnu-gcc $flags -O2 -Wno-unknown-pragmas -static igpt.c -o "$there" -lm
    for order in "here here" "here there" "there here"; do
        set -- $order
        out=$work/turn-$1-$2 first=$work/$1 second=$work/$2
        [ "$1" = there ] && first="qemu-s390x $first"
        [ "$2" = there ] && second="qemu-s390x $second"
        $first train --quiet --steps 5 $small --out "$out" >/dev/null 2>"$out.txt"
        $second eval --quiet --model "$out" 2>>"$out.txt" | grep nats_per_pixel >>"$out.txt"
        $second train --resume --quiet --steps 10 --out "$out" 2>>"$out.txt" | grep nats_per_pixel >>"$out.txt"
    done
    if cmp "$work/turn-here-here.txt" "$work/turn-here-there.txt" && cmp "$work/turn-here-here.txt" "$work/turn-there-here.txt" &&
        [ -s "$work/turn-here-here.txt" ]; then
        printf '| %-22s | %-44s |\n' "$name" "model and train_state load, and go on to the same loss"
    else
        failed=1
        echo "$name: WRONG"
        cat "$work"/turn-*.txt
    fi
fi

name="Windows (MinGW-w64)"
wine=$(command -v wine64 || command -v wine || ls /usr/lib/wine/wine64 2>/dev/null || echo wine64)
if is_wanted "$name" && have x86_64-w64-mingw32-gcc gcc-mingw-w64-x86-64 && have "$wine" wine64; then
    said="$(version x86_64-w64-mingw32-gcc)"
    target "x86_64-w64-mingw32-gcc $flags -O2 -fopenmp -static" "" "$wine"
fi

name="WebAssembly (WASI)" # node 20, with threads of its own, crashes when it takes a large memory down
if is_wanted "$name" && have clang clang && have node nodejs; then
    if [ -d /usr/include/wasm32-wasi ]; then
        said="$(version clang)"
        target "clang --target=wasm32-wasi $flags -O2 -Wno-unknown-pragmas -Wl,-z,stack-size=1048576" "" "node --single-threaded --no-warnings $work/wasi.mjs"
    else
        skipped="$skipped
  $name: no wasi-libc (packages wasi-libc libclang-rt-dev-wasm32 lld)"
    fi
fi

[ -z "$skipped" ] || echo "
skipped:$skipped"
exit $failed
