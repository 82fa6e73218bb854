"""A GGUF file for llama.cpp: `python -m bench.peer.gguf_convert --model FOLDER --out FILE --type Q8_0`.

Norms, biases and positions stay float32; every matrix gets the type. Without a vocabulary ids go in and ids come out; llama-server wants one
all the same (-words), and a model that was trained ends its documents.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gguf  # type: ignore[import-not-found]

from bench.peer.weights import by_column, read_config, read_vocabulary, read_weights

PARTS = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--type", default="BF16", help="BF16, F16 or Q8_0; with -words after it the vocabulary goes in too"
    )
    args = parser.parse_args()
    writer = gguf.GGUFWriter(args.out, "gpt2")
    kind, _, has_words = args.type.partition("-")
    add_shape(writer, read_config(args.model), kind)
    if has_words:
        add_vocabulary(writer, args.model)
    else:
        writer.add_tokenizer_model("no_vocab")
    add_tensors(writer, args.model, gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_shape(writer: Any, config: dict[str, Any], kind: str) -> None:
    writer.add_name(f"random gpt2 {kind}")
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_vocab_size(config["vocab_size"])


def add_vocabulary(writer: Any, folder: Path) -> None:
    """Words that can be put out one by one, and the token that ends a document. No text is split by them."""
    words, config = read_vocabulary(folder), read_config(folder)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([gguf.TokenType.NORMAL] * len(words))
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def add_tensors(writer: Any, folder: Path, kind: Any) -> None:
    weights, num_layers = read_weights(folder), read_config(folder)["n_layer"]

    def matrix(name: str, data: Any) -> None:
        writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)

    matrix("token_embd.weight", weights["wte.weight"])
    writer.add_tensor("position_embd.weight", weights["wpe.weight"])
    for kind_of in ("weight", "bias"):
        writer.add_tensor(f"output_norm.{kind_of}", weights[f"ln_f.{kind_of}"])
    for index in range(num_layers):
        for theirs, name in PARTS.items():
            source = f"h.{index}.{theirs}"
            writer.add_tensor(f"blk.{index}.{name}.bias", weights[f"{source}.bias"])
            if theirs.startswith("ln_"):
                writer.add_tensor(f"blk.{index}.{name}.weight", weights[f"{source}.weight"])
            else:
                matrix(f"blk.{index}.{name}.weight", by_column(weights, source))


if __name__ == "__main__":
    main()
