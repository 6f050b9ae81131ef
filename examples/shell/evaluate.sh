#!/bin/sh
# The mean absolute error of the mean in HEADRACE_MODEL_DIR on the rows that nobody trains on.
set -eu
awk -F, -v column="${HEADRACE_PARAMETER_COLUMN:-value}" -v mean="$(cat "$HEADRACE_MODEL_DIR/mean")" '
    NR == 1 { for (i = 1; i <= NF; i++) if ($i == column) at = i; next }
    { error = $at - mean; sum += error < 0 ? -error : error; rows++ }
    END { printf "{\"error\": %.6f}\n", sum / rows }
' data/sales/holdout.csv > "$HEADRACE_METRICS"
