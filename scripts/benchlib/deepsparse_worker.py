"""Times a model in DeepSparse 1.8. Run by the interpreter of an environment of its own: it needs numpy 1.26.

python deepsparse_worker.py MODEL.onnx INPUTS.npz THREADS SECONDS      prints {"median": ms, ...} as its last line
"""

import json
import sys
import time

import numpy as np
from deepsparse import Engine

_WARM_UP, _LEAST = 5, 20


def main() -> None:
    model, inputs, threads, seconds = sys.argv[1:]
    with np.load(inputs, allow_pickle=False) as stored:
        feed = {name: stored[name] for name in stored.files}
    batch = max(array.shape[0] for array in feed.values())
    engine = Engine(model=model, batch_size=batch, num_cores=int(threads))
    arrays = [np.ascontiguousarray(feed[name]) for name in engine.input_names]
    for _ in range(_WARM_UP):
        engine.run(arrays, val_inp=False)
    times: list[float] = []
    end = time.perf_counter() + float(seconds)
    while len(times) < _LEAST or time.perf_counter() < end:
        begun = time.perf_counter()
        engine.run(arrays, val_inp=False)
        times.append((time.perf_counter() - begun) * 1e3)
    median, p90, p99 = (float(value) for value in np.percentile(times, (50, 90, 99)))
    print(json.dumps({"median": median, "p90": p90, "p99": p99, "min": min(times), "repeats": len(times)}))


if __name__ == "__main__":
    main()
