"""A model folder for CTranslate2: `python -m bench.peer.ct2_convert --model FOLDER --out FOLDER --type int8`.

As CTranslate2's own converter does for GPT-2 (its GPT2Loader), which would need transformers and a tokenizer of transformers' own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ctranslate2.specs import common_spec, transformer_spec  # type: ignore[import-not-found]

from bench.peer.task import BEGIN, END
from bench.peer.weights import Weights, by_column, read_config, read_vocabulary, read_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--type", default="float32", help="type of the weights")
    args = parser.parse_args()
    spec = specify(args.model)
    spec.validate()
    spec.optimize(quantization=args.type)
    args.out.mkdir(parents=True)
    spec.save(str(args.out))


def specify(folder: Path) -> Any:
    config, weights = read_config(folder), read_weights(folder)
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        config["n_layer"], config["n_head"], pre_norm=True, activation=common_spec.Activation.GELUTanh
    )
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = BEGIN, END, "[UNK]"
    spec.config.layer_norm_epsilon = config["layer_norm_epsilon"]
    spec.register_vocabulary(read_vocabulary(folder))
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = decoder.projection.weight = weights["wte.weight"]
    decoder.position_encodings.encodings = weights["wpe.weight"]
    set_norm(decoder.layer_norm, weights, "ln_f")
    for index, layer in enumerate(decoder.layer):
        block = f"h.{index}"
        set_norm(layer.self_attention.layer_norm, weights, f"{block}.ln_1")
        set_linear(layer.self_attention.linear[0], weights, f"{block}.attn.c_attn")
        set_linear(layer.self_attention.linear[1], weights, f"{block}.attn.c_proj")
        set_norm(layer.ffn.layer_norm, weights, f"{block}.ln_2")
        set_linear(layer.ffn.linear_0, weights, f"{block}.mlp.c_fc")
        set_linear(layer.ffn.linear_1, weights, f"{block}.mlp.c_proj")
    return spec


def set_norm(spec: Any, weights: Weights, name: str) -> None:
    spec.gamma, spec.beta = weights[f"{name}.weight"], weights[f"{name}.bias"]


def set_linear(spec: Any, weights: Weights, name: str) -> None:
    spec.weight, spec.bias = by_column(weights, name), weights[f"{name}.bias"]


if __name__ == "__main__":
    main()
