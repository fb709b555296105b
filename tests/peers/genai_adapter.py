"""A pack's adapter in onnxruntime-genai: the greedy ids with it, beside those of the same pairs as plain inputs in `onnxruntime`,
up to the end of the answer, where onnxruntime-genai stops.

    genai_adapter.py FOLDER ADAPTER IDS COUNT

FOLDER was exported with `export-onnx --side-path`, ADAPTER with `cloud-generator export --format onnx-adapter`.
"""

import json
import sys

import numpy as np
import onnxruntime as ort
import onnxruntime_genai as og
from greedy_run import Model


def with_genai(folder, adapter, ids, count):
    model = og.Model(folder)
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + count, do_sample=False)
    run = og.Generator(model, params)
    if adapter:
        adapters = og.Adapters(model)
        adapters.load(adapter, "pack")
        run.set_active_adapter(adapters, "pack")
    run.append_tokens(np.array([ids], np.int32))
    for _ in range(count):
        run.generate_next_token()
    return [int(token) for token in run.get_sequence(0)[len(ids):]]


def until_end(folder, ids):
    with open(f"{folder}/genai_config.json", encoding="utf-8") as file:
        end = json.load(file)["model"]["eos_token_id"]
    return ids[: ids.index(end)] if end in ids else ids


def main(folder, adapter, ids, count):
    ids, count = [int(part) for part in ids.split(",")], int(count)
    pairs = ort.AdapterFormat.read_adapter(adapter).get_parameters()
    model = Model(folder)
    without = until_end(folder, model.greedy(ids, count))
    model.always = {name: value.numpy() for name, value in pairs.items()}
    as_inputs = until_end(folder, model.greedy(ids, count))
    as_adapter = with_genai(folder, adapter, ids, count)
    print(f"without: {without}\nas inputs: {as_inputs}\nas an adapter in onnxruntime-genai: {as_adapter}")
    assert with_genai(folder, None, ids, count) == without, "onnxruntime-genai without the adapter"
    assert as_adapter == as_inputs != without


if __name__ == "__main__":
    main(*sys.argv[1:])
