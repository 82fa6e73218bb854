"""A model folder for OpenVINO GenAI: `python -m bench.peer.openvino_convert --model FOLDER --out FOLDER --type int8_asym`.

optimum-intel's export; `float32` leaves the weights as they are (OpenVINO computes in bf16 if asked to), int8_sym and int8_asym have nncf compress
them. Runs in the export's own environment, the only one with torch besides promptgen's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig  # type: ignore[import-not-found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--type", default="int8_asym", choices=("float32", "int8_sym", "int8_asym"))
    args = parser.parse_args()
    quantized = args.type != "float32"
    model = OVModelForCausalLM.from_pretrained(
        args.model,
        export=True,
        compile=False,
        load_in_8bit=False,
        quantization_config=OVWeightQuantizationConfig(bits=8, sym=args.type == "int8_sym") if quantized else None,
    )
    model.save_pretrained(args.out)


if __name__ == "__main__":
    main()
