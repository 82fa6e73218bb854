"""lm-eval: the same tasks over the service (local-completions) and over transformers (hf), with the same model."""

import json
import os
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

scratch, folder = Path(os.environ["SCRATCH"]), os.environ["BYTE_MODEL"]
items = [
    {"query": f"{left} is the", "choices": [" one", " that", f" {left} of it", " 高血压要注意"], "gold": place % 4}
    for place, left in enumerate(("this", "that he was", "it", "高血压", "a", "from the one", "2026", "to be"))
]
data = scratch / "items.jsonl"
data.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
(scratch / "tiny_choice.yaml").write_text(
    f"""task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""
)
(scratch / "tiny_perplexity.yaml").write_text(
    f"""task: tiny_perplexity
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{query}}}}{{{{choices[0]}}}}"
metric_list: [{{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}]
metadata: {{version: 1}}
"""
)
(scratch / "tiny_generation.yaml").write_text(
    f"""task: tiny_generation
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{query}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["zzz"], do_sample: false, temperature: 0, max_gen_toks: 12}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""
)
tasks = ["tiny_choice", "tiny_perplexity", "tiny_generation"]


def run(model: str, arguments: dict[str, object]) -> dict[str, list]:
    found = lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=tasks,
        batch_size=1,
        log_samples=True,
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(scratch), include_defaults=False),
    )
    print(model, {name: found["results"][name] for name in tasks})
    return found["samples"]


os.environ["OPENAI_API_KEY"] = os.environ["API_KEY"]
ours = run(
    "local-completions",
    {
        "model": Path(folder).name,
        "base_url": os.environ["BYTE_BASE_URL"] + "/completions",
        "tokenizer": folder,
        "tokenizer_backend": "huggingface",
        "num_concurrent": 1,
        "max_retries": 1,
        "tokenized_requests": True,
        "max_length": 256,
    },
)
theirs = run("hf", {"pretrained": folder, "dtype": "float32", "device": "cpu"})

worst = 0.0
for task in tasks:
    for one, other in zip(
        sorted(ours[task], key=lambda s: s["doc_id"]), sorted(theirs[task], key=lambda s: s["doc_id"]), strict=True
    ):
        assert one["doc_id"] == other["doc_id"]
        for mine, other_one in zip(one["filtered_resps"], other["filtered_resps"], strict=True):
            if task == "tiny_generation":
                assert mine == other_one, (mine, other_one)
            elif task == "tiny_choice":
                worst = max(worst, abs(mine[0] - other_one[0]))
                assert mine[1] == other_one[1], (mine, other_one)
            else:
                mine, other_one = (x[0] if isinstance(x, (list, tuple)) else x for x in (mine, other_one))
                worst = max(worst, abs(mine - other_one))
assert worst < 1e-3, worst
print("ok: log-likelihoods, whether they are greedy, rolling log-likelihoods and greedy text")
print(f"note: log-likelihoods differ from those of transformers by {worst:.0e} nats at most")
