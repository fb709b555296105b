"""What the SDK costs, measured from Python: `cargo xtask sdk figures`; with `leaks`, what is left after 200 cycles. Fails if a
figure misses its bar."""

import ctypes
import os
import shutil
import statistics
import sys
import threading
import time

import edgeweld
from edgeweld import MergeMode, TaskHandle
from test_scenario import FACTS

# A cancelled call may take this and the time of one token.
CANCEL_MS = 20.0
CYCLES = 200
# Allocators and caches have settled after this many.
SETTLED = 10
GROWTH_PERCENT = 1.0

missed = 0


def figure(name, value, unit, bar):
    global missed
    missed += value > bar
    print(f"{name:<36} {value:8.2f} {unit} (bar {bar:.2f}, {'met' if value <= bar else 'MISSED'})", flush=True)


def load():
    return edgeweld.Engine.load(FACTS["model"], threads=2, context_length=4096)


def download(engine, name, folder, **options):
    store = edgeweld.PackStore(folder, [FACTS["trusted_key"]])
    return store.download(engine, f"{FACTS['url']}/figures/{name}.pack", **options)


def cancel_latency(name, after_ms, token_ms, work, prepare=lambda: None):
    """From the call of cancel to the end of the blocking call, which has run for a while."""

    def ends(task):
        try:
            work(task)
        except edgeweld.SdkError.Cancelled:
            pass

    latencies = []
    for _ in range(10):
        prepare()
        task = TaskHandle()
        thread = threading.Thread(target=ends, args=[task])
        thread.start()
        time.sleep(after_ms / 1e3)
        assert thread.is_alive(), f"{name} ended before it was cancelled"
        start = time.perf_counter()
        task.cancel()
        thread.join()
        latencies.append((time.perf_counter() - start) * 1e3)
    print(f"cancel during {name}, median of 10: {statistics.median(latencies):.2f} ms")
    figure(f"cancel during {name}, longest of 10", max(latencies), "ms", token_ms + CANCEL_MS)


def cancel_latencies(engine):
    session, folder = engine.session(), os.environ["EDGEWELD_STORE"]
    count, book = [edgeweld.user("Count to one thousand.")], [edgeweld.user("word " * 3500)]
    token_ms = 1e3 / session.chat(count, max_tokens=64).decode_tokens_per_second
    cancel_latency("decode", 150, token_ms, lambda task: session.chat(count, max_tokens=2000, task=task))
    cancel_latency("prefill", 200, token_ms, lambda task: session.chat(book, task=task), session.clear)
    pack = download(engine, "good", folder)
    cancel_latency("merge", 150, token_ms, lambda task: engine.merge(pack, task=task))
    slow = folder + "-cancel"
    clean = lambda: shutil.rmtree(slow, ignore_errors=True)
    cancel_latency("download", 300, token_ms, lambda task: download(engine, "slow", slow, task=task), clean)


def resident_kb():
    # What the allocator keeps for later, up to the size of a whole model, is no leak.
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/status", encoding="ascii") as status:
        return int(next(line for line in status if line.startswith("VmRSS")).split()[1])


def cycles():
    before, resident = edgeweld.live_object_count(), []
    for _ in range(CYCLES):
        with load() as engine, engine.session() as session:
            engine.merge(download(engine, "good", os.environ["EDGEWELD_STORE"]), MergeMode.SIDE_PATH)
            session.chat([edgeweld.user("Hi")], max_tokens=4)
        del engine, session
        resident.append(resident_kb())
    shown = [1, SETTLED, CYCLES // 4, CYCLES // 2, CYCLES]
    print(f"RSS after cycles {shown}: {[resident[cycle - 1] for cycle in shown]} KB")
    # Medians of ten, because threads that just ended may still hold their stacks.
    settled, last = statistics.median(resident[SETTLED : 2 * SETTLED]), statistics.median(resident[-SETTLED:])
    figure(f"RSS growth over {CYCLES} cycles", 100 * (last / settled - 1), "%", GROWTH_PERCENT)
    figure(f"objects alive after {CYCLES} cycles", edgeweld.live_object_count() - before, "", 0)


if __name__ == "__main__":
    if "leaks" in sys.argv:
        cycles()
    else:
        with load() as loaded:
            cancel_latencies(loaded)
    sys.exit(missed > 0)
