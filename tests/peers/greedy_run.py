"""Greedy ids from an exported folder with Python's `onnxruntime` and numpy alone: the graph is a standard one.

    greedy_run.py FOLDER COUNT IDS
"""

import json
import sys

import numpy as np
import onnxruntime as ort


def main():
    folder, count, ids = sys.argv[1], int(sys.argv[2]), [int(part) for part in sys.argv[3].split(",")]
    with open(f"{folder}/genai_config.json", encoding="utf-8") as file:
        decoder = json.load(file)["model"]["decoder"]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(f"{folder}/{decoder['filename']}", options, providers=["CPUExecutionProvider"])
    shape = (1, decoder["num_key_value_heads"], 0, decoder["head_size"])
    cache = {}
    for layer in range(decoder["num_hidden_layers"]):
        for kind in ("key", "value"):
            cache[f"past_key_values.{layer}.{kind}"] = np.zeros(shape, np.float32)
    outputs = [output.name for output in session.get_outputs()]
    pending, total, said = list(ids), 0, []
    for _ in range(count):
        total += len(pending)
        feeds = {
            "input_ids": np.array([pending], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            **cache,
        }
        results = dict(zip(outputs, session.run(None, feeds)))
        for name in cache:
            cache[name] = results[name.replace("past_key_values", "present")]
        pending = [int(np.argmax(results["logits"][0, -1]))]
        said += pending
    print(",".join(map(str, said)))


if __name__ == "__main__":
    main()
