#!/bin/sh
# Predicts @INPUTS@ into @OUTPUTS@; further options go to predict.py, such as -device cpu.
here=$(cd "$(dirname "$0")" && pwd)
exec python "$here/predict.py" -m "$here/model" -i @INPUTS@ -o @OUTPUTS@ \
    -f @FOLDS@ -chk @CHECKPOINT@@OPTIONS@ "$@"
