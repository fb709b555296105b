"""Evaluates a SmolLM2 GGUF file with lm-evaluation-harness and PyTorch, to check `cloud-generator eval --format harness`.

    pip install lm-eval gguf torch tokenizers
    python tests/peers/lm_eval_check.py MODEL.gguf ITEMS.jsonl... --outcomes OUT/outcomes.jsonl

Each ITEMS file holds items of one reasoning set (mc schema); OUT is the report folder of `cloud-generator eval` over the
same files with `--arms none --format harness --limit 100000`. The harness's own task definitions and request building
are used; weights are dequantised by the `gguf` package and run in float32; the tokenizer is built with `tokenizers`.
Prints per set: items, acc and acc_norm of both, and on how many items they differ.
"""
import argparse
import json
import tempfile
from pathlib import Path

import lm_eval
import torch
from lm_eval import evaluator
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.utils import load_yaml_config
from tokenizers import Tokenizer, models, pre_tokenizers
from torch_llama import Llama

TASKS = Path(lm_eval.__file__).parent / "tasks"


def letters(count):
    return [chr(ord("A") + i) for i in range(count)]


def arc(item):
    labels = letters(len(item["choices"]))
    return {"question": item["question"], "choices": {"text": item["choices"], "label": labels}, "answerKey": labels[item["answer"]]}


def openbookqa(item):
    doc = arc(item)
    return {"question_stem": doc.pop("question"), **doc}


def hellaswag(item):
    # The file has "activity: context" in one; the harness joins the parts itself.
    activity, context = item["question"].split(": ", 1)
    return {"activity_label": activity, "ctx_a": context, "ctx_b": "", "endings": item["choices"], "label": str(item["answer"])}


# Set -> (harness definition, item to the harness's document)
SETS = {
    "arc_easy": ("arc/arc_easy.yaml", arc),
    "arc_challenge": ("arc/arc_easy.yaml", arc),
    "openbookqa": ("openbookqa/openbookqa.yaml", openbookqa),
    "boolq": ("super_glue/boolq/default.yaml", lambda item: {
        "passage": item["context"], "question": item["question"].rstrip("?"), "label": int(item["choices"][item["answer"]] == "yes")}),
    "socialiqa": ("siqa/siqa.yaml", lambda item: {
        "context": item["context"], "question": item["question"], **{f"answer{c}": text for c, text in zip("ABC", item["choices"])},
        "label": str(item["answer"] + 1)}),
    "hellaswag": ("hellaswag/hellaswag.yaml", hellaswag),
    "winogrande": ("winogrande/default.yaml", lambda item: {
        "sentence": item["question"], "option1": item["choices"][0], "option2": item["choices"][1], "answer": str(item["answer"] + 1)}),
    "piqa": ("piqa/piqa.yaml", lambda item: {
        "goal": item["question"], "sol1": item["choices"][0], "sol2": item["choices"][1], "label": item["answer"]}),
}


class Model(TemplateLM):
    def __init__(self, path):
        super().__init__()
        self.llama = Llama(path)
        field = lambda name: self.llama.reader.fields[name].contents()
        vocab = {token: index for index, token in enumerate(field("tokenizer.ggml.tokens"))}
        merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
        self.tokenizer = Tokenizer(models.BPE(vocab, merges))
        self.tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
        self.eos = field("tokenizer.ggml.eos_token_id")

    @property
    def eot_token_id(self):
        return self.eos

    def tok_encode(self, string, **_):
        return self.tokenizer.encode(string).ids

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests, **_):
        results = []
        for index, (_, context, answer) in enumerate(requests):
            rows = self.llama.logits(self.llama.states(self.llama.embed((context + answer)[:-1]))[-len(answer):])
            score = rows.log_softmax(-1)[range(len(answer)), answer].sum().item()
            results.append((score, rows.argmax(-1).tolist() == answer))
            print(f"\r{index + 1} of {len(requests)} requests", end="", flush=True)
        print()
        return results

    def loglikelihood_rolling(self, requests, **_):
        raise NotImplementedError

    def generate_until(self, requests, **_):
        raise NotImplementedError


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("items", nargs="+", type=Path)
    parser.add_argument("--outcomes", type=Path, required=True)
    arguments = parser.parse_args()
    outcomes = {line["task"]: line["scores"] for line in map(json.loads, arguments.outcomes.open()) if line.get("arm") == "none"}
    model = Model(arguments.model)
    for path in arguments.items:
        items = [json.loads(line) for line in path.open()]
        name = items[0]["task"]
        definition, document = SETS[name]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "test.jsonl"
            file.write_text("".join(json.dumps(document(item)) + "\n" for item in items))
            config = load_yaml_config(str(TASKS / definition))
            config.update(task=name, dataset_path="json", dataset_name=None, test_split="test",
                          dataset_kwargs={"data_files": {"test": str(file)}})
            for key in ["group", "training_split", "validation_split"]:
                config.pop(key, None)
            task = ConfigurableTask(config=config)
            result = evaluator.evaluate(lm=model, task_dict={name: task}, bootstrap_iters=0, log_samples=True)
        samples = sorted(result["samples"][name], key=lambda sample: sample["doc_id"])
        ours = outcomes[name]
        assert len(samples) == len(ours) == len(items), f"{name}: {len(samples)} and {len(ours)} of {len(items)} items"
        for metric, key in [("acc", "main"), ("acc_norm", "second")]:
            if metric in samples[0]:
                theirs = [float(sample[metric]) for sample in samples]
                differ = sum(a != b[key] for a, b in zip(theirs, ours))
                mean = lambda values: 100 * sum(values) / len(values)
                print(f"{name:14} {metric:8} n {len(items):4}  lm-eval {mean(theirs):5.1f}  "
                      f"cloud-generator {mean([score[key] for score in ours]):5.1f}  items that differ: {differ}")


if __name__ == "__main__":
    main()
