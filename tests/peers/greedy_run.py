"""Greedy text from an exported folder with Python's `onnxruntime` and numpy alone: the graph is a standard one.

    greedy_run.py FOLDER IDS COUNT          the ids that follow some ids
    greedy_run.py FOLDER --golden FILE      the greedy steps of a file of reference figures, as `cargo xtask parity` reads it:
                                            equal up to the first step whose two best tokens are less than 0.3 apart
"""

import json
import sys

import numpy as np
import onnxruntime as ort

CLEAR_MARGIN = 0.3


class Model:
    def __init__(self, folder):
        with open(f"{folder}/genai_config.json", encoding="utf-8") as file:
            decoder = json.load(file)["model"]["decoder"]
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.session = ort.InferenceSession(f"{folder}/{decoder['filename']}", options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]
        shape = (1, decoder["num_key_value_heads"], 0, decoder["head_size"])
        names = [f"past_key_values.{layer}.{kind}" for layer in range(decoder["num_hidden_layers"]) for kind in ("key", "value")]
        self.empty = {name: np.zeros(shape, np.float32) for name in names}
        # Inputs of every run, such as a pack's pairs.
        self.always = {}

    def greedy(self, ids, count):
        cache, pending, total, said = dict(self.empty), list(ids), 0, []
        for _ in range(count):
            total += len(pending)
            feeds = {
                "input_ids": np.array([pending], np.int64),
                "attention_mask": np.ones((1, total), np.int64),
                **cache,
                **self.always,
            }
            results = dict(zip(self.outputs, self.session.run(None, feeds)))
            cache = {name: results[name.replace("past_key_values", "present")] for name in cache}
            pending = [int(np.argmax(results["logits"][0, -1]))]
            said += pending
        return said


def compare(model, cases):
    differing, steps = [], 0
    for case in cases:
        margins = case["greedy_margin"]
        clear = next((index for index, margin in enumerate(margins) if margin < CLEAR_MARGIN), len(margins))
        said = model.greedy(case["ids"], clear)
        steps += clear
        if said != case["greedy_ids"][:clear]:
            differing.append((case["text"], said, case["greedy_ids"][:clear]))
    for text, said, expected in differing:
        print(f"{text!r}: {said}, expected {expected}")
    print(f"{len(cases) - len(differing)} of {len(cases)} cases equal, {steps} clear steps")
    return not differing


def main():
    model = Model(sys.argv[1])
    if sys.argv[2] == "--golden":
        with open(sys.argv[3], encoding="utf-8") as file:
            sys.exit(not compare(model, json.load(file)["cases"]))
    print(",".join(map(str, model.greedy([int(part) for part in sys.argv[2].split(",")], int(sys.argv[3])))))


if __name__ == "__main__":
    main()
