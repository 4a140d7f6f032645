#!/bin/sh
# Reads CASE.nii.gz of the input folder (FLARE: CASE_0000.nii.gz), writes CASE.nii.gz into the output folder.
set -eu

inputs="${INPUTS:-@INPUTS@}"
outputs="${OUTPUTS:-@OUTPUTS@}"
model="${MODEL:-/workspace/model}"
device="${DEVICE:-}"
if [ -z "$device" ]; then
    device=$(python -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir -p "$outputs"

predict() { # of all images in $work/in
    mkdir -p "$work/out"
    nnUNetv2_predict_from_modelfolder -i "$work/in" -o "$work/out" -m "$model" -f @FOLDS@ -chk @CHECKPOINT@ \
        -device "$device" -npp 1 -nps 1 --disable_progress_bar@OPTIONS@ ||
        echo "predict.sh: nnU-Net failed" >&2
    for label in "$work"/out/*.nii.gz; do
        [ -f "$label" ] || continue
        mv "$label" "$outputs/.unfinished"
        mv "$outputs/.unfinished" "$outputs/${label##*/}"
    done
    rm -rf "$work/in" "$work/out"
}

failed=0
found=0
for image in "$inputs"/*.nii.gz; do
    [ -f "$image" ] || continue
    found=$((found + 1))
    name=${image##*/}
    case=${name%.nii.gz}
    case=${case%_0000}
    rm -f "$outputs/$case.nii.gz"
@CASE@
done
if [ "$found" -eq 0 ]; then
    echo "predict.sh: no *.nii.gz in $inputs" >&2
    exit 1
fi
@ALL@for image in "$inputs"/*.nii.gz; do
    name=${image##*/}
    case=${name%.nii.gz}
    case=${case%_0000}
    if [ ! -f "$outputs/$case.nii.gz" ]; then
        echo "predict.sh: $case was not predicted" >&2
        failed=1
    fi
done
exit "$failed"
