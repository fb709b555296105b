"""onnxruntime-genai on an exported folder: one figure, or the greedy text of some token ids.

    genai_run.py FOLDER THREADS prefill:128 | decode:30 | load | greedy:12 [IDS]

Prints tokens per second, nothing for `load` (its figure is the process's time), or ids.
"""

import json
import sys
import time

import numpy as np
import onnxruntime_genai as og

DECODE_TOKENS = 32
WARM_UP_TOKENS_MAX = 512


def generator(model, length):
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=length, do_sample=False)
    return og.Generator(model, params)


def random_ids(count, vocab):
    return np.random.default_rng(count).integers(0, vocab, (1, count), dtype=np.int32)


def main():
    folder, threads, measure = sys.argv[1:4]
    kind, _, count = measure.partition(":")
    count = int(count or 0)
    with open(f"{folder}/genai_config.json", encoding="utf-8") as file:
        vocab = json.load(file)["model"]["vocab_size"]
    config = og.Config(folder)
    options = {"model": {"decoder": {"session_options": {"intra_op_num_threads": int(threads)}}}}
    config.overlay(json.dumps(options))
    model = og.Model(config)
    if kind == "load":
        run = generator(model, 1536)
        run.append_tokens(random_ids(2, vocab))
        run.generate_next_token()
    elif kind == "greedy":
        ids = [int(part) for part in sys.argv[4].split(",")]
        run = generator(model, len(ids) + count)
        run.append_tokens(np.array([ids], dtype=np.int32))
        for _ in range(count):
            run.generate_next_token()
        print(",".join(str(token) for token in run.get_sequence(0)[len(ids):]))
    elif kind == "prefill":
        ids = random_ids(count, vocab)
        if count <= WARM_UP_TOKENS_MAX:
            run = generator(model, count + 1)
            run.append_tokens(ids)
        run = generator(model, count + 1)
        start = time.perf_counter()
        run.append_tokens(ids)
        run.get_logits()
        print(count / (time.perf_counter() - start))
    elif kind == "decode":
        run = generator(model, count + DECODE_TOKENS + 2)
        run.append_tokens(random_ids(count, vocab))
        run.generate_next_token()
        start = time.perf_counter()
        for _ in range(DECODE_TOKENS):
            run.generate_next_token()
        print(DECODE_TOKENS / (time.perf_counter() - start))
    else:
        sys.exit(f"unknown measure {measure!r}")


if __name__ == "__main__":
    main()
