#!/usr/bin/env bash
# soak.sh - stops igpt in every way that can be thought of, and looks at what it leaves behind: make soak
# SPDX-License-Identifier: MIT
#
#   MINUTES=5 SEED=1 data/soak.sh
#
# Tiny runs of ./igpt are stopped by signals at random times and by a limit on the size of files; and with
# strace, where it is there, killed at a chosen system call, or given an error by one. After each: a folder
# with a model loads; a command that failed said one sentence, exited with 1 and left no .part file; and the run,
# resumed, or begun anew where it had not saved yet, ends with the bytes of one that was never stopped.
# Prints how often; exit status 1 if anything was otherwise. A SEED repeats all but the random times. Bash 5.
set -u
cd "$(dirname "$0")/.."
work=$(mktemp -d) && work=$(cd "$work" && pwd -P) || exit 1
child=""
trap '[ -z "$child" ] || kill -KILL "$child" 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
export OMP_WAIT_POLICY=passive
limit=$(awk -v minutes="${MINUTES:-5}" 'BEGIN { print int(60 * minutes) }')
seed=${SEED:-$((EPOCHSECONDS % 32768))} RANDOM=${SEED:-$((EPOCHSECONDS % 32768))}
failed=0 rounds=0
declare -A line counts made

short="--batch 8 --steps 40 --save-every 3 --eval-every 10"
line[ar]="train --n-layer 1 --n-embd 32 --n-head 2 --n-px 8 --n-vocab 12 $short"
line[bert]="${line[ar]} --objective bert"
line[over]="train --overwrite --n-layer 2 --n-embd 16 --n-head 1 --n-px 6 --n-vocab 9 $short" # over ar's run
line[tune]="finetune --model $work/ar $short --labels-per-class 20"
line[sample]="sample --model $work/ar --n 5"
line[complete]="complete --model $work/ar --n 3"
line[palette]="palette --n-px 8 --n-vocab 12"
kinds=(ar bert tune over ar bert tune over sample complete palette)
written="model.safetensors config.json preprocessor_config.json log.csv loss.svg samples.png progress.png
    train_state.safetensors completions.png palette.png"

pick() { picked=$((RANDOM % $#)) && shift $picked && picked=$1; }
below() { picked=$(((RANDOM * 32768 + RANDOM) % $1)); }
count() { counts[$1]=$((${counts[$1]:-0} + 1)); }
no_seconds() { sed 's/,[^,]*//' "$1"; } # log.csv's second column

wrong() {
    failed=$((failed + 1))
    echo "WRONG, SEED=$seed: $done_so: $*"
    sed 's/^/    /' "$work/said"
    ls -l "$out" 2>/dev/null | sed 's/^/    /'
}
no_part() {
    [ -z "$(find "$out" -name '*.part' 2>/dev/null)" ] || wrong "left a .part file"
}
sentence() { # the command failed as it should
    [ $status -eq 1 ] || wrong "exit status $status"
    sed -i '/^$/d; /^stopping after this step/d' "$work/said" # what Ctrl-C is answered at once
    [ "$(wc -l <"$work/said")" -eq 1 ] && grep -q '^igpt: .' "$work/said" || wrong "said other than one sentence"
    no_part
}

# The words of a command, with one or two threads: one from its start, or one that goes on where it can.
begin() {
    rm -rf "$out"
    [ $kind != over ] || cp -r "$work/ar" "$out"
    anew
}
anew() { pick 1 2 && words="${line[$kind]} --quiet --threads $picked --out $out"; }
proceed() {
    if [ $kind = over ] && cmp -s {"$work/ar","$out"}/train_state.safetensors; then
        cmp {"$work/ar","$out"}/model.safetensors >"$work/said" 2>&1 || wrong "its model is another's"
        anew
    elif [ -e "$out/train_state.safetensors" ]; then
        pick 1 2 && words="${line[$kind]%% *} --resume --quiet --threads $picked --out $out"
    else begin; fi
}
begin_or_half() { # or a copy of the run that stopped half-way
    half="" && begin
    pick yes no
    [ $picked = no ] || ! cp -r "$work/half-$kind" "$out" 2>/dev/null || half=", resumed"
    proceed
}

igpt() { "$@" ./igpt $words >"$work/figures" 2>"$work/said"; } # what stands before ./igpt
ended() { wait $child 2>/dev/null; status=$? child=""; }

# What a stopped command left loads, and leads to the reference's bytes.
check() {
    if [ -e "$out/config.json" ]; then
        words="eval --quiet --threads 1 --model $out" && igpt || wrong "does not load"
    fi
    proceed
    igpt || wrong "does not go on"
    for file in $(ls "$work/$kind"); do
        case $file in
        train_state.safetensors) continue ;; # holds seconds
        log.csv) cmp -s <(no_seconds "$work/$kind/$file") <(no_seconds "$out/$file") ;;
        *) cmp -s "$work/$kind/$file" "$out/$file" ;;
        esac || wrong "$file differs from that of a run that was never stopped"
    done
    no_part
}

signals() { # up to three in a run
    begin
    for again in 1 2 3; do
        pick KILL KILL TERM INT && signal=$picked
        below $milliseconds && done_so="$kind, $signal after $picked ms"
        igpt exec & child=$!
        sleep "$((picked / 1000)).$(printf %03d $((picked % 1000)))"
        kill -s $signal $child 2>/dev/null
        ended
        [ $status -ne 0 ] || { count "not reached" && break; }
        case $signal$status in
        KILL137 | TERM143 | INT130) ;; # the last two: before it had begun
        *) sentence && grep -q 'go on with: igpt' "$work/said" || wrong "did not stop where it could go on" ;;
        esac
        count "SIG$signal at a random time"
        proceed
    done
    check
}

size_limit() { # with its signal ignored a write fails; else the signal ends igpt
    begin_or_half
    below 420 && kib=$((picked + 1)) # with none, the sentence could not be written either
    pick EFBIG XFSZ && done_so="$kind$half, files of at most $kib KiB, $picked"
    (
        [ $picked = XFSZ ] || trap '' XFSZ
        ulimit -c 0 && ulimit -f $kib && igpt exec
    ) & child=$!
    ended
    case $picked$status in
    XFSZ0 | EFBIG0) count "not reached" ;;
    XFSZ1 | EFBIG1) sentence && count "EFBIG by ulimit -f" ;;
    XFSZ*) count "SIGXFSZ by ulimit -f" ;;
    *) wrong "exit status $status" ;;
    esac
    check
}

# Run under strace, which looks only at the files that igpt reads and writes here.
traced() { # strace's -e
    paths="-P $work/figures -P $PWD/data/emoji/data_batch_1.bin -P $PWD/data/emoji/test_batch.bin"
    for file in $written; do paths="$paths -P $out/$file -P $out/$file.part"; done
    ( # with -D igpt has this shell's number, by which other commands than runs name what they write
        for file in $written; do paths="$paths -P $out/$file.$BASHPID.part"; done
        igpt exec strace -D -qq -o "$work/trace" $paths -e "$1"
    )
    status=$?
    sleep 0.1 # strace writes the trace a little later
}

nth_call() { # what happens to it, one of these calls
    how=$1 && shift
    begin_or_half
    pick "$@" && call=$picked
    if [ -z "${made[$kind$half $call]:-}" ]; then # how many does the whole command make?
        traced "trace=$call"
        made[$kind$half $call]=$(grep -c "^$call" "$work/trace")
        begin
        [ -z "$half" ] || { cp -r "$work/half-$kind" "$out" && proceed; }
    fi
    below $((${made[$kind$half $call]} + 1)) && nth=$((picked + 1))
    done_so="$kind$half, $how at $call number $nth"
    traced "inject=$call:$how:when=$nth" 2>/dev/null # where bash says that it was killed
}

chosen_kill() {
    nth_call signal=KILL write fsync rename rename unlink openat close
    case $status in
    0) count "not reached" ;;
    137) count "SIGKILL at the n-th $call" ;;
    *) wrong "exit status $status" ;;
    esac
    check
}

fault() {
    pick ENOSPC EIO && error=$picked
    nth_call error=$error write fsync rename openat close read
    grep -q INJECTED "$work/trace" && count "$error from the n-th $call" || count "not reached"
    # Closing a file that was only read, and fseek's reading ahead of what is read again, may fail unheard:
    # whether all was read, check finds by the result.
    [ $status -eq 0 ] && ! grep INJECTED "$work/trace" | grep -qv '^close\|^read' || sentence
    check
}

# The references, and a run of each kind that stopped after its first state.
for kind in ar bert tune over sample complete palette; do
    out=$work/$kind done_so="$kind, never stopped" began=${EPOCHREALTIME/./}
    begin
    igpt || { wrong "fails"; exit 1; }
    [ $kind != ar ] || milliseconds=$(((${EPOCHREALTIME/./} - began) / 1000))
done
for kind in ar bert tune; do
    out=$work/half-$kind done_so="$kind, SIGTERM after its first state"
    begin
    igpt exec & child=$!
    until [ -e "$out/train_state.safetensors" ] || ! kill -0 $child 2>/dev/null; do sleep 0.01; done
    kill -TERM $child 2>/dev/null
    ended
done

ways=(signals chosen_kill fault signals chosen_kill fault size_limit)
command -v strace >/dev/null && strace -o "$work/trace" true 2>/dev/null || {
    ways=(signals size_limit)
    echo "skipped: chosen kills and faults; no strace that may look at programs here (package strace)"
}
out=$work/out SECONDS=0
while [ $SECONDS -lt "$limit" ]; do
    kind=${kinds[RANDOM % ${#kinds[@]}]}
    ${ways[rounds++ % ${#ways[@]}]}
done
for what in "${!counts[@]}"; do printf '%6d  %s\n' "${counts[$what]}" "$what"; done | sort -k 2
echo "soak: SEED=$seed, $rounds runs stopped, $SECONDS seconds, $failed failures"
[ $failed -eq 0 ]
