#!/usr/bin/env bash
# soak.sh - stops igpt in every way that can be thought of, and looks at what it leaves behind.
# SPDX-License-Identifier: MIT
#
#   MINUTES=5 SEED=1 data/soak.sh
#
# Runs of ./igpt that write folders, tiny ones, are stopped by signals at random times, killed at a chosen
# system call, given errors by their system calls, and a limit on the size of files; the last but one and
# two by strace, where it is there. After each: what was in the folder still loads; a command that
# fails says one sentence, exits with 1 and leaves no .part file; and the run, resumed, or begun anew where
# it had not yet saved, ends with the same bytes as one that was never stopped. Prints how often; exit
# status 1 if anything was otherwise. Bash 5; a failure is repeated by its SEED, but for the random times.
set -u
cd "$(dirname "$0")/.."
minutes=${MINUTES:-5} seed=${SEED:-$((${EPOCHSECONDS:-1} % 32768))}
work=$(mktemp -d) && work=$(cd "$work" && pwd -P) || exit 1
child=""
trap '[ -z "$child" ] || kill -KILL "$child" 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
RANDOM=$seed
failed=0
declare -A line counts reached

short="--batch 8 --steps 40 --save-every 3 --eval-every 10"
line[ar]="train --n-layer 1 --n-embd 32 --n-head 2 --n-px 8 --n-vocab 12 $short"
line[bert]="${line[ar]} --objective bert"
line[tune]="finetune --model $work/ar $short --labels-per-class 20"
line[sample]="sample --model $work/ar --n 5"
line[complete]="complete --model $work/ar --n 3"
line[palette]="palette --n-px 8 --n-vocab 12"
runs=(ar bert tune)
kinds=(ar bert tune ar bert tune sample complete palette)
written="model.safetensors config.json preprocessor_config.json log.csv loss.svg samples.png train_state.safetensors
    completions.png palette.png"

pick() { picked=$((RANDOM % $#)) && shift $picked && picked=$1; }
below() { picked=$(((RANDOM * 32768 + RANDOM) % $1)); }
count() { counts[$1]=$((${counts[$1]:-0} + 1)); }
no_seconds() { sed 's/,[^,]*//' "$1"; } # log.csv's second column

wrong() {
    failed=$((failed + 1))
    echo "WRONG, SEED=$seed: $done_so: $*"
    [ ! -s "$work/said" ] || sed 's/^/    /' "$work/said"
    (cd "$out" 2>/dev/null && ls -l) | sed 's/^/    /'
}

# The command of this round: the whole run of its kind from its start, or from where a copied one stopped.
begin() { # folder or not of a run that stopped half-way
    rm -rf "$out"
    words="${line[$kind]}"
    if [ -n "$1" ]; then
        cp -r "$1" "$out"
        words="${words%% *} --resume"
    fi
    words="$words --quiet --threads 1 --out $out"
}

# What a stopped command left must load, and lead to the reference's bytes.
check() {
    local has_state="" file
    [ -e "$out/train_state.safetensors" ] && has_state=yes
    if [ -n "$has_state" ]; then
        ./igpt eval --quiet --threads 1 --model "$out" >"$work/figures" 2>"$work/said" || wrong "does not load"
        words="${line[$kind]%% *} --resume --quiet --threads 1 --out $out"
    else
        begin ""
    fi
    ./igpt $words >"$work/figures" 2>"$work/said" || wrong "does not go on"
    for file in "$work/$kind"/*; do
        file=${file##*/}
        case $file in
        train_state.safetensors) continue ;; # holds seconds
        log.csv) cmp -s <(no_seconds "$work/$kind/$file") <(no_seconds "$out/$file") ;;
        *) cmp -s "$work/$kind/$file" "$out/$file" ;;
        esac || wrong "$file is another than that of a run that was never stopped"
    done
    no_part
}

no_part() { [ -z "$(find "$out" -name '*.part' 2>/dev/null)" ] || wrong "left a .part file"; }
sentence() { # the command failed as it should
    [ "$status" -eq 1 ] || wrong "exit status $status"
    [ "$(wc -l <"$work/said")" -eq 1 ] && grep -q '^igpt: .' "$work/said" || wrong "said other than one sentence"
    no_part
}

signals() { # some in a row
    local times signal
    begin ""
    pick 1 2 3 && times=$picked
    while [ $times -gt 0 ]; do
        times=$((times - 1))
        pick KILL KILL TERM INT && signal=$picked
        below $((milliseconds + 1)) && done_so="$kind, $signal after $picked ms"
        ./igpt $words >"$work/figures" 2>"$work/said" &
        child=$!
        sleep "$((picked / 1000)).$(printf %03d $((picked % 1000)))"
        kill -s $signal $child 2>/dev/null
        wait $child 2>/dev/null
        status=$? child=""
        count "SIG$signal at a random time"
        case $status in
        0) break ;; # it was done
        137) [ $signal = KILL ] || wrong "exit status $status" ;;
        130 | 143) [ $signal != KILL ] || wrong "exit status $status" ;; # before it had begun
        *)
            sentence
            grep -q 'go on with: igpt' "$work/said" || wrong "did not stop where it could go on"
            ;;
        esac
        if [ -e "$out/train_state.safetensors" ]; then
            words="${line[$kind]%% *} --resume --quiet --threads 1 --out $out"
        else begin ""; fi
    done
    check
}

# Run under strace, which looks only at the files that igpt reads and writes here.
traced() { # strace's -e
    local file paths="-P $work/figures -P $PWD/data/emoji/data_batch_1.bin -P $PWD/data/emoji/test_batch.bin"
    for file in $written; do paths="$paths -P $out/$file -P $out/$file.part"; done
    strace -qq -o "$work/trace" $paths -e "$1" ./igpt $words >"$work/figures" 2>"$work/said"
}

# How many such calls the whole run makes, counted once.
calls() { # half or whole, call
    [ -n "${reached[$kind $1 $2]:-}" ] || {
        traced "trace=$2" 2>/dev/null
        reached[$kind $1 $2]=$(grep -c "^$2" "$work/trace")
        begin "$half"
    }
    below $((${reached[$kind $1 $2]} + 1)) && nth=$((picked + 1))
}

halved() { # one time in two, from a run that is stopped already
    half=""
    [ -d "$work/$kind-half" ] && pick yes no && [ $picked = yes ] && half=$work/$kind-half
    begin "$half"
}

chosen_kill() {
    halved
    pick write fsync rename rename openat close && call=$picked
    calls "${half:+half}" $call
    done_so="$kind${half:+, resumed}, killed at $call number $nth"
    traced "inject=$call:signal=KILL:when=$nth" 2>/dev/null
    status=$?
    [ $status -eq 0 ] || [ $status -eq 137 ] || wrong "exit status $status"
    [ $status -eq 0 ] && count "not reached" || count "SIGKILL at the n-th $call"
    check
}

fault() {
    halved
    pick write fsync rename openat close read && call=$picked
    pick ENOSPC EIO && error=$picked
    calls "${half:+half}" $call
    done_so="$kind${half:+, resumed}, $error from $call number $nth"
    traced "inject=$call:error=$error:when=$nth"
    status=$?
    if ! grep -q INJECTED "$work/trace"; then count "not reached"
    else count "$error from the n-th $call"; fi
    # Closing a file that was only read may fail unheard.
    if [ $status -ne 0 ] || grep INJECTED "$work/trace" | grep -qv '^close'; then sentence; fi
    check
}

limit() { # on the size of a file; with its signal ignored a write fails, else the signal ends igpt
    halved
    below 420 && done_so="$kind${half:+, resumed}, files of $picked KiB at most"
    pick_signal=$((RANDOM % 2))
    (
        [ $pick_signal -eq 0 ] || trap '' XFSZ
        ulimit -c 0 && ulimit -f $picked
        exec ./igpt $words
    ) >"$work/figures" 2>"$work/said" &
    child=$!
    wait $child 2>/dev/null
    status=$? child=""
    count "limit on the size of files"
    case $status in
    0) ;; # none was larger
    1) sentence ;;
    *) [ $pick_signal -eq 0 ] || wrong "exit status $status" ;;
    esac
    check
}

# The references, and a copy of each run that stopped after a first state.
for kind in ar bert tune sample complete palette; do
    out=$work/$kind done_so="$kind, never stopped"
    began=${EPOCHREALTIME/./}
    begin ""
    ./igpt $words >"$work/figures" 2>"$work/said" || { wrong "fails"; exit 1; }
    [ $kind != ar ] || milliseconds=$(((${EPOCHREALTIME/./} - began) / 1000))
done
for kind in "${runs[@]}"; do
    out=$work/$kind-half done_so="$kind, SIGTERM after the first state"
    begin ""
    ./igpt $words >"$work/figures" 2>"$work/said" &
    child=$!
    until [ -e "$out/train_state.safetensors" ] || ! kill -0 $child 2>/dev/null; do sleep 0.01; done
    kill -TERM $child 2>/dev/null
    wait $child 2>/dev/null
    child=""
done

ways=(signals limit)
if command -v strace >/dev/null && strace -o "$work/trace" true 2>/dev/null; then
    ways=(signals chosen_kill fault signals chosen_kill fault limit)
else
    echo "skipped: chosen kills and faults; no strace that may look at processes (package strace)"
fi
out=$work/out
rounds=0
SECONDS=0
while [ $SECONDS -lt $(awk -v m="$minutes" 'BEGIN { print int(60 * m) }') ]; do
    kind=${kinds[RANDOM % ${#kinds[@]}]}
    ${ways[rounds % ${#ways[@]}]}
    rounds=$((rounds + 1))
done
for what in "${!counts[@]}"; do printf '%6d  %s\n' "${counts[$what]}" "$what"; done | sort -k 2
echo "soak: SEED=$seed, $rounds runs stopped in $SECONDS seconds, $failed failures"
[ $failed -eq 0 ]
