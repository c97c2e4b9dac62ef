#!/usr/bin/env bash
# From a folder of PDFs to an adapter: ingest, make queries from the documents' own words, train, evaluate on other files.
#
#   tools/demo_pdf.sh [FOLDER]     your PDFs; without one, those of a Debian documentation package (50 MB, downloaded by
#                                  apt-get; 155 PDFs, 6,100 pages of LaTeX manuals)
#   OUT=runs/demo-pdf              output folder; a second run resumes there
#   STEPS=30                       training steps
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PACKAGE=texlive-latex-recommended-doc
OUT=${OUT:-runs/demo-pdf}
FOLDER=${1:-}
mkdir -p "$OUT"

if [ -z "$FOLDER" ]; then
    FOLDER=$OUT/documents
    if [ ! -d "$FOLDER" ]; then
        for tool in apt-get dpkg-deb; do
            command -v "$tool" >/dev/null || {
                echo "$tool is missing (not a Debian system?); name a folder of PDFs: tools/demo_pdf.sh FOLDER" >&2
                exit 1
            }
        done
        rm -rf "$OUT/package" && mkdir "$OUT/package"
        (cd "$OUT/package" && apt-get -qq download "$PACKAGE") || {
            echo "apt-get could not download $PACKAGE (offline?); name a folder of PDFs: tools/demo_pdf.sh FOLDER" >&2
            exit 1
        }
        dpkg-deb -x "$OUT"/package/*.deb "$OUT/package/tree"
        mv "$OUT/package/tree" "$FOLDER"
        rm -rf "$OUT/package"
    fi
fi

# 3 = some files were skipped; the summary names them
smart-train ingest "$FOLDER" --output "$OUT/data" --no-images || [ $? -eq 3 ]
# Pages are longer than docstrings, and the answer may stand anywhere on them: train on as many tokens as the base reads.
# With the quickstart's 96 tokens and its learning rate, training lowered the metrics.
accelerate launch recipes/quickstart.yaml name=demo-pdf "output=$OUT/run" "data.path=$OUT/data" \
    data.document_tokens=256 training.per_device_train_batch_size=32 training.learning_rate=2e-4 \
    "training.max_steps=${STEPS:-30}" training.eval_steps=15
