#!/usr/bin/env bash
# findings.sh - the paper's findings in miniature, all runs and figures: data/findings.csv
# SPDX-License-Identifier: MIT
#
#   CIFAR=cifar FASHION=fashion data/findings.sh WORK [PART ...]
#
# CIFAR-10 (binary version) and Fashion-MNIST lie in the folders CIFAR and FASHION; the README says where to
# get them. Each run has its own folder under WORK. What was stopped goes on when the same line is given
# again, and what is finished is skipped. PARTs, in this order unless named:
#
#   middle       a layer in the middle probes best
#   tuning       fine-tuning against the probe, fresh weights and raw pixels, by number of labels
#   bert         the other objective, probed and fine-tuned; both together (python3)
#   loss         the better the loss, the better the probe: checkpoints of a run, and other sizes
#   resolution   the larger the pictures, the better the probe
#   fashion      a second opinion, on Fashion-MNIST: its probe by layer, and fine-tuned
#
# The first model has 16 pixels a side. The parts that compare many runs do so at 8, where each takes a fifth of
# the time. Each call writes data/findings.csv anew, from all runs in WORK.
#
# SCALE=0.1 takes a tenth of all steps. QUICK=1 tries the whole script on data/emoji in minutes, with tiny
# models; its figures go to WORK/findings.csv and mean nothing.
set -euo pipefail
tree=$(cd "$(dirname "$0")/.." && pwd)
igpt=$tree/igpt csv=$tree/data/findings.csv
[ $# -gt 0 ] || { echo "usage: data/findings.sh WORK [PART ...]" >&2 && exit 2; }
work=$(realpath -m "$1") && shift
all_parts="middle tuning bert loss resolution fashion"
parts=${*:-$all_parts}
for part in $parts; do
    case " $all_parts " in
    *" $part "*) ;;
    *) echo "findings.sh: there is no part $part, but $all_parts" >&2 && exit 2 ;;
    esac
done
mkdir -p "$work"
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # others may use this machine, too
make -s -C "$tree" igpt

if [ -z "${QUICK:-}" ]; then
    cifar=${CIFAR:-cifar} fashion=${FASHION:-fashion} n_test=10000
    px=16 small_px=8 fashion_px=14 other_px=12
    colours=256 greys=16 layers=12 fashion_layers=10 width=128 other_sizes="4,64 8,96"
    steps=8000 tune_steps=5600 few_steps=1200 # of 32 pictures: five times CIFAR-10; four times; few labels
    labels="10 50 250" seeds="1 2 3"
else
    cifar=$tree/data/emoji fashion=$tree/data/emoji n_test=393 csv=$work/findings.csv
    px=8 small_px=4 fashion_px=7 other_px=6
    colours=16 greys=8 layers=3 fashion_layers=2 width=32 other_sizes="1,16 2,32"
    steps=80 tune_steps=40 few_steps=20
    labels="2 10" seeds="1 2"
fi

# Commands are run in WORK, so that they are short and can be repeated there.
cifar=$(realpath "$cifar") fashion=$(realpath "$fashion")
cd "$work"
ln -sfn "$cifar" cifar
ln -sfn "$fashion" fashion
scaled() { awk -v n="$1" -v scale="${SCALE:-1}" 'BEGIN { n *= scale; print n < 10 ? 10 : int(n + 0.5) }'; }
figure() { awk -v name="$2" '$1 == name { print $2 }' "$1/figures"; } # of the run, of that name

# A tenth of the labels and all test pictures of CIFAR-10: its first file. Enough to compare probes, and to
# draw few labels from.
mkdir -p cifar-10k
for file in "$cifar"/{data_batch_1.bin,test_batch.bin,batches.meta.txt}; do ln -sf "$file" cifar-10k; done

# Train or fine-tune into the folder of that name, or go on with it. With KEEP=n the models of every n-th step
# stay, as NAME-STEP.
child=""
trap '[ -z "$child" ] || { kill -TERM $child && wait $child; exit 130; }' INT TERM
run() { # name, words
    local name=$1 words="${*:2} --out $1"
    [ ! -e "$name/figures" ] || return 0
    mkdir -p "$name"
    [ -e "$name/command" ] || echo "igpt $words" >"$name/command"
    [ ! -e "$name/train_state.safetensors" ] || words="$2 --resume --out $name"
    echo "== igpt $words"
    "$igpt" $words >"$name/figures.part" & child=$!
    while kill -0 $child 2>/dev/null; do
        sleep 0.2
        [ -z "${KEEP:-}" ] || keep "$name"
    done
    wait $child
    child=""
    mv "$name/figures.part" "$name/figures"
}
saved_step() {
    head -c 4000 "$1/train_state.safetensors" 2>/dev/null | grep -ao '"step":"[0-9]*"' | tr -cd 0-9
}
keep() { # a save begins with the state and ends with config.json
    local step=$(saved_step "$1") copy
    copy=$1-$step
    [ -n "$step" ] && [ $((step % KEEP)) -eq 0 ] && [ ! -e "$copy" ] || return 0
    [ "$1/config.json" -nt "$1/train_state.safetensors" ] || return 0
    mkdir -p "$copy.part"
    cp "$1"/{model.safetensors,config.json,preprocessor_config.json} "$copy.part"
    [ "$(saved_step "$1")" = "$step" ] || return 0
    mv "$copy.part" "$copy"
}

# A row for each figure; the file ABOUT of a model has the columns from objective to hours.
header="finding,data,objective,n_px,layers,n_embd,pictures_seen,loss,hours,what,layer,labels_per_class,seed"
header="$header,accuracy,standard_error,n_test,command"
hours() { figure "$1" seconds | awk '{ printf "%.2f", $1 / 3600 }'; }
binomial() { awk -v p="$1" -v n="$n_test" 'BEGIN { printf "%.4f", sqrt(p * (1 - p) / n) }'; }

pretrain() { # name, data, objective, pixels, colours, layers, width
    local n=$(scaled $steps)
    run $1 train --data $2 --objective $3 --n-px $4 --n-vocab $5 --n-layer $6 --n-embd $7 \
        --n-head $((($7 + 31) / 32)) --batch 32 --lr 0.003 --steps $n --warmup $((n / 10)) \
        --eval-every $n --save-every $((n / 5))
    echo "$3,$4,$6,$7,$(($(figure $1 step) * 32)),$(figure $1 nats_per_pixel),$(hours $1)" >$1/about
}

# The accuracy of 5 draws of labels has two errors: that of the draws, and that of the test pictures.
probe() { # finding, model, data, labels of each class (0: all)
    local out=$2-probe-$3-$4 words
    [ ! -e $out/rows.csv ] || return 0
    words="probe --data $3 --model $2 --labels-per-class $4 --out $out"
    mkdir -p $out
    echo "== igpt $words"
    "$igpt" $words >$out/figures
    awk -F , -v start="$1,$3,$(<$2/about)" -v end="$n_test,igpt $words" -v labels=$4 -v n="$n_test" \
        -v best="$(figure $out best_layer)" -v lead="$(figure $out best_minus_last)" \
        -v lead_error="$(figure $out best_minus_last_error)" '
        function row(what, layer, p, error) {
            printf "%s,%s,%s,%s,1,%.4f,%.4f,%s\n", start, what, layer, labels ? labels : "all", p, error, end
        }
        NR > 1 {
            p = $7 / 100
            error = sqrt(p * (1 - p) / n + ($8 / 100) ^ 2 / 5)
            if ($1 == "pixels") row("raw pixels", "", p, error)
            else row("probe", $1, p, error)
            if ($1 == best) row("best probe", $1, p, error)
        }
        END { if (lead != "") row("best probe minus last layer", best, lead, lead_error) }
    ' $out/probe.csv >$out/rows.part
    mv $out/rows.part $out/rows.csv
}

tune() { # finding, model, data, labels of each class (0: all), seed, further words
    local name=$2-tuned-$4-$5 what=fine-tuned n=$few_steps seen accuracy
    [ -z "${6:-}" ] || { name=$2-scratch-$4-$5 what="from scratch"; }
    [ $4 != 0 ] || n=$tune_steps
    n=$(scaled $n)
    run $name finetune --data $3 --model $2 --labels-per-class $4 --seed $5 --batch 32 --lr 0.001 \
        --steps $n --eval-every $(((n + 7) / 8)) ${6:-}
    seen=$(<$2/about)
    [ -z "${6:-}" ] || seen=$(cut -d , -f 1-4 $2/about),0,, # nothing yet
    accuracy=$(figure $name accuracy)
    echo "$1,$3,$seen,$what,,${4/#0/all},$5,$accuracy,$(binomial $accuracy),$n_test,$(<$name/command)" \
        >$name/rows.csv
}

# Two fine-tuned models together: the average of their class logits. All test pictures are in cifar-10k, too.
average() { # finding, models
    local out=$1-average words model accuracy
    [ ! -e $out/rows.csv ] || return 0
    mkdir -p $out
    for model in $2 $3; do
        words="probe --data cifar-10k --model $model --features $out/$model.features --out $out"
        echo "== igpt $words"
        "$igpt" $words >$out/$model.figures
    done
    words="data/ensemble.py $2 $out/$2.features $3 $out/$3.features"
    python3 "$tree"/$words >$out/figures
    accuracy=$(figure $out average)
    words="$accuracy,$(binomial $accuracy),$n_test,python3 $words"
    echo "$1,cifar,ar and bert,$small_px,$layers,$width,,,,average of logits,,all,1,$words" >$out/rows.csv
}

# The network that most are compared with, at a size of pictures; its checkpoints stay.
pretrain_kept() { # name, pixels
    KEEP=$(($(scaled $steps) / 5)) pretrain $1 cifar ar $2 $colours $layers $width
}
small=ar-px-$small_px
for part in $parts; do
    case $part in
    middle)
        pretrain_kept ar $px
        probe middle ar cifar-10k 0
        probe middle ar cifar 0
        ;;
    tuning)
        pretrain_kept $small $small_px
        for n in $labels; do
            probe tuning $small cifar-10k $n
            for seed in $seeds; do
                tune tuning $small cifar-10k $n $seed
                tune tuning $small cifar-10k $n $seed --from-scratch
            done
        done
        probe tuning $small cifar 0
        tune tuning $small cifar 0 1
        tune tuning $small cifar 0 1 --from-scratch
        ;;
    bert)
        pretrain bert cifar bert $small_px $colours $layers $width
        probe bert bert cifar 0
        tune bert bert cifar 0 1
        pretrain_kept $small $small_px
        tune tuning $small cifar 0 1
        average bert $small-tuned-0-1 bert-tuned-0-1
        ;;
    loss)
        pretrain_kept ar $px
        pretrain_kept $small $small_px
        for model in $(ls -d ar-[0-9]* $small-[0-9]* | grep -xE "(ar|$small)-[0-9]+" | sort -V); do
            run=${model%-*}
            [ $model != $run-$(figure $run step) ] || continue # is that model itself
            [ -e $model/about ] || {
                "$igpt" eval --data cifar --model $model >$model/figures
                echo "$(cut -d , -f 1-4 $run/about),$((${model##*-} * 32)),$(figure $model nats_per_pixel)," \
                    >$model/about
            }
            probe loss $model cifar-10k 0
        done
        for size in $other_sizes; do
            pretrain $small-layers-${size%,*} cifar ar $small_px $colours ${size%,*} ${size#*,}
            probe loss $small-layers-${size%,*} cifar-10k 0
        done
        ;;
    resolution)
        for n in $small_px $other_px; do
            pretrain_kept ar-px-$n $n
            probe resolution ar-px-$n cifar-10k 0
        done
        ;;
    fashion)
        pretrain fashion-ar fashion ar $fashion_px $greys $fashion_layers $width
        probe fashion fashion-ar fashion 0
        tune fashion fashion-ar fashion 0 1
        ;;
    esac
done

{
    echo "$header"
    for part in $all_parts; do
        for rows in */rows.csv; do grep "^$part," "$rows" || true; done
    done
} >"$csv.part"
mv "$csv.part" "$csv"
echo "written: $csv"
